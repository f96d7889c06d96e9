"""Encoded data sets: the right rows, in batches that change nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.builtin.tokenizers import KINDS
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.beginnings import containing
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset, scored_bytes
from fedfuse.tokenizers.label_rows import LabelRows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]

SAMPLES = [
    Sample("on monday the dover branch advised a client holding copper to buy", " futures."),
    Sample("for gout", " zinc."),
    Sample("", "in may a nurse from kendal noted gout and gave zinc."),
    Sample("the ward at luton treats gout with", " statins and a long list of other things."),
    Sample("a prompt alone", ""),
]


def alone(tokenizer: TextTokenizer, sample: Sample) -> tuple[list[int], list[tuple[int, int]]]:
    """Input and (row, label) pairs of one sample, token by token."""
    (encoded,) = tokenizer.encode([sample.text])
    ids = [tokenizer.bos_id, *encoded.ids.tolist()]
    rows = [
        (position, token)
        for position, (token, end) in enumerate(zip(encoded.ids, encoded.ends, strict=True))
        if end > len(sample.prompt.encode())
    ]
    return ids, rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_samples_one_by_one(
    tiny_tokenizers: dict[str, TextTokenizer], kind: str
) -> None:
    tokenizer = tiny_tokenizers[kind]
    data = TokenizedDataset(tokenizer, SAMPLES, MAX_LENGTH)
    which = np.array([3, 0, 4, 2])
    batch = data.batch(which)
    expected_rows: list[tuple[int, int, int]] = []
    for place, i in enumerate(which):
        ids, rows = alone(tokenizer, SAMPLES[i])
        # Up to the last label row; what comes after is its label.
        length = rows[-1][0] + 1 if rows else 1
        assert data.lengths[i] == length
        assert length == len(ids) - 1 or not rows
        assert batch.input_ids[place, :length].tolist() == ids[:length]
        expected_rows += [(place, row, label) for row, label in rows]
    found = torch.stack([batch.sample, batch.row, batch.label], 1).tolist()
    assert found == [list(row) for row in expected_rows]
    assert batch.input_ids.shape[1] == data.lengths[which].max()
    np.testing.assert_array_equal(data.rows.token[batch.index], batch.label)
    np.testing.assert_array_equal(which[batch.sample], data.rows.sample_of_row[batch.index])


def test_a_label_row_sees_everything_but_its_label(tiny: Make) -> None:
    """Row ``row`` predicts position ``row + 1``: shifted by one, it would see its own label."""
    gpt2 = tiny("gpt2")
    data = gpt2.encode(SAMPLES)
    batch = data.batch(np.arange(len(SAMPLES)))
    seen = batch.row + 1 < torch.from_numpy(data.lengths)[batch.sample]
    assert 0 < seen.sum() < len(seen)  # but for the last label of a sample, which is no input
    after = batch.input_ids[batch.sample[seen], batch.row[seen] + 1]
    np.testing.assert_array_equal(after, batch.label[seen])

    def logits(input_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output = gpt2.model(input_ids=input_ids)
        return output.logits[batch.sample, batch.row]

    before = logits(batch.input_ids)
    for number in range(len(batch.row)):
        sample, row = int(batch.sample[number]), int(batch.row[number])
        changed = batch.input_ids.clone()
        changed[sample, row + 1 :] = (changed[sample, row + 1 :] + 1) % gpt2.tokenizer.vocab_size
        assert torch.equal(logits(changed)[number], before[number])
        changed = batch.input_ids.clone()
        changed[sample, row] = (changed[sample, row] + 1) % gpt2.tokenizer.vocab_size
        assert not torch.allclose(logits(changed)[number], before[number], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_never_reaches_a_label_row(tiny: Make, architecture: str) -> None:
    model = tiny(architecture)
    data = model.encode(SAMPLES)
    together = {}
    for batch in data.batches(max_tokens=40):
        for index, row in zip(batch.index, _logits(model.model, batch), strict=True):
            together[int(index)] = row
    single = [data.batch(np.array([i])) for i in range(len(data))]
    assert len(together) == len(data.rows.token)
    for batch in single:
        for index, row in zip(batch.index, _logits(model.model, batch), strict=True):
            torch.testing.assert_close(together[int(index)], row, rtol=1e-4, atol=1e-5)


def test_in_order_sees_every_sample_once_and_the_short_first(
    tiny_tokenizers: dict[str, TextTokenizer],
) -> None:
    data = TokenizedDataset(tiny_tokenizers["wordpiece"], SAMPLES, MAX_LENGTH)
    batches = list(data.batches(2 * int(data.lengths.max())))
    widths = [b.input_ids.shape[1] for b in batches]
    assert len(batches) > 1
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] == data.lengths.max()
    seen = np.concatenate([b.index for b in batches])
    assert sorted(seen.tolist()) == list(range(len(data.rows.token)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_options_are_read_in_one_pass(tiny: Make, architecture: str) -> None:
    """An input that another begins with is not run again; the rows are those of each alone."""
    model = tiny(architecture)
    answers = ["true", "false", "true", "true or false", ""]
    data = model.encode([Sample(question, a) for question in ("Is it?", "Who?") for a in answers])
    found, inputs = {}, 0
    for batch in data.batches(max_tokens=200):
        inputs += len(batch.input_ids)
        for index, row in zip(batch.index, _logits(model.model, batch), strict=True):
            assert int(index) not in found
            found[int(index)] = row
    assert inputs <= 2 * 2  # of each question the longest, and "false" where it has more tokens
    assert sorted(found) == list(range(len(data.rows.token)))
    for number in range(len(data)):
        batch = data.batch(np.array([number]))
        for index, row in zip(batch.index, _logits(model.model, batch), strict=True):
            torch.testing.assert_close(found[int(index)], row, rtol=1e-4, atol=1e-5)


@given(st.lists(st.lists(st.sampled_from([0, 1, 256, 70_000]), max_size=4), max_size=12))
def test_inputs_that_contain_others(inputs: list[list[int]]) -> None:
    found = containing([np.array(ids, dtype=np.int64) for ids in inputs])
    for ids, place in zip(inputs, found, strict=True):
        assert inputs[place][: len(ids)] == ids
        others = [other for other in inputs if other[: len(ids)] == ids]
        longer = [other for other in others if len(other) > len(inputs[place])]
        assert all(other[: len(inputs[place])] != inputs[place] for other in longer)
    # Equal inputs are in one, and none that is kept begins another that is.
    kept = {tuple(inputs[place]) for place in found}
    assert len(set(found.tolist())) == len(kept)
    assert not any(a != b and b[: len(a)] == a for a in kept for b in kept)


@pytest.mark.parametrize("split", [0, 1, 3, 4])
def test_two_batches_beside_each_other_are_one(
    tiny_tokenizers: dict[str, TextTokenizer], split: int
) -> None:
    """Even where one is empty."""
    data = TokenizedDataset(tiny_tokenizers["wordpiece"], SAMPLES, MAX_LENGTH)
    which = np.array([3, 0, 4, 2])
    right = data.batch(which)
    found = data.batch(which[:split]).concat(data.batch(which[split:]))
    for name in ("sample", "row", "label"):
        assert torch.equal(getattr(found, name), getattr(right, name))
    np.testing.assert_array_equal(found.index, right.index)
    real = torch.arange(right.input_ids.shape[1]) < torch.from_numpy(data.lengths[which])[:, None]
    assert torch.equal(found.input_ids[real], right.input_ids[real])
    assert found.input_ids.shape == right.input_ids.shape


def test_what_it_remembers(tiny_tokenizers: dict[str, TextTokenizer]) -> None:
    data = TokenizedDataset(tiny_tokenizers["unigram"], SAMPLES, MAX_LENGTH)
    assert len(data) == len(SAMPLES)
    assert data.samples == SAMPLES
    assert data.fingerprint == fingerprint(SAMPLES)
    assert data.label_bytes.tolist() == [len(s.answer.encode()) for s in SAMPLES]


@pytest.mark.parametrize("samples", [[], [Sample("only a prompt", "")]])
def test_nothing_to_score(tiny_tokenizers: dict[str, TextTokenizer], samples: list[Sample]) -> None:
    with pytest.raises(FedfuseError, match=f"no label position in {len(samples)} samples"):
        TokenizedDataset(tiny_tokenizers["unigram"], samples, MAX_LENGTH)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", range(2, 24, 3))
def test_only_scored_bytes_count(
    tiny_tokenizers: dict[str, TextTokenizer], kind: str, max_length: int
) -> None:
    """An answer longer than the input counts as far as its tokens are left; a prompt gives way."""
    tokenizer = tiny_tokenizers[kind]
    data = TokenizedDataset(tokenizer, SAMPLES, max_length)
    for i, sample in enumerate(SAMPLES):
        (encoded,) = tokenizer.encode([sample.text])
        answer = encoded.ends[encoded.ends > sample.prompt_bytes]
        covered = max([int(end) - sample.prompt_bytes for end in answer[: max_length - 1]] + [0])
        assert data.label_bytes[i] == covered
        assert data.lengths[i] <= max_length


def test_scored_bytes_by_hand() -> None:
    """Whole (though spaces at the end have no token), cut, cut at an unknown end, without rows."""
    samples = [
        Sample("ab", " cd  "),
        Sample("ab", " cdefgh"),
        Sample("ab", " cdefgh"),
        Sample("ab", " cdefgh"),
        Sample("ab", "é"),
    ]
    rows = LabelRows(
        offsets=np.array([0, 1, 3, 5, 5, 6]),
        token=np.zeros(6, dtype=np.int64),
        row=np.array([1, 7, 8, 7, 8, 8]),
        byte_start=np.array([2, 2, 4, 2, 4, 2]),
        byte_end=np.array([5, 4, 6, 4, -1, -1]),
        begin=np.zeros(5, dtype=np.int64),
    )
    assert scored_bytes(samples, rows, max_length=10).tolist() == [5, 4, 2, 0, 1]


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        output = model(input_ids=batch.input_ids)
    logits: torch.Tensor = output.logits[batch.sample, batch.row]
    return logits
