"""A trained model of a run as an ordinary Hugging Face folder, with a model card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from fedfuse.builtin.models import is_builtin
from fedfuse.config.model import shown_name
from fedfuse.errors import FedfuseError, check
from fedfuse.exporting.merged_model import Merged, write_merged
from fedfuse.exporting.model_card import Subject, model_card
from fedfuse.factory.models import load_model
from fedfuse.files import check_unused, new_folder
from fedfuse.models.adapter_folder import BASE, base_of, check_base, named_base
from fedfuse.models.causal_lm import DTYPES
from fedfuse.tracking.checkpoints import Checkpoints
from fedfuse.tracking.run import SERVER, RunFolder, read_run
from fedfuse.tracking.saved_model import find_adapter, find_model

# The card's file name, which the Hugging Face hub gives it.
CARD = "README.md"
# Beside ``adapter`` in a participant's folder.
_FOLDER = "merged"


@dataclass(frozen=True, slots=True)
class Exported:
    """A model that was exported.

    Attributes:
        folder: where it is.
        merged: what was written.
        loss: the run's test loss of it, mean over domains, nats/byte; None where nothing was
            measured.
    """

    folder: Path
    merged: Merged
    loss: float | None


def export(
    run: RunFolder | Path | str,
    output: Path | str = "",
    *,
    model: str = SERVER,
    dtype: str = "",
) -> Exported:
    """Merge a model's adapter into its base and write it as transformers, vLLM and llama.cpp read
    it, with a model card.

    The folder has the tokenizer, chat template and generation config of the base. What was written
    is read back by transformers alone, and must give the logits of base and adapter.

    Args:
        run: run folder.
        output: folder to make; empty for ``merged`` beside the adapter.
        model: ``server``, a client's number, or its name in the report.
        dtype: dtype of the weights, ``float32``, ``bfloat16`` or ``float16``; empty for the one
            that the run loaded the base in.

    Raises:
        FedfuseError: for a folder that holds no run, a run or model without a trained adapter on
            this machine, a base that is not here or is another one, an output that holds something,
            and a family whose folder would not give the same logits.
    """
    found = run if isinstance(run, RunFolder) else read_run(Path(run).expanduser())
    wanted = find_model(found, model)
    side = SERVER if wanted == SERVER else "clients"
    dtype = dtype or str(found.config.get(f"{side}.dtype") or "float32")
    check("dtype", repr(dtype), f"one of {', '.join(DTYPES)}", dtype in DTYPES)
    adapter = find_adapter(found, wanted)
    folder = Path(output).expanduser() if output else adapter.with_name(_FOLDER)
    folder = folder.absolute()
    check_unused("output", folder)
    check_trained(found, wanted, adapter)
    base = find_base(found.models[wanted], adapter)
    measured = at_adapter(found, wanted)
    with new_folder(folder) as scratch:
        merged = write_merged(load_model(base, device="cpu"), adapter, scratch, DTYPES[dtype])
        subject = Subject(measured, wanted, merged)
        (scratch / CARD).write_text(model_card(subject), encoding="utf-8")
    overall = measured.overall(wanted, "federated")
    return Exported(folder, merged, overall.loss if overall else None)


def check_trained(run: RunFolder, model: str, adapter: Path) -> None:
    """Refuse an adapter that changes nothing: its model is still the base.

    Raises:
        FedfuseError: for one as it was created, and for files that cannot be read.
    """
    file = adapter / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="np") as weights:
            names = [name for name in weights.keys() if "lora_B" in name]  # noqa: SIM118
            trained = any(np.any(weights.get_tensor(name)) for name in names)
    except (OSError, SafetensorError) as error:
        raise FedfuseError(f"{file}: expected an adapter's weights, got {error}") from error
    found = (
        f"one that changes nothing: {run.name(model)!r} is its base, "
        f"{shown_name(run.models[model])}, as strategy {run.config.get('strategy')!r} left it"
    )
    check(str(adapter), found, "a trained adapter", trained)


def find_base(name: str, adapter: Path) -> str:
    """Name by which an adapter's base is loaded: ``builtin:NAME``, a folder, or a hub id.

    Args:
        name: the base's name in the run.
        adapter: the adapter's folder; where its ``adapter_config.json`` names another folder than
            the run, as the base has moved, that one counts.

    Raises:
        FedfuseError: for a base that is not here, or has other weights than the run's.
    """
    if is_builtin(name):
        return name
    given = Path(name).expanduser()
    if given.is_dir():
        check_base(adapter, base_of(given) or name)
        return name
    if (adapter / BASE).is_file():  # it was a folder, and is one
        return base_of(adapter) or name
    return named_base(adapter)


def at_adapter(run: RunFolder, model: str) -> RunFolder:
    """The run with the measurements up to the round that the server's adapter was saved after.

    A run that was cut off may have measured a round that it did not save.
    """
    rounds = Checkpoints(run.folder / SERVER / "checkpoints").rounds()
    if run.status == "finished" or model != SERVER or not rounds:
        return run
    return replace(run, metrics=[m for m in run.metrics if m.round <= rounds[-1]])
