"""The model card of an exported model: what it is, learned from, and how good it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedfuse.builtin.models import is_builtin
from fedfuse.config.data import BUILTIN_DATA
from fedfuse.data.hub import looks_like_path
from fedfuse.data.records import source_name
from fedfuse.exporting.merged_model import Merged
from fedfuse.exporting.sharing import what_was_shared
from fedfuse.report.formatting import loss_text, percent
from fedfuse.tracking.json_fields import clean
from fedfuse.tracking.run import SERVER, Measure, RunFolder
from fedfuse.tracking.run_writer import commit

# Keys that a card takes over from the base's.
_FROM_BASE = ("license", "license_name", "license_link", "language")
_TAGS = ("fedfuse", "federated-learning", "lora")
# A snapshot of a hub model in the hub's cache: its id, and the commit.
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")
_DESCRIBED = {
    "zero-shot": "base, untouched",
    "standalone": "trained alone",
    "public-only": "trained alone, with public labels",
    "federated": "this model",
    "centralized": "trained on everybody's data",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What a card is about.

    Attributes:
        run: the run, with the measurements of the model that was exported.
        model: id of the model in the run.
        merged: what was written.
    """

    run: RunFolder
    model: str
    merged: Merged


def model_card(subject: Subject) -> str:
    """The card in Markdown, with front matter as the Hugging Face hub reads it."""
    parts = [
        _front_matter(subject),
        f"# {subject.run.title}: {subject.run.name(subject.model)}",
        _introduction(subject),
        "## How to load it",
        _loading(subject),
        "## What it learned from",
        _training(subject),
        "## What the parties shared",
        what_was_shared(subject.run, subject.model),
        "## How good it is",
        _measurements(subject),
        "## Made with",
        _versions(subject),
    ]
    return "\n\n".join(parts) + "\n"


def hub_base(subject: Subject) -> tuple[str, str]:
    """Hub id and commit of the base; both empty for one that is not from the hub."""
    name, revision = subject.run.models[subject.model], subject.merged.revision
    if found := _SNAPSHOT.search(subject.merged.source.as_posix()):
        return f"{found[1]}/{found[2]}", found[3]
    local = is_builtin(name) or looks_like_path(name) or Path(name).expanduser().is_dir()
    return ("", "") if local or name.count("/") > 1 else (name, revision)


def base_facts(folder: Path) -> Mapping[str, Any]:
    """Licence and language from the card of a base; empty where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError):  # none, or no front matter
        return {}
    return {key: found[key] for key in _FROM_BASE if found.get(key)}


def _front_matter(subject: Subject) -> str:
    base, _ = hub_base(subject)
    # The hub refuses a base_model that is no id of its own.
    about: dict[str, Any] = {"base_model": base, "base_model_relation": "finetune"} if base else {}
    about |= base_facts(subject.merged.source)
    about |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    strategy = _strategy(subject.run).replace(":", "-")
    about |= {"tags": list(dict.fromkeys([*_TAGS, strategy]))}
    # What is JSON is YAML too.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items()]
    return "\n".join(["---", *lines, "---"])


def _introduction(subject: Subject) -> str:
    run, merged = subject.run, subject.merged
    base, revision = hub_base(subject)
    shown = f"[{base}](https://huggingface.co/{base})" if base else f"`{base_name(subject)}`"
    shown += f" (commit {revision[:12]})" if revision else ""
    who = "server" if subject.model == SERVER else f"client {_quoted(run.name(subject.model))}"
    licence = (
        ""
        if "license" in base_facts(merged.source) or is_builtin(run.models[subject.model])
        else " The base's files name no licence: whoever passes this model on has to know it."
    )
    return (
        f"A causal language model ({merged.architecture}, {merged.dtype}) that learned in a "
        f"federation of language models: {shown} with a LoRA adapter merged into its weights. "
        f"It was the {who} of the run `{run.title}`.{licence}"
    )


def base_name(subject: Subject) -> str:
    """Name of the base for readers: of a folder the last part, which tells nothing of a machine."""
    name = clean(subject.run.models[subject.model])
    return name if is_builtin(name) or hub_base(subject)[0] else Path(name).name


def _loading(subject: Subject) -> str:
    begin = _quoted(subject.merged.begin)
    itself = (
        "which the tokenizer puts there by itself"
        if subject.merged.begins_itself
        else "which the tokenizer does **not** put there by itself"
    )
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
```

`vllm serve FOLDER` and llama.cpp's `convert_hf_to_gguf.py FOLDER` take it too, where they know the
family. Every text that the model was trained and measured on began with the token {begin},
{itself}."""


def _training(subject: Subject) -> str:
    run, config = subject.run, subject.run.config
    facts = {
        "Data": ", ".join(data_names(str(config.get("data.source", BUILTIN_DATA)))),
        "Domains": ", ".join(run.domains),
        "Samples of a domain": ", ".join(_sizes(config)),
        "Private samples dealt by": f"`{config.get('data.partition')}`",
        "Prompt template": _quoted(str(config.get("data.template") or "")),
        "Tokens of a sample": f"at most {config.get('data.max-length')}",
        "Strategy": f"`{_strategy(run)}`",
        "Clients": str(len(run.clients)),
        "Rounds": _rounds(run, subject.model),
        "Adapter": run.adapters.get(subject.model, ""),
        "Preset, seed": f"`{config.get('preset')}`, {run.seed}",
    }
    rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value]
    text = "\n".join(["| | |", "|---|---|", *rows])
    quantization = config.get(f"{_side(subject.model)}.quantization", "none")
    if quantization != "none":
        text += (
            f"\n\nThe adapter was trained on weights in {quantization}, and is merged into the "
            "unquantized ones: losses may differ from those below."
        )
    return text


def data_names(source: str) -> list[str]:
    """Names of data sources for readers: of a file or folder the last part."""
    parts = [clean(part.strip()) for part in source.split("+")]
    if parts == [BUILTIN_DATA]:
        return ["fedfuse's built-in synthetic text"]
    paths = [looks_like_path(part) or Path(part).expanduser().exists() for part in parts]
    return [
        f"`{source_name(part)}` (a file or folder)" if local else f"`{part}`"
        for part, local in zip(parts, paths, strict=True)
    ]


def _sizes(config: Mapping[str, Any]) -> Iterator[str]:
    """Sizes of the splits as the run config has them; 0 of some of them means all."""
    for split, name in {
        "private": "private",
        "public": "public",
        "holdout": "held out",
        "blind": "blind",
    }.items():
        if (size := config.get(f"data.{split}")) is None:
            continue
        everything = size == 0 and split == "private"
        yield f"{'all that is left' if everything else size} {name}"


def _rounds(run: RunFolder, model: str) -> str:
    planned, done = run.config.get("rounds"), run.overall(model, "federated")
    if run.status == "finished":
        last = f"; measured after round {done.round}" if done and done.round != planned else ""
        return f"{planned}{last}"
    after = f"after round {done.round}" if done else "before it was measured"
    later = "" if model == SERVER else ", and the adapter may be of the round after"
    return f"{planned} planned; the run was cut off, this model is from {after}{later}"


def _measurements(subject: Subject) -> str:
    run, model = subject.run, subject.model
    stages = [stage for stage in run.stages if run.by_domain(model, stage)]
    if "federated" not in stages:
        return "The run has no measurement of this model."
    intro = (
        "On the run's test set, which nobody trained on: nats per byte of answer text, less is "
        "better; and the share of multiple-choice questions answered right, where there are any."
    )
    samples = {m.domain: m.samples for m in run.metrics if m.model == model}
    floor = run.floor_loss
    head = ["domain", "test samples", *(_DESCRIBED[stage] for stage in stages)]
    head += ["best possible"] if floor else []
    rows = []
    for domain in run.by_domain(model, "federated"):
        found = [run.by_domain(model, stage).get(domain) for stage in stages]
        row = [domain, f"{samples[domain]:,}", *map(_measure, found)]
        rows.append(row + ([loss_text(floor[domain])] if floor else []))
    means = [_measure(run.overall(model, stage)) for stage in stages]
    mean = ["mean over domains", "", *means]
    rows.append(mean + ([loss_text(run.floor.loss)] if run.floor else []))
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in (head, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(head) - 1))
    return f"{intro}\n\n" + "\n".join(lines)


def _measure(found: Measure | None) -> str:
    if found is None:
        return ""
    accuracy = f", {percent(found.accuracy)}" if found.accuracy is not None else ""
    return loss_text(found.loss) + accuracy


def _versions(subject: Subject) -> str:
    run = subject.run
    at_run = f"fedfuse {run.versions.get('fedfuse', '?')}" + _at(run.commit)
    others = [f"{name} {run.versions[name]}" for name in ("torch", "transformers", "peft")
              if name in run.versions]  # fmt: skip
    now = f"fedfuse {version('fedfuse')}" + _at(commit())
    return f"The run: {', '.join([at_run, *others])}. This folder: `fedfuse export` of {now}."


def _at(revision: str) -> str:
    return f" at commit {clean(revision)}" if revision else ""


def _strategy(run: RunFolder) -> str:
    return clean(str(run.config.get("strategy", "")))


def _side(model: str) -> str:
    return SERVER if model == SERVER else "clients"


def _quoted(text: str) -> str:
    return f"`{clean(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
