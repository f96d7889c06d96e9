"""Memory that a model needs, from its config alone: shapes are computed, numbers are not.

A training step runs on PyTorch's fake tensors, which have shape and dtype and no memory, and every
storage that its operators make is counted until it is let go. So the answer is right for any
architecture, with gradient checkpointing too, and takes a second where the model takes gigabytes.

The fused loss keeps little: the hidden states, and one chunk of logits with its gradient. Where the
output head cannot be told apart, the logits of all label rows are formed instead, and counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM

from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import DTYPES, CausalLM, add_lora
from fedfuse.models.head import (
    CHUNK_BYTES,
    Head,
    base_of,
    declared_head,
    hidden_states,
    without_cache,
)
from fedfuse.models.layer_stack import num_frozen, train_mode
from fedfuse.models.loading import (
    loading_errors,
    longest_input,
    model_source,
    read_config,
)

BYTES_PER_WEIGHT = {"4bit": 0.5, "8bit": 1.0}


class NeedsUnknown(FedfuseError):
    """A model whose own code asks for numbers while it runs; it may run all the same."""


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """Bytes of a model that is trained.

    Attributes:
        base: bytes of the frozen weights.
        mapped: whether they are the model's files, mapped into memory, which all processes of a
            machine share; a model in another dtype than its files' is a copy in each.
        adapter: bytes of the adapter's weights; as many for their gradient, twice for AdamW's
            moments.
        step: peak of the activations of a training step, with the gradient.
        scoring: peak of the activations of a pass without gradients.
        state: of a token behind the layers that only a first pass runs through; 0 where there are
            none.
    """

    base: int
    mapped: bool
    adapter: int
    step: int
    scoring: int
    state: int = 0


def dry_run(
    name: str,
    *,
    dtype: str,
    lora: AdapterConfig,
    samples: int,
    length: int,
    scored: int,
    vocab_size: int,
    gradient_checkpointing: bool = False,
    quantization: str = "",
) -> ModelNeeds:
    """Bytes that ``load_causal_lm``, ``add_lora`` and training take.

    Args:
        name: a local folder or a hub id; its config is all that is read.
        dtype: dtype of the weights, one of ``DTYPES``.
        lora: hyperparameters of the adapter.
        samples: samples in one pass.
        length: tokens of the longest.
        scored: samples in one pass without gradients.
        vocab_size: size of the tokenizer's vocabulary.
        gradient_checkpointing: whether activations are recomputed.
        quantization: ``""``, ``4bit`` or ``8bit``.

    Raises:
        NeedsUnknown: for a model that does not run without numbers.
        FedfuseError: for one whose config cannot be read.
    """
    model, stored = _meta_model(name, dtype)
    base = sum(weight.numel() for weight in model.parameters())
    size = BYTES_PER_WEIGHT.get(quantization, DTYPES[dtype].itemsize)
    model.requires_grad_(False)
    lm = CausalLM(model, None, name, vocab_size, length)  # type: ignore[arg-type]
    with torch.device("meta"):
        adapted = add_lora(lm, lora, gradient_checkpointing=gradient_checkpointing).model
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    try:
        with FakeTensorMode():
            adapted._apply(lambda meta: torch.empty(meta.shape, dtype=meta.dtype))
            head = _head(adapted)
            apart = head is not None
            peak = partial(_peak, adapted, length=length, vocab_size=vocab_size, apart=apart)
            step, scoring = peak(samples, train=True), peak(scored, train=False)
    except Exception as error:  # whatever a model's own code raises
        raise NeedsUnknown(
            f"model {name!r}: its memory cannot be computed from its config ({error})"
        ) from error
    if head:
        # Logits and their gradient; and the derivative by what is under a cap.
        chunks = 2 if head.softcap is None else 3
        step, scoring = (
            peak + chunks * min(together * length * vocab_size * 4, CHUNK_BYTES["cpu"])
            for peak, together in ((step, samples), (scoring, scored))
        )
    return ModelNeeds(
        base=int(base * size),
        mapped=not quantization and stored == DTYPES[dtype],
        adapter=4 * trained,
        step=step,
        scoring=scoring,
        state=_state_bytes(adapted, DTYPES[dtype]),
    )


def _state_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of a token's hidden state behind the frozen layers of an adapted model, if any."""
    if not num_frozen(model):
        return 0
    base: Any = base_of(model)
    width: int = base.get_input_embeddings().embedding_dim
    return width * dtype.itemsize


def longest_input_of(name: str) -> int:
    """Most tokens that a model takes, by its config alone; see ``longest_input``.

    Raises:
        FedfuseError: for a model whose config cannot be read.
    """
    return longest_input(_meta_model(name, "float32")[0])


def _meta_model(name: str, dtype: str) -> tuple[Any, Any]:
    """A model without numbers, and the dtype of its files."""
    source, options = model_source(name)
    with loading_errors(name):
        config = read_config(name, source, options)
        stored = config.dtype  # making a model overwrites it
        with torch.device("meta"):
            factory: Any = AutoModelForCausalLM  # untyped
            return factory.from_config(config, dtype=DTYPES[dtype]), stored


def _head(model: Any) -> Head | None:
    """The output head that ``find_head`` will find, as far as it shows without numbers.

    It is given hidden states as the backbone made them, and what it returns are the logits, or a
    scale or a cap is declared for them.
    """
    head, base = declared_head(model), base_of(model)
    if isinstance(head, str):
        return None
    untyped: Any = base
    seen: dict[str, Tensor] = {}
    made: list[Tensor] = []  # by layers of the backbone

    def see_layer(_module: Any, _given: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else next(iter(tree_leaves(output)), None)
        if isinstance(first, Tensor):
            made.append(first)

    def see_head(_module: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(given=given[0], output=output)

    hooks = [layer.register_forward_hook(see_layer) for layer in untyped.base_model.modules()]
    hooks.append(untyped.get_output_embeddings().register_forward_hook(see_head))
    try:
        with torch.no_grad(), _Counting(()):  # which knows how experts run
            logits = untyped(input_ids=torch.zeros(1, 2).long(), **without_cache(base)).logits
    finally:
        for hook in hooks:
            hook.remove()
    declared = head.scale != 1 or head.softcap is not None or logits.dtype != seen["output"].dtype
    as_they_are = any(_same(states, seen["given"]) for states in made)
    return head if as_they_are and (declared or _same(seen["output"], logits)) else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or a view of all positions."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _peak(
    model: Any, samples: int, length: int, vocab_size: int, *, apart: bool, train: bool
) -> int:
    """Peak bytes of a forward pass and, to train, a backward pass.

    Args:
        model: with fake tensors.
        samples: samples in the pass.
        length: tokens of each.
        vocab_size: logits of a label row.
        apart: whether hidden states are all that the model makes.
        train: whether there is a backward pass.
    """
    train_mode(model) if train else model.eval()
    input_ids = torch.zeros(samples, length, dtype=torch.long)
    known = [*model.parameters(), *model.buffers()]
    with torch.set_grad_enabled(train), _Counting(known) as counting:
        result = hidden_states(model, input_ids) if apart else _nats(model, input_ids, vocab_size)
        if train:
            result.backward(torch.ones_like(result))  # type: ignore[no-untyped-call]
    # The adapter's gradients are part of the peak, and of nothing that comes after.
    model.zero_grad(set_to_none=True)
    peak: int = counting.peak
    return peak


def _nats(model: Any, input_ids: Tensor, vocab_size: int) -> Tensor:
    """What a loss does with logits: those of label rows, here all, and again without a few."""
    logits: Tensor = model(input_ids=input_ids, **without_cache(base_of(model))).logits
    place = torch.zeros(1, dtype=torch.long)
    position = torch.arange(input_ids.shape[1])
    rows = logits[torch.arange(len(input_ids))[:, None], position, :vocab_size].float()
    flat = rows.reshape(-1)
    others = flat.scatter(0, place, -torch.inf).view(rows.shape)
    label = rows.gather(-1, torch.zeros_like(rows[..., :1], dtype=torch.long))
    return others.logsumexp(-1) - label[..., 0] + flat[place]


def _grouped_mm(func: Any, left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Its result in any dtype; torch knows the shape of bfloat16's only, though it computes all."""
    half = torch.bfloat16
    result: Tensor = func(left.to(half), right.to(half), *args, **kwargs)
    return result.to(left.dtype)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages made while it is active.

    Attributes:
        peak: most bytes at one time.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Begin; what ``known`` tensors hold does not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._grouped_mm.default:  # of experts
            result = _grouped_mm(func, *args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        self._add(storage.nbytes())
        weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)
