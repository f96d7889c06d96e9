"""What loading a causal language model takes: source, device, tokenizer, and what to refuse."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedfuse.data.records import looks_like_path
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.load import from_transformers
from fedfuse.tokenizers.tokenizer import TextTokenizer

QUANTIZATIONS = ("", "4bit", "8bit")


def local_folder(name: str) -> Path | None:
    """The folder that a model's name means, None for a hub id.

    Raises:
        FedfuseError: for a path that is no folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if looks_like_path(name) or path.exists():
        raise FedfuseError(
            f"model folder {name!r} does not exist; allowed: a folder with config.json, "
            "model.safetensors and tokenizer.json, or the id of a model on the Hugging Face hub"
        )
    return None


def resolve_device(device: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1`` as a device that is here.

    Raises:
        FedfuseError: for any other, or a GPU that is not here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise FedfuseError(f"device {device!r} is unknown; allowed: auto, cpu, cuda, cuda:0, ...")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise FedfuseError(
            f"device {device!r} is not here: {torch.cuda.device_count()} GPUs are visible; "
            "allowed: auto, cpu, or a GPU that is visible"
        )
    return torch.device(device)


def quantization_options(
    quantization: str, place: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Loading options for a quantized base; see ``load_causal_lm``."""
    if quantization not in QUANTIZATIONS:
        allowed = ", ".join(repr(known) for known in QUANTIZATIONS)
        raise FedfuseError(f"quantization {quantization!r} is unknown; allowed: {allowed}")
    if place.type != "cuda":
        raise FedfuseError(f"quantization {quantization!r} on {place}; allowed: on a GPU only")
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


def load_tokenizer(name: str) -> TextTokenizer:
    """A model's tokenizer alone, without its weights.

    Raises:
        FedfuseError: naming the model, when it cannot be loaded or has no fast form.
    """
    folder = local_folder(name)
    source = name if folder is None else str(folder)
    options = {"trust_remote_code": False, "local_files_only": folder is not None}
    with loading_errors(name):
        return from_transformers(source, options)


def check_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse a model that sees what it is to predict, such as a masked language model."""
    ids = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]], device=model.device)
    with torch.no_grad():
        first = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].float()
    # Room for rounding in half precision; a trained model that looks ahead differs by far more.
    if (first[0] - first[1]).abs().max() > 0.05 * first.std():
        raise FedfuseError(
            f"model {name!r} ({type(model).__name__}) sees later tokens; allowed: causal models"
        )


@contextmanager
def loading_errors(name: str, kind: str = "causal") -> Iterator[None]:
    """Turn whatever transformers raises into one clear error; keep its bars off the terminal.

    Args:
        name: of the model.
        kind: of language models that are allowed.
    """
    bars: Any = transformers_logging  # untyped
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the library raises a dozen unrelated types
        raise FedfuseError(
            f"model {name!r} cannot be loaded ({type(error).__name__}: {error}); allowed: {kind} "
            "language models with safetensors weights, a fast tokenizer and no code of their own"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
