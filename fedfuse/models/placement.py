"""Where the weights of a base model are, and in which format.

They are on one device, or spread by accelerate: over all accelerators, and what does not fit there
in the machine's memory, from where each layer is fetched when it runs.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from fedfuse.errors import FedfuseError, check
from fedfuse.models.devices import resolve_device

QUANTIZATIONS = ("", "4bit", "8bit")
DEVICE_MAPS = ("", "auto")


def placement_options(
    device: str, dtype: torch.dtype, quantization: str = "", device_map: str = ""
) -> dict[str, Any]:
    """Loading options for weights that are not all on one device as they are; else none.

    See ``load_causal_lm`` for the arguments.

    Raises:
        FedfuseError: for a device that is not here, and what does not go together.
    """
    place = resolve_device(device)
    options = _quantization_options(quantization, place, dtype) if quantization else {}
    allowed = ", ".join(map(repr, DEVICE_MAPS))
    check("device-map", repr(device_map), allowed, device_map in DEVICE_MAPS)
    if device_map:
        check(f"device with device-map {device_map!r}", device, "auto", device == "auto")
        options["device_map"] = device_map
    return options


def _quantization_options(
    quantization: str, place: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    allowed = ", ".join(map(repr, QUANTIZATIONS))
    check("quantization", repr(quantization), allowed, quantization in QUANTIZATIONS)
    if place.type != "cuda":
        raise FedfuseError(f"quantization {quantization!r}: expected a GPU, got {place}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FedfuseError(
            f"quantization {quantization!r} needs bitsandbytes: pip install 'fedfuse[quantization]'"
        )
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":  # as in QLoRA
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    config: Any = BitsAndBytesConfig
    return {"quantization_config": config(**settings), "device_map": {"": place}}


def main_device(model: Any) -> torch.device:
    """Device of the output head, where batches are put: layers elsewhere fetch what they are given.

    Where the head is not on a device, that of the first weight that is.
    """
    head = model.get_output_embeddings()
    weights = [*(head.parameters() if head is not None else ()), *model.parameters()]
    return next((w.device for w in weights if not _is_elsewhere(w)), torch.device("cpu"))


def check_in_place(name: str, model: Any) -> None:
    """Refuse to train a model of which layers are fetched when they run.

    Raises:
        FedfuseError: naming the model, and what it can do all the same.
    """
    fetched = hasattr(model, "_hf_hook")  # else it has no numbers at all
    away = sum(map(_is_elsewhere, model.parameters())) if fetched else 0
    found = f"{away} weights that are not"
    expected = (
        "all weights on accelerators, to learn; quantization makes them smaller, and `fedfuse "
        "extract` asks what does not learn"
    )
    check(f"model {name!r} with device-map", found, expected, not away)


def _is_elsewhere(weight: torch.Tensor) -> bool:
    return weight.device.type == "meta"
