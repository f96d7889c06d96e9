"""Extracted knowledge equals the top of the dense distribution, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.evaluation.losses import sample_nll
from fedfuse.knowledge.contexts import context_losses
from fedfuse.knowledge.extract import extract, extract_with_contexts
from fedfuse.models.precision import TOKENS_PER_PASS
from tests.conftest import Tiny

Make = Callable[[str], Tiny]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_dense_distribution(tiny: Make, public: list[Sample], architecture: str) -> None:
    model = tiny(architecture)
    data = model.encode(public)
    vocab = model.tokenizer.vocab_size
    knowledge = extract(model, data, 5)
    row = 0
    for sample in public:
        (encoded,) = model.tokenizer.encode([sample.text])
        ids = [model.tokenizer.bos_id, *encoded.ids.tolist()]
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids])).logits[0, :, :vocab]
        dense = torch.log_softmax(logits.double(), 1).numpy()
        for position, end in enumerate(encoded.ends):
            if end <= sample.prompt_bytes:
                continue
            best = np.sort(dense[position])[::-1][:5]
            np.testing.assert_allclose(knowledge.logprobs[row], best, atol=1e-4)
            chosen = knowledge.indices[row]
            np.testing.assert_allclose(dense[position][chosen], best, atol=1e-4)
            rest = np.log(np.exp(np.delete(dense[position], chosen)).sum())
            assert knowledge.tail_logprob[row] == pytest.approx(rest, abs=1e-4)
            label = dense[position][ids[position + 1]]
            assert knowledge.label_logprob[row] == pytest.approx(label, abs=1e-4)
            row += 1
    assert row == knowledge.num_rows
    np.testing.assert_array_equal(knowledge.offsets, data.rows.offsets)


def test_what_it_says_of_itself(tiny: Make, public: list[Sample]) -> None:
    model = tiny("llama")
    data = model.encode(public)
    knowledge = extract(model, data, 4)
    mass = np.exp(knowledge.logprobs.astype(np.float64)).sum(1)
    np.testing.assert_allclose(
        mass + np.exp(knowledge.tail_logprob.astype(np.float64)), 1, atol=1e-5
    )
    assert (np.diff(knowledge.logprobs, axis=1) <= 0).all()
    assert knowledge.k == 4
    assert knowledge.num_samples == len(public)
    assert knowledge.tokenizer == model.tokenizer.fingerprint
    assert knowledge.public == fingerprint(public)
    nats = sample_nll(model, data)
    per_byte = nats / np.array([len(s.answer) for s in public])
    np.testing.assert_allclose(knowledge.loss, per_byte, rtol=1e-5)
    knowledge.validate(
        vocab_size=model.tokenizer.vocab_size,
        tokenizer=model.tokenizer.fingerprint,
        public=fingerprint(public),
        num_rows=len(data.rows.token),
    )


def test_k_beyond_the_vocabulary(tiny: Make, public: list[Sample]) -> None:
    """Everything is kept, and nothing of the head's padded rows; no mass is left."""
    model = tiny("gpt_neox")
    knowledge = extract(model, model.encode(public), 10_000)
    assert knowledge.k == model.tokenizer.vocab_size
    assert knowledge.indices.max() == model.tokenizer.vocab_size - 1
    assert np.isneginf(knowledge.tail_logprob).all()
    np.testing.assert_allclose(np.exp(knowledge.logprobs).sum(1), 1, atol=1e-5)


def test_a_confident_model_keeps_its_small_rest(tiny: Make, public: list[Sample]) -> None:
    """One minus the kept mass would be zero or negative in single precision."""
    model = tiny("gpt2")
    with torch.no_grad():
        model.model.transformer.ln_f.weight.mul_(400)
    knowledge = extract(model, model.encode(public), 2)
    assert np.isfinite(knowledge.tail_logprob).all()
    assert (knowledge.tail_logprob < -17).any()


def test_losses_of_cut_answers(tiny: Make) -> None:
    """Only scored bytes count; of a sample without any nothing is known."""
    model = tiny("gpt2")
    samples = [
        Sample("for gout", " zinc and copper and futures and swaps."),
        Sample("the desk at dover hedges copper and cotton and cocoa with", ""),
    ]
    knowledge = extract(model, model.encode(samples, max_length=8), 3)
    first = -knowledge.label_logprob[: knowledge.offsets[1]].sum()
    assert 0 < knowledge.label_bytes[0] < len(samples[0].answer)
    assert knowledge.loss[0] == pytest.approx(first / knowledge.label_bytes[0])
    assert knowledge.label_bytes[1] == 0
    assert knowledge.loss[1] == np.inf


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_and_batches_do_not_matter(
    tiny: Make, public: list[Sample], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture)
    data = model.encode(public)
    whole = extract(model, data, 5)
    monkeypatch.setattr("fedfuse.models.forward.rows_per_chunk", lambda vocab, device: 3)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 50)
    pieces = extract(model, data, 5)
    np.testing.assert_array_equal(pieces.indices, whole.indices)
    for name in ("logprobs", "tail_logprob", "label_logprob"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=2e-5)


@pytest.mark.parametrize(("autocast", "tolerance"), [("bfloat16", 0.05), ("float16", 0.006)])
def test_in_mixed_precision(
    tiny: Make, public: list[Sample], autocast: str, tolerance: float
) -> None:
    """Rounded logits, but distributions that sum to one as exactly as ever."""
    model = tiny("gpt2")
    data = model.encode(public)
    exact, rounded = (extract(lm, data, 4) for lm in (model, replace(model, autocast=autocast)))
    np.testing.assert_allclose(rounded.label_logprob, exact.label_logprob, atol=tolerance)
    assert not np.array_equal(rounded.label_logprob, exact.label_logprob)
    mass = np.exp(rounded.logprobs.astype(np.float64)).sum(1)
    np.testing.assert_allclose(mass + np.exp(rounded.tail_logprob.astype(np.float64)), 1, atol=1e-5)


def test_no_more_than_a_chunk_of_logits(
    tiny: Make, public: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all tensors that operations make, one a chunk has a column per token."""
    model = tiny("gpt2")
    data = model.encode(public)
    monkeypatch.setattr("fedfuse.models.forward.rows_per_chunk", lambda *_: 5)
    extract(model, data, 4)  # the head is tried once
    with Wide(model.tokenizer.vocab_size) as wide:
        extract(model, data, 4)
    assert wide.made == -(-len(data.rows.token) // 5)


class Wide(TorchDispatchMode):
    """Counts new tensors of a width; views and what is computed in place are none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.made = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        outputs = result if isinstance(result, tuple) else (result,)
        self.made += sum(
            isinstance(out, torch.Tensor)
            and out.shape[-1:] == (self.width,)
            and out.untyped_storage().data_ptr() not in given
            for out in outputs
        )
        return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("with_head", [True, False])
def test_prompts_in_the_same_pass(
    tiny: Make,
    public: list[Sample],
    architecture: str,
    with_head: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against two passes; with chunks that end among label rows and among prompts."""
    who = tiny(architecture)
    samples = [*public, Sample("", "no prompt at all")]
    data = who.encode(samples)
    if not with_head:
        monkeypatch.setattr("fedfuse.models.forward.label_row_states", lambda *_: None)
    monkeypatch.setattr("fedfuse.models.forward.rows_per_chunk", lambda vocab, device: 7)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 60)
    knowledge, losses = extract_with_contexts(who, data, 5)
    right = extract(who, data, 5)
    for name in ("indices", "logprobs", "tail_logprob", "label_logprob"):
        np.testing.assert_allclose(
            getattr(knowledge, name), getattr(right, name), rtol=1e-4, atol=1e-5
        )
    assert (knowledge.tokenizer, knowledge.public) == (right.tokenizer, right.public)
    np.testing.assert_allclose(losses, context_losses(who, data), rtol=1e-4)
    assert np.isnan(losses).tolist() == [False] * len(public) + [True]
    assert losses.dtype == np.float32
