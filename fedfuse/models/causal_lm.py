"""Causal language models from a folder or the Hugging Face hub, and their LoRA adapters.

The base stays frozen; everything learned is in the adapter, whose state is float32 arrays by name.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

import re
import secrets
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError, check
from fedfuse.files import unwritable
from fedfuse.models.adapter_folder import WEIGHTS, base_of, check_base, write_base
from fedfuse.models.checkpointing import recompute_activations
from fedfuse.models.devices import accelerator, all_devices, resolve_device
from fedfuse.models.kept_states import KeptStates
from fedfuse.models.layer_stack import in_last_layers
from fedfuse.models.linear_layers import linear_layers, target_names
from fedfuse.models.loading import (
    check_causal,
    loading_errors,
    longest_input,
    model_source,
    one_way,
    read_config,
    text_prefix,
)
from fedfuse.models.placement import check_in_place, main_device, placement_options
from fedfuse.models.targets import chosen_layers
from fedfuse.tokenizers.load import from_transformers
from fedfuse.tokenizers.tokenizer import TextTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# peft 0.21 asks transformers 5.23 by a name that it is about to drop.
_RENAMED = ".*is_gradient_checkpointing.*"

AdapterState = dict[str, Float32[ndarray, "..."]]


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A causal language model with its tokenizer and the precision that it computes in.

    Attributes:
        model: a ``PreTrainedModel``, frozen as it is loaded, or a ``PeftModel`` around one; both
            are partly untyped.
        tokenizer: its tokenizer.
        name: folder or hub id it came from.
        vocab_size: the tokenizer's; rows of the output head beyond it are padding and cut off.
        max_length: most tokens of an input.
        autocast: precision of matrix products in a forward pass, one of ``AUTOCAST``; logits,
            losses and trained weights stay float32.
        kept: what its frozen first layers make of texts; None where all layers run in every pass.
    """

    model: Any
    tokenizer: TextTokenizer
    name: str
    vocab_size: int
    max_length: int
    autocast: str = "none"
    kept: KeptStates | None = None

    @property
    def device(self) -> torch.device:
        """Device of batches; see ``main_device``."""
        return main_device(self.model)


def load_causal_lm(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    quantization: str = "",
    device_map: str = "",
) -> CausalLM:
    """Load a model and its tokenizer; safetensors only, and no code of the model's own.

    Args:
        name: a local folder, which is read without any network, or a hub id; the folder of an
            adapter stands for its base, which must be here, with the adapter merged into it.
        dtype: dtype of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        quantization: format of the base's linear layers: ``""`` for none, ``4bit`` or ``8bit``
            (bitsandbytes, GPU only).
        device_map: ``auto`` spreads the layers over all accelerators; those that do not fit there
            are fetched from the machine's memory when they run, and the model cannot be trained.
            ``""`` for one device.

    Raises:
        FedfuseError: for anything that cannot be loaded or does not fit together, naming it.
    """
    if dtype not in DTYPES:
        raise FedfuseError(f"model dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    placed = placement_options(device, DTYPES[dtype], quantization, device_map)
    source, options = model_source(name)
    weights = options | {
        "dtype": DTYPES[dtype],
        "use_safetensors": True,
        "output_loading_info": True,
        **placed,
    }
    with loading_errors(name):
        tokenizer = from_transformers(source, options)
        weights["config"] = read_config(name, source, options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **weights)
        prefix = text_prefix(loaded[1])
        if prefix:
            names = {f"^{re.escape(prefix)}": ""}
            loaded = AutoModelForCausalLM.from_pretrained(source, key_mapping=names, **weights)
    model, info = loaded
    if source != name and base_of(Path(name).expanduser()):
        model = _merged(name, model, placed)
    if info["missing_keys"]:
        raise FedfuseError(
            f"model {name!r}: expected a checkpoint of a complete causal language model, got one "
            f"without weights for {sorted(info['missing_keys'])[:5]}"
        )
    if not placed:
        model.to(resolve_device(device))
    one_way(model)
    model.requires_grad_(False)
    model.eval()
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer = tokenizer.within(rows)
    found = f"a tokenizer of {tokenizer.vocab_size} tokens"
    expected = f"no more tokens than embeddings, {rows}"
    check(f"model {name!r}", found, expected, tokenizer.vocab_size <= rows)
    check_causal(name, model)
    return CausalLM(model, tokenizer, name, tokenizer.vocab_size, longest_input(model))


def _merged(name: str, base: PreTrainedModel, placed: dict[str, Any]) -> PreTrainedModel:
    """The base with an adapter folder's weights added to its own."""
    expected = "a base that is neither quantized nor spread over devices"
    check(f"adapter {name!r} as a model", ", ".join(placed), expected, not placed)
    adapted = with_adapter(base, Path(name).expanduser())
    with loading_errors(name):
        merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def with_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """A base with the adapter of a folder, whose weights are apart from the base's.

    Layers that share a weight get one each, so that the adapter can be merged into them.

    Raises:
        FedfuseError: for a folder without the weights of an adapter of this base.
    """
    with loading_errors(str(folder)), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("ignore", message=_RENAMED)
        adapted: Any = get_peft_model(base, PeftConfig.from_pretrained(str(folder)))
        own, state = _adapter_tensors(adapted), load_peft_weights(str(folder), "cpu")
        if own.keys() == state.keys():
            with torch.no_grad():
                for weight, value in state.items():
                    own[weight].copy_(value)
        else:  # PEFT renames what was made with transformers 4, and for some families what was not
            base = adapted.unload()
            adapted = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
        _untie(adapted)
    found: PeftModel = adapted
    return found


def _untie(model: PeftModel) -> None:
    """Give adapted layers that share a weight one each: their adapters differ."""
    seen = set[int]()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            if id(base.weight) in seen:
                base.weight = torch.nn.Parameter(base.weight.detach().clone())
            seen.add(id(base.weight))


def add_lora(
    lm: CausalLM, adapter: AdapterConfig, *, gradient_checkpointing: bool = False, seed: int = 0
) -> CausalLM:
    """Put a new adapter into the base model; until it is trained, the outputs are the base's.

    Args:
        lm: the base, whose modules are replaced in place.
        adapter: rank, scale, dropout and targets of the adapter.
        gradient_checkpointing: recompute activations in the backward pass: slower, less memory.
        seed: seed of the adapter's initial values; torch's global generator is left as it was.

    Raises:
        FedfuseError: for targets or ``layers`` that mean no layer of the model, and for
            checkpointing of a model without blocks.
    """
    linear = linear_layers(lm.model)
    if not linear:
        raise FedfuseError(f"model {lm.name!r}: expected linear layers for an adapter, got none")
    check_in_place(lm.name, lm.model)
    chosen = chosen_layers(lm.name, lm.model, linear, adapter)
    chosen = in_last_layers(lm.name, lm.model, chosen, adapter.layers)
    base = lm.model
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=adapter.dropout,
        target_modules=target_names(lm.model, chosen),
        # GPT-2 stores its weights [in, out].
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in chosen.values()),
    )
    forked = torch.random.fork_rng(all_devices(), device_type=accelerator() or "cuda")
    with forked, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_RENAMED)
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
    if gradient_checkpointing:
        recompute_activations(lm.name, base)
    model.eval()
    return replace(lm, model=model)


def adapter_state(model: PeftModel) -> AdapterState:
    """A copy of the adapter's weights by PEFT's names, float32."""
    return {
        name: value.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, value in _adapter_tensors(model).items()
    }


def load_adapter_state(model: PeftModel, state: AdapterState) -> None:
    """Overwrite the adapter's weights in place, so optimizers keep their parameters.

    Raises:
        FedfuseError: when names or shapes are not exactly the adapter's.
    """
    own = _adapter_tensors(model)
    differing = sorted(own.keys() ^ state.keys())
    if differing:
        raise FedfuseError(
            f"adapter state: expected the adapter's {len(own)} arrays, got {len(state)}; in one of "
            f"them only: {differing[:5]}"
        )
    for name, value in state.items():
        shape = tuple(own[name].shape)
        check(f"adapter state {name!r}", value.shape, f"shape {shape}", value.shape == shape)
    # By name into the weights themselves: PEFT renames on the way for some families, and leaves out
    # what it then does not find.
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(torch.from_numpy(np.array(value, dtype=np.float32)))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter so that ``PeftModel.from_pretrained(base, folder)`` loads it.

    An existing folder is replaced as a whole.

    Raises:
        FedfuseError: when it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{folder.name}-{secrets.token_hex(4)}"
    scratch, old = folder.with_name(f"{stem}.new"), folder.with_name(f"{stem}.old")
    try:
        # PEFT's model card is empty, and takes longer than the weights.
        model.create_or_update_model_card = _no_model_card  # type: ignore[method-assign]
        model.save_pretrained(str(scratch), save_embedding_layers=False)
        write_base(scratch, str(model.peft_config["default"].base_model_name_or_path))
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
    except BaseException as error:
        if old.exists():
            old.rename(folder)
        if isinstance(error, OSError | SafetensorError):
            raise unwritable(folder, error) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Overwrite the adapter's weights with those that ``save_adapter`` wrote.

    Raises:
        FedfuseError: for a folder without an adapter, one of another base, or one whose names or
            shapes are not the adapter's.
    """
    file = folder / WEIGHTS
    check(f"adapter {str(folder)!r}", "none", WEIGHTS, file.is_file())
    check_base(folder, str(model.peft_config["default"].base_model_name_or_path))
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FedfuseError(f"{file}: expected safetensors, got {error}") from error
    load_adapter_state(model, {name: value.float().numpy() for name, value in state.items()})


def _no_model_card(output_dir: str) -> None:
    """In place of PEFT's."""


def _adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    # Without the last argument PEFT may ask the hub whether the vocabulary has grown.
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state
