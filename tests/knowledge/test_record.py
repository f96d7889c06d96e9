"""Knowledge: its losses, and every kind of rubbish is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import Knowledge
from tests.knowledge.conftest import VOCAB, random_knowledge

Rng = np.random.Generator
Mutation = Callable[[Knowledge, Rng], Knowledge]


def check(knowledge: Knowledge, rows: int = 7) -> None:
    knowledge.validate(vocab_size=VOCAB, tokenizer="tokenizer", public="public", num_rows=rows)


def put(knowledge: Knowledge, name: str, value: float, rng: Rng) -> Knowledge:
    """One entry of a field replaced, anywhere."""
    values = getattr(knowledge, name).copy()
    values.flat[rng.integers(values.size)] = value
    return replace(knowledge, **{name: values})


def swapped(knowledge: Knowledge, rng: Rng) -> Knowledge:
    """Two entries of one row exchanged."""
    logprobs = knowledge.logprobs.copy()
    row, left = rng.integers(knowledge.num_rows), rng.integers(knowledge.k - 1)
    logprobs[row, [left, left + 1]] = logprobs[row, [left + 1, left]]
    return replace(knowledge, logprobs=logprobs)


def shifted_mass(knowledge: Knowledge, rng: Rng) -> Knowledge:
    """A row that sums to something else; still sorted, still log-probabilities."""
    row = rng.integers(knowledge.num_rows)
    factor = rng.choice([0.5, 0.97])
    logprobs, tail_logprob = knowledge.logprobs.copy(), knowledge.tail_logprob.copy()
    logprobs[row] += np.log(factor)
    tail_logprob[row] += np.log(factor)
    return replace(knowledge, logprobs=logprobs, tail_logprob=tail_logprob)


def descending_offsets(knowledge: Knowledge, rng: Rng) -> Knowledge:
    return replace(knowledge, offsets=np.array([0, 5, 2, 7]))


# What is done to a good record, and the field that the refusal must name.
MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "tokenizer": ("tokenizer", lambda k, _: replace(k, tokenizer="another")),
    "public": ("public", lambda k, _: replace(k, public="another")),
    "rows": ("num_rows", lambda k, _: random_knowledge(rows=6)),
    "columns": ("indices", lambda k, _: replace(k, indices=k.indices[:, :-1])),
    "no entries": (
        "mass",
        lambda k, _: replace(k, indices=k.indices[:, :0], logprobs=k.logprobs[:, :0]),
    ),
    "short indices": (
        "indices",
        lambda k, _: replace(k, indices=k.indices[:-1], logprobs=k.logprobs[:-1]),
    ),
    "short labels": ("label_logprob", lambda k, _: replace(k, label_logprob=k.label_logprob[1:])),
    "short bytes": ("label_bytes", lambda k, _: replace(k, label_bytes=k.label_bytes[1:])),
    "first offset": ("offsets", lambda k, _: replace(k, offsets=k.offsets + (k.offsets == 0))),
    "last offset": ("offsets", lambda k, _: replace(k, offsets=k.offsets + (k.offsets == 7))),
    "descending offsets": ("offsets", descending_offsets),
    "NaN": ("logprobs", lambda k, r: put(k, "logprobs", np.nan, r)),
    "NaN tail_logprob": ("tail_logprob", lambda k, r: put(k, "tail_logprob", np.nan, r)),
    "NaN label": ("label_logprob", lambda k, r: put(k, "label_logprob", np.nan, r)),
    "infinite": ("logprobs", lambda k, r: put(k, "logprobs", np.inf, r)),
    "positive": ("tail_logprob", lambda k, r: put(k, "tail_logprob", 0.5, r)),
    "label of no mass": ("label_logprob", lambda k, r: put(k, "label_logprob", -np.inf, r)),
    "label too likely": ("label_logprob", lambda k, r: put(k, "label_logprob", 0.0, r)),
    "negative index": ("indices", lambda k, r: put(k, "indices", -1, r)),
    "index out of range": ("indices", lambda k, r: put(k, "indices", VOCAB, r)),
    "mass": ("mass", shifted_mass),
    "unsorted": ("logprobs", swapped),
}


def test_a_good_record_is_accepted() -> None:
    check(random_knowledge())


@pytest.mark.parametrize("kind", MUTATIONS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_rubbish_is_refused_by_name(kind: str, seed: int) -> None:
    name, mutate = MUTATIONS[kind]
    good = random_knowledge(seed)
    check(good)
    broken = mutate(good, np.random.default_rng(seed))
    with pytest.raises(FedfuseError, match=rf"^knowledge\.{re.escape(name)}: expected .*, got "):
        check(broken)


def test_rows_that_the_public_set_does_not_have() -> None:
    with pytest.raises(FedfuseError, match=r"knowledge\.num_rows: expected 8, got 7"):
        check(random_knowledge(), rows=8)


def test_unused_slots_are_accepted() -> None:
    knowledge = random_knowledge(k=3)
    padded = replace(
        knowledge,
        indices=np.pad(knowledge.indices, ((0, 0), (0, 2))),
        logprobs=np.pad(knowledge.logprobs, ((0, 0), (0, 2)), constant_values=-np.inf),
    )
    check(padded)


def test_a_record_of_no_rows_is_accepted() -> None:
    check(random_knowledge(rows=0), rows=0)


def test_loss_by_hand() -> None:
    """Samples of two, no and one rows; the second has nothing scored and is known by nobody."""
    knowledge = replace(
        random_knowledge(rows=3),
        offsets=np.array([0, 2, 2, 3]),
        label_logprob=np.array([-1.0, -2.0, -4.5], dtype=np.float32),
        label_bytes=np.array([6, 0, 9]),
    )
    assert knowledge.loss.tolist() == [0.5, np.inf, 0.5]
    assert knowledge.loss.dtype == np.float32
    assert knowledge.sample_of_row.tolist() == [0, 0, 2]
    assert (knowledge.num_samples, knowledge.num_rows, knowledge.k) == (3, 3, 4)
