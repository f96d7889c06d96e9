"""Source, config and tokenizer of a model to load, and models to refuse."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging

from fedfuse.data.hub import library_errors, looks_like_path
from fedfuse.errors import FedfuseError
from fedfuse.models.adapter_folder import base_of
from fedfuse.models.head import without_cache
from fedfuse.tokenizers.load import from_transformers
from fedfuse.tokenizers.tokenizer import TextTokenizer

# For models without a largest position (ALiBi, recurrent): enough for any task here.
UNLIMITED_LENGTH = 4096
# What families call the largest number of positions.
_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
# Settings of families that compute one thing in training and another when they are scored.
ONE_WAY = {
    "rescale_every": 0,  # RWKV divides weights when it is scored, not what an adapter adds
    "altup_coef_clip": None,  # Gemma 3n, when it trains, reads weights past their adapter
}


def model_source(name: str) -> tuple[str, dict[str, Any]]:
    """Where a base model is loaded from, its folder or hub id, and options of ``from_pretrained``.

    A folder is read without any network, and no code of the model's own is run. An adapter folder
    stands for its base with the adapter in it; this is the base.

    Raises:
        FedfuseError: for a path that is no folder, or an adapter without its base; see ``base_of``.
    """
    path = Path(name).expanduser()
    _check_format(name, path)
    if path.is_dir():
        name = base_of(path) or name
        folder = str(Path(name).expanduser()) if name.startswith("~") else name  # as it was given
        return folder, {"trust_remote_code": False, "local_files_only": True}
    if looks_like_path(name) or path.exists():
        raise FedfuseError(
            "model: expected a folder with config.json, model.safetensors and tokenizer.json, or "
            f"the id of a model on the Hugging Face hub; folder {name!r} does not exist"
        )
    return name, {"trust_remote_code": False, "local_files_only": False}


def _check_format(name: str, path: Path) -> None:
    """Refuse weights in a format that can be converted, and say how.

    Pickled ones may run code when they are read.
    """
    files = [path] if path.is_file() else list(path.glob("*")) if path.is_dir() else []
    formats = {file.suffix for file in files}
    if ".safetensors" in formats:
        return
    loading = {".bin": "FOLDER", ".gguf": "FOLDER, gguf_file=FILE"}
    for suffix, arguments in loading.items():
        if suffix in formats:
            raise FedfuseError(
                f"model {name!r}: expected safetensors weights, got *{suffix}; to convert what you "
                f"trust: AutoModelForCausalLM.from_pretrained({arguments}).save_pretrained(NEW), "
                "and the same with AutoTokenizer"
            )


def load_tokenizer(name: str) -> TextTokenizer:
    """A model's tokenizer alone, without its weights.

    Raises:
        FedfuseError: naming the model, when it cannot be loaded or has no fast form.
    """
    source, options = model_source(name)
    with loading_errors(name):
        return from_transformers(source, options)


def read_config(name: str, source: str, options: dict[str, Any]) -> Any:
    """Config of what is loaded of a model: all of it, or its part for text alone.

    Gemma 3n's images pass through a model of timm, a library that text needs nothing of.

    Raises:
        FedfuseError: for a family that transformers counts as causal, but whose tokens are those of
            sounds.
    """
    config = AutoConfig.from_pretrained(source, **options)
    made = getattr(_causal_lm(config), "output_modalities", ("text",))
    if "text" not in made:
        found = f"{config.model_type}, which makes {' and '.join(made)}"
        raise FedfuseError(f"model {name!r}: expected a family that writes text, got {found}")
    text = config.get_text_config()
    kinds = {getattr(part, "model_type", "") for part in vars(config).values()}
    wrapped = any(MODEL_MAPPING_NAMES.get(kind) == "TimmWrapperModel" for kind in kinds)
    if not wrapped or _causal_lm(text) is None:
        return config
    text.dtype = text.dtype or config.dtype
    return text


def _causal_lm(config: Any) -> Any:
    """The class of causal LM that transformers has for a config."""
    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def text_prefix(info: dict[str, Any]) -> str:
    """What a larger model's checkpoint puts before the names of its text part.

    transformers takes most such prefixes away by itself. It is empty unless all weights that are
    missing are there behind it.

    Args:
        info: the loading info of ``from_pretrained``.
    """
    missing, others = sorted(info["missing_keys"]), set(info["unexpected_keys"])
    if not missing:
        return ""
    starts = sorted(n.removesuffix(missing[0]) for n in others if n.endswith(f".{missing[0]}"))
    found = (start for start in starts if all(start + name in others for name in missing))
    return next(found, "")


def check_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse a model that sees what it is to predict, or padding, or has numbers not finite.

    The first is a masked language model, the last one that is too large for float16. What follows a
    sample in a batch, on the right and without a mask, must not change it.
    """
    ids = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]], device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kind, dtype = model.config.model_type, str(model.dtype)[6:]
    # A draft head, for one, asks for states of another model.
    expected = f"{kind} to compute logits of tokens alone in {dtype}"
    with torch.no_grad(), library_errors(f"model {name!r}", expected, logging):
        logits = model(**inputs, **without_cache(model)).logits.float()
    if not torch.isfinite(logits).all():
        raise FedfuseError(
            f"model {name!r}: expected finite logits, got others in {dtype}; "
            "dtype bfloat16 has the range of float32"
        )
    first = logits[:, 0]
    # Room for rounding in half precision; a trained model that looks ahead differs by far more.
    if (first[0] - first[1]).abs().max() > 0.05 * first.std():
        found = f"a {type(model).__name__} that sees later tokens"
        raise FedfuseError(f"model {name!r}: expected a causal model, got {found}")
    alone = torch.tensor([[1, 2, 3, 4, 5]], device=model.device)
    with torch.no_grad(), loading_errors(name):
        right = model(input_ids=alone, **without_cache(model)).logits[0].float()
        padded = nn.functional.pad(alone, (0, 3))
        logits = model(input_ids=padded, **without_cache(model)).logits[0, :5].float()
    # In half precision inputs of another length are rounded differently, which may send a token to
    # other experts: most positions must differ, and by much.
    off = (logits - right).abs().amax(1) / right.std()  # [5]
    exact = model.dtype == torch.float32
    if off.max() > 0.05 if exact else off.median() > 1:
        found = f"a {type(model).__name__} whose logits change with padding on the right"
        raise FedfuseError(f"model {name!r}: expected a causal model, got {found}")


def one_way(model: PreTrainedModel) -> None:
    """Let a model compute in training what it computes when it is scored, adapter included."""
    config = model.config.get_text_config()
    for name, value in ONE_WAY.items():
        if hasattr(config, name):
            vars(config)[name] = value  # past the check of its type: the family's code takes None


def longest_input(model: PreTrainedModel) -> int:
    """Most tokens that a model takes, by its config and by its tables of learned positions."""
    config = model.config.get_text_config()
    known = [getattr(config, name, None) for name in _LENGTHS]
    lengths = [length for length in known if isinstance(length, int) and length > 0]
    for path, module in model.named_modules():
        text = not any(other in path for other in ("vision", "image", "audio"))
        if isinstance(module, nn.Embedding) and text and "position" in path.rsplit(".", 1)[-1]:
            # RoBERTa's kind counts positions from the padding's number on; BART's has an offset.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            lengths.append(module.num_embeddings - max(first, getattr(module, "offset", 0)))
    return min(lengths, default=UNLIMITED_LENGTH)


def loading_errors(name: str, kind: str = "causal") -> AbstractContextManager[None]:
    """Context of ``library_errors`` in which a model is loaded.

    Args:
        name: name of the model.
        kind: kind of language model that is expected.
    """
    expected = (
        f"a {kind} language model with safetensors weights, a fast tokenizer and no code of its own"
    )
    return library_errors(f"model {name!r}", expected, logging)
