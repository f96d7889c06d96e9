"""The models and the data of a finished run, loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedfuse.config.model import ModelConfig
from fedfuse.config.run_config import RunConfig, model_config, parse
from fedfuse.data.sample import SharedSamples, whole_fingerprint
from fedfuse.errors import FedfuseError, check
from fedfuse.factory.data import shared_samples
from fedfuse.factory.models import load_base
from fedfuse.models.causal_lm import CausalLM, add_lora, load_adapter
from fedfuse.tracking.json_fields import read_object
from fedfuse.tracking.run import SERVER, RunFolder


def adapter_folder(run: RunFolder, model: str) -> Path:
    """Where a run keeps the adapter of its server or of a client."""
    return run.folder / (SERVER if model == SERVER else f"clients/{model}") / "adapter"


def find_model(run: RunFolder, name: str) -> str:
    """The id of a model whose adapter is in the run folder.

    Args:
        run: the run.
        name: id of the model, or its name in reports.

    Raises:
        FedfuseError: naming those that there are.
    """
    here = [model for model in (SERVER, *run.clients) if adapter_folder(run, model).is_dir()]
    found = next((model for model in here if name in (model, run.name(model))), None)
    if found is None:
        known = ", ".join(map(repr, here)) or "a run whose models have adapters"
        raise FedfuseError(f"model of {run.folder}: expected {known}, got {name!r}")
    return found


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
    load_adapter(lm.model, adapter_folder(run, model))
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
