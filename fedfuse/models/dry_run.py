"""Memory that a model needs, from its config alone: shapes are computed, numbers are not.

A training step runs on PyTorch's fake tensors, which have shape and dtype and no memory, and every
storage that its operators make is counted until it is let go. So the answer is right for any
architecture, with gradient checkpointing too, and takes a second where the model takes gigabytes.

The fused loss keeps little: the hidden states, and one chunk of logits with its gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig, AutoModelForCausalLM

from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import DTYPES, CausalLM, add_lora
from fedfuse.models.head import CHUNK_BYTES, hidden_states
from fedfuse.models.loading import loading_errors, model_source

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
    """

    base: int
    mapped: bool
    adapter: int
    step: int
    scoring: int


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
    source, options = model_source(name)
    with loading_errors(name):
        config: Any = AutoConfig.from_pretrained(source, **options)
        stored = config.dtype  # of the files; making a model overwrites it
        with torch.device("meta"):
            factory: Any = AutoModelForCausalLM  # untyped
            model = factory.from_config(config, dtype=DTYPES[dtype])
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
            step = _peak(adapted, samples, length, train=True)
            scoring = _peak(adapted, scored, length, train=False)
    except Exception as error:  # whatever a model's own code raises
        raise NeedsUnknown(
            f"model {name!r}: its memory cannot be computed from its config ({error})"
        ) from error
    step, scoring = (
        peak + 2 * min(together * length * vocab_size * 4, CHUNK_BYTES["cpu"])
        for peak, together in ((step, samples), (scoring, scored))
    )
    return ModelNeeds(
        base=int(base * size),
        mapped=not quantization and stored == DTYPES[dtype],
        adapter=4 * trained,
        step=step,
        scoring=scoring,
    )


def _peak(model: Any, samples: int, length: int, *, train: bool) -> int:
    """Peak bytes of a forward pass and, to train, a backward pass."""
    model.train(train)
    known = [*model.parameters(), *model.buffers()]
    with torch.set_grad_enabled(train), _Counting(known) as counting:
        hidden = hidden_states(model, torch.zeros(samples, length, dtype=torch.long))
        if train:
            hidden.backward(torch.ones_like(hidden))  # type: ignore[no-untyped-call]
    # The adapter's gradients are part of the peak, and of nothing that comes after.
    model.zero_grad(set_to_none=True)
    peak: int = counting.peak
    return peak


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
