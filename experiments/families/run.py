"""Which families can take part: ``python -m experiments.families.run``.

Every family of causal language models of the installed transformers, tiny and random, goes through
all checks of ``checks.py``, each in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from experiments import harness
from experiments.families import checks, shortcuts
from experiments.families.configs import (
    FAMILIES,
    random_model,
    text_model,
    tiny_config,
    tiny_model,
)
from fedfuse.builtin.text_world import World, pretraining_text
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.data import DataConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.tokenizers.dataset import TokenizedDataset

SECONDS = 300  # for one family
# Rows of a head that no token has, as in many published models.
PADDING_ROWS = 64
# Tokenizers, by the class that transformers has for the family.
TOKENIZERS = {
    "bert_uncased": (
        "BertTokenizer",
        "RoFormerTokenizer",
        "RoCBertTokenizer",
        "ProphetNetTokenizer",
    ),
    "gpt2": ("GPT2Tokenizer", "RobertaTokenizer", "WhisperTokenizer", "BlenderbotTokenizer"),
    "gpt_neox_pythia": ("GPTNeoXTokenizer",),
    "mistral_v3": ("TokenizersBackend",),
    "qwen": ("Qwen2Tokenizer", "Qwen3_5Tokenizer"),
}
OTHER = "llama2"
SERVER = "gpt2"
# The same without material: built-in kinds.
KINDS = {"bert_uncased": "wordpiece", "gpt2": "byte-level-bpe", "gpt_neox_pythia": "byte-level-bpe"}
KIND, VOCABULARY = "unigram", 420
# After an adapter is in its place, each on its own: an option that is refused leaves the others.
CHECKS: Mapping[str, Callable[[checks.Subject], dict[str, Any]]] = {
    "head": checks.head,
    "padding": checks.padding,
    "loss and gradient": checks.loss,
    "extraction": checks.extraction,
    "longest input": checks.longest,
    "memory plan": checks.memory,
    "gradient-checkpointing": checks.checkpointing,
    "autocast bfloat16": checks.autocast,
    "weights in bfloat16": checks.half,
    "frozen layers once": shortcuts.last_layers,
    "options behind one prompt": shortcuts.options,
}
PASSES, PARTLY, REFUSED, FAILS, UNTRIED, NO_TEXT = (
    "passes",
    "passes in part",
    "refused",
    "fails",
    "not built",
    "no text",
)
# What a family may do or not; see ``shortcuts``.
SHORTCUTS = ("frozen_layers_once", "options_share_prompt")
STATUSES = (PASSES, PARTLY, REFUSED, FAILS, UNTRIED, NO_TEXT)
# What transformers has for the text of a family: a class that reads a tokenizer.json, one that
# does not, or no class, and then a tokenizer.json is read as it is.
FAST, SLOW, NO_CLASS = "fast", "slow", "no class"
TOKENIZER_CLASSES = (FAST, NO_CLASS, SLOW)


@lru_cache(maxsize=1)
def samples() -> tuple[list[Sample], list[Sample]]:
    """Public and private samples of the built-in world."""
    data = DataConfig(private=8, public=6, holdout=0, test=1, questions=0, blind=0)
    splits = World(seed=0, domains=2).splits(data, 1)
    return splits.public, splits.private[0]


@lru_cache(maxsize=8)
def tokenizer(name: str, material: Path | None) -> Any:
    """A tokenizer of a family's kind: a real one from the material, or a built-in one."""
    if material:
        return AutoTokenizer.from_pretrained(material / "tokenizers" / name, local_files_only=True)
    texts = [sample.text for sample in pretraining_text(250, seed=0)]
    return train_tokenizer(KINDS.get(name, KIND), VOCABULARY, texts)


def tokenizer_of(family: str) -> str:
    """Name of the tokenizer that a family is tried with: of its class, if one of them is."""
    kind = TOKENIZER_MAPPING_NAMES.get(family)
    return next((name for name, kinds in TOKENIZERS.items() if kind in kinds), OTHER)


def tokenizer_class(family: str) -> str:
    """What kind of tokenizer class transformers maps a family to."""
    if family not in TOKENIZER_MAPPING_NAMES:
        return NO_CLASS
    # None where the class needs a library that is not here, which no fast one does.
    found = getattr(transformers, str(TOKENIZER_MAPPING_NAMES[family]), None)
    fast = found is not None and issubclass(found, transformers.PreTrainedTokenizerFast)
    return FAST if fast else SLOW


def writes_text(family: str) -> bool:
    """Whether a family's tokens are those of text."""
    made: Any = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]).output_modalities
    return "text" in made


def save(family: str, name: str, folder: Path, material: Path | None) -> Any:
    """Save a family's tiny model with its tokenizer; returns its part for text.

    Where a model is none of text, there is its configuration and a file without weights: it is
    refused before they are read. Of one with a part that cannot be made without a library that is
    not here, the part for text is saved as it is in the whole.
    """
    words = tokenizer(name, material)
    words.save_pretrained(folder)
    rows = len(words) + PADDING_ROWS
    if not writes_text(family):
        tiny_config(family, rows).save_pretrained(folder)
        save_file({}, folder / "model.safetensors", {"format": "pt"})
        return None
    try:
        model = tiny_model(family, rows)
    except ImportError:
        return save_text_part(tiny_config(family, rows), folder)
    model.save_pretrained(folder)
    return text_model(model)


def save_text_part(config: Any, folder: Path) -> Any:
    """Save the part of a larger model that is for text, under its names there; returns it."""
    model = random_model(config.get_text_config(), AutoModelForCausalLM)
    weights = {
        name.replace("model.", "model.language_model.", 1): weight
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"  # tied
    }
    others = {"model.vision_tower.weight": torch.zeros(1)}
    save_file(weights | others, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    return model


def server(folder: Path, material: Path | None) -> CausalLM:
    """The other side of a federation."""
    save("llama", SERVER, folder, material)
    return add_lora(load_causal_lm(str(folder), device="cpu"), checks.LORA)


def try_family(family: str, material: Path | None, folder: Path) -> dict[str, Any]:
    """All checks of a family: status, reason and what was measured."""
    name = tokenizer_of(family)
    row: dict[str, Any] = {"family": family, "tokenizer": name}
    try:
        model = save(family, name, folder, material)
    except Exception as error:  # a configuration that is not tiny, or that cannot be made here
        return row | {"status": UNTRIED, "reason": reason_of(error, folder)}
    public, private = samples()
    try:
        base = load_causal_lm(str(folder), device="cpu")
        data = TokenizedDataset(base.tokenizer, public, checks.MAX_LENGTH)
        row |= checks.loaded(base, model, data)
        lm, found = checks.adapted(base)
        row |= found
    except FedfuseError as error:
        status = REFUSED if writes_text(family) else NO_TEXT
        return row | {"status": status, "reason": reason_of(error, folder)}
    except Exception as error:
        return row | {"status": FAILS, "reason": f"loading: {reason_of(error, folder)}"}
    teacher = checks.draw_teacher(len(data.rows.token), lm.vocab_size)
    subject = checks.Subject(folder, lm, data, teacher)
    refused, wrong = [], []
    last = {
        "saving": lambda subject: checks.saving(subject, folder / "adapter"),
        "federation": lambda subject: checks.federation(
            subject, server(folder / "server", material), private
        ),
    }
    for check, run in (CHECKS | last).items():
        try:
            row |= run(subject)
        except FedfuseError as error:
            refused.append(f"{check}: {reason_of(error, folder)}")
        except Exception as error:
            wrong.append(f"{check}: {reason_of(error, folder)}")
    status = FAILS if wrong else PARTLY if refused else PASSES
    return row | {"status": status, "reason": "; ".join(wrong + refused)}


def reason_of(error: Exception, folder: Path) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()).replace(str(folder), "NAME")[:240]
    plain = isinstance(error, FedfuseError | checks.Wrong | ValueError)
    return text if plain else f"{type(error).__name__}: {text}"


def measure(family: str, material: Path | None) -> list[dict[str, Any]]:
    """A family's row; its process is stopped after some minutes, whatever it does."""
    tokenizer(tokenizer_of(family), material), tokenizer(SERVER, material), samples()
    context = multiprocessing.get_context("fork")  # which has all that is imported
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, family, material))
    child.start()
    theirs.close()
    row: dict[str, Any] = {"family": family, "status": FAILS}
    if not ours.poll(SECONDS):
        child.kill()
        row |= {"reason": f"not finished after {SECONDS} seconds"}
    else:
        try:
            row = ours.recv()
        except EOFError:
            row |= {"reason": "its process ended"}
    child.join()
    return [row]


def _child(answer: Connection, family: str, material: Path | None) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="family-") as folder:
        answer.send(try_family(family, material, Path(folder)))


def summarize(rows: Sequence[harness.Row]) -> dict[str, Any]:
    """Counts by status, and the share that pass everything by the kind of tokenizer class."""
    by_status = Counter(row["status"] for row in rows)
    return {
        "transformers": transformers.__version__,
        "families": len(rows),
        **{status: by_status[status] for status in STATUSES},
        "fast_tokenizer": len(of_text(rows, FAST)),
        "fast_tokenizer_passes": passing(of_text(rows, FAST)),
        "no_tokenizer_class": len(of_text(rows, NO_CLASS)),
        "no_tokenizer_class_passes": passing(of_text(rows, NO_CLASS)),
        "slow_tokenizer": len(of_text(rows, SLOW)),
        "slow_tokenizer_passes": passing(of_text(rows, SLOW)),
        **{name: sum(row.get(name, False) for row in rows) for name in asked(rows)},
    }


def shown(row: harness.Row) -> dict[str, Any]:
    """What the document shows of a row."""
    plan = row.get("plan")
    return {
        "family": row["family"],
        "status": row["status"] if row["status"] != FAILS else f"**{FAILS}**",
        "tokenizer": "" if row["status"] == NO_TEXT else tokenizer_class(row["family"]),
        "cover": f"{row['cover']:.0%}" if "cover" in row else "",
        "unused": f"{row['unused']} of {row['layers']}" if row.get("unused") else "",
        "head": {True: "apart", False: "whole"}.get(row.get("head"), ""),  # type: ignore[arg-type]
        **{name: "yes" if row.get(name) else "" for name in SHORTCUTS},
        "plan": f"{plan:.2f}" if plan else "unknown" if "why" in row else "",
        "reason": row["reason"].replace("|", "/"),
    }


COLUMNS = {
    "family": "{family}",
    "status": "{status}",
    "tokenizer class": "{tokenizer}",
    "adapter covers": "{cover}",
    "layers without use": "{unused}",
    "head": "{head}",
    "frozen layers once": "{frozen_layers_once}",
    "a prompt once": "{options_share_prompt}",
    "memory plan": "{plan}",
}
REASONS = {"family": "{family}", "status": "{status}", "reason": "{reason}"}


def table(rows: Sequence[harness.Row]) -> str:
    """All families; without what none of them was asked, as in older results."""
    left_out = {f"{{{name}}}" for name in SHORTCUTS if name not in asked(rows)}
    columns = {head: form for head, form in COLUMNS.items() if form not in left_out}
    return harness.formatted(columns, map(shown, rows), text_columns=len(columns))


def asked(rows: Sequence[harness.Row]) -> list[str]:
    """Those of ``SHORTCUTS`` that any family was tried on."""
    return [name for name in SHORTCUTS if any(name in row for row in rows)]


def reasons(rows: Sequence[harness.Row]) -> str:
    """Families that do not pass everything."""
    others = [shown(row) for row in rows if row["status"] != PASSES]
    return harness.formatted(REASONS, others, text_columns=len(REASONS))


def counts(rows: Sequence[harness.Row]) -> str:
    """How many families have which status, by the kind of their tokenizer class."""
    groups = [list(rows), *(of_text(rows, kind) for kind in TOKENIZER_CLASSES)]
    found = [
        [name, *(str(sum(row["status"] == name for row in group)) for group in groups)]
        for name in STATUSES
    ]
    found.append(["all", *(str(len(group)) for group in groups)])
    found.append(["share that passes", *(f"{passing(group):.1%}" for group in groups)])
    columns = ["fast tokenizer class", "no tokenizer class", "slow tokenizer class"]
    return harness.markdown(["status", "families", *columns], found)


def of_text(rows: Sequence[harness.Row], kind: str) -> list[harness.Row]:
    """Families of text with this kind of tokenizer class."""
    return [
        row for row in rows if row["status"] != NO_TEXT and tokenizer_class(row["family"]) == kind
    ]


def passing(rows: Sequence[harness.Row]) -> float:
    """Share of families that pass everything."""
    return round(sum(row["status"] == PASSES for row in rows) / max(1, len(rows)), 4)


TABLES = {"families": table, "family-counts": counts, "family-reasons": reasons}


@harness.experiment("results.json", "models.md", TABLES, shown="cells")
def main(
    material: Annotated[
        Path | None, typer.Option(help="Folder with real tokenizers; built-in ones if none.")
    ] = None,
    only: Annotated[str, typer.Option(help="Families, joined by commas; all if none.")] = "",
    parallel: harness.Parallel = 1,
) -> harness.Study:
    """Try every family; write results.json beside this file, and the tables."""
    chosen = only.split(",") if only else FAMILIES
    return harness.Study(
        cells={(family,): partial(measure, family, material) for family in chosen},
        folder="families-real" if material else "families",
        summarize=summarize,
        parallel=parallel,
    )
