"""The models and the data of a finished run, loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedfuse.config.model import ModelConfig, can_learn, shown_name
from fedfuse.config.run_config import RunConfig, model_config, parse
from fedfuse.data.sample import SharedSamples, whole_fingerprint
from fedfuse.errors import FedfuseError, check
from fedfuse.factory.data import shared_samples
from fedfuse.factory.models import load_base
from fedfuse.models.causal_lm import CausalLM, add_lora, load_adapter
from fedfuse.tracking.json_fields import read_object
from fedfuse.tracking.run import SERVER, RunFolder

# A strategy that tunes a prompt, and trains no weights.
_PROMPTS = "feddtpt"


def find_model(run: RunFolder, model: str) -> str:
    """Id of the model that a user names, ``server``, a client's number, or its name in the report.

    Raises:
        FedfuseError: for a run that trained no causal language model, a name that is none of the
            run's, and a teacher, which did not learn.
    """
    strategy = str(run.config.get("strategy"))
    if strategy == _PROMPTS or run.prompts:
        found = f"one of strategy {strategy!r}, which tunes a prompt"
        check(f"run {str(run.folder)!r}", found, "a run that trained a causal language model", None)
    ids = {run.name(one): one for one in run.models} | {one: one for one in run.models}
    known = ", ".join(f"{one} ({run.name(one)})" for one in (SERVER, *run.clients))
    check("model", repr(model), f"one of {known}", model in ids)
    base = run.models[ids[model]]
    found = f"{shown_name(base)}, a teacher that does not learn"
    check(f"model {model!r}", found, "a model with an adapter", can_learn(base))
    return ids[model]


def find_adapter(run: RunFolder, model: str) -> Path:
    """Folder of a model's adapter in the run folder.

    Raises:
        FedfuseError: where there is none, saying why that may be.
    """
    owner = run.folder / SERVER if model == SERVER else run.folder / "clients" / model
    adapter = owner / "adapter"
    if (adapter / "adapter_config.json").is_file():
        return adapter
    reason = f"the run ({run.status}) ended before a round was saved"
    if model != SERVER:
        reason = (
            "a client's adapter stays on its own machine, in the folder of the same name there, "
            "where PEFT loads it; in a simulation it is here after the client's first round"
        )
    raise FedfuseError(f"{adapter}: expected an adapter of {run.name(model)!r}, got none: {reason}")


def load_saved_model(run: RunFolder, model: str, *, device: str = "") -> CausalLM:
    """A model of a run with the adapter that the run left, on its base.

    Args:
        run: the run.
        model: id, as ``find_model`` finds it.
        device: in place of the run's; empty for that.

    Raises:
        FedfuseError: for a base that cannot be loaded or is not the run's, or an adapter that does
            not fit it.
    """
    config = parse(run.config)
    side = _model_config(config, run, model)
    side = replace(side, device=device or side.device)
    lm = load_base(side.model, side, config.data.max_length)
    lm = add_lora(lm, side.lora, seed=config.seed)
    load_adapter(lm.model, find_adapter(run, model))
    lm.model.eval()
    return lm


def _model_config(config: RunConfig, run: RunFolder, model: str) -> ModelConfig:
    """How a model was configured, whichever base its own machine gave it."""
    side = config.server
    if model != SERVER:
        clients = replace(config.clients, model=run.models[model], tokenizer="")
        side = model_config(clients, int(model) if model.isdecimal() else 0)
    return replace(side, model=run.models[model])


def scored_samples(run: RunFolder) -> SharedSamples:
    """The test set and the questions that a run's models were scored on.

    Raises:
        FedfuseError: for data that cannot be read, or is not what the run had.
    """
    config = parse(run.config)
    shared = shared_samples(config.data, config.seed)
    known = read_object(run.folder / "config.json").values.get("content") or {}
    for name, samples in (("test_samples", shared.test), ("questions", shared.questions)):
        found, shown = whole_fingerprint(samples), name.replace("_", " ")
        expected = f"the {shown} of the run in {run.folder}"
        check(f"data.source = {config.data.source!r}", f"other {shown}", expected,
              known.get(name, found) == found)  # fmt: skip
    return shared
