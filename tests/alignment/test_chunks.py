"""Byte-aligned chunks, and the likelihoods that a teacher has of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfuse.alignment.chunks import byte_aligned_chunks
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.run_config import parse
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.events import EventDistribution
from fedfuse.fusion.event_mixing import mix_events
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.test_event_rows import random_knowledge
from tests.tokenizer_kinds import KINDS, TEXTS, by_hand, texts_strategy

Span = tuple[int, int, int, int]
# "abcd" is ab-cd for one and a-bc-d for the other.
EVEN = by_hand("wordpiece", ["[U]", "[CLS]", "ab", "##cd", "x"], cls="[CLS]")
ODD = by_hand("wordpiece", ["[U]", "[CLS]", "a", "##bc", "##d", "x"], cls="[CLS]")


def slow_chunks(source: LabelRows, target: LabelRows) -> list[Span]:
    """Sample by sample and place by place."""
    found = []
    for i in range(len(source.offsets) - 1):
        sides = [(rows, *rows.offsets[i : i + 2].tolist()) for rows in (source, target)]
        starts, ends = [], []
        for rows, first, stop in sides:
            places: dict[int, int] = {}
            for row in range(first, stop):
                if rows.byte_start[row] >= 0:
                    places.setdefault(int(rows.byte_start[row]), row)
            starts.append(places)
            ends.append(int(rows.byte_end[stop - 1]) if stop > first else None)
        common = sorted(set(starts[0]) & set(starts[1]))
        for place, following in zip(common, [*common[1:], None], strict=False):
            if following is not None:
                last = [starts[0][following], starts[1][following]]
            elif ends[0] == ends[1]:
                last = [sides[0][2], sides[1][2]]
            else:
                continue
            found.append((starts[0][place], last[0], starts[1][place], last[1]))
    return found


def align(
    source: TextTokenizer, target: TextTokenizer, samples: list[Sample], known: Knowledge, rule: str
) -> EventDistribution | SparseDistribution:
    config = KnowledgeConfig(alignment=rule)
    return KnowledgeAligner(target, samples, 100, config)(known, source)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.one_of(st.sampled_from(TEXTS), texts_strategy()), min_size=1, max_size=4),
    pair=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    prompt=st.integers(0, 3),
    length=st.sampled_from([4, 100]),
)
def test_equal_a_slow_version(
    tokenizers: dict[str, TextTokenizer],
    texts: list[str],
    pair: tuple[str, str],
    prompt: int,
    length: int,
) -> None:
    samples = [Sample(text[:prompt], text[prompt:]) for text in texts]
    source, target = (label_rows(tokenizers[kind], samples, length)[1] for kind in pair)
    found = byte_aligned_chunks(source, target)
    fields = (found.source_start, found.source_stop, found.target_start, found.target_stop)
    assert list(zip(*(f.tolist() for f in fields), strict=True)) == slow_chunks(source, target)


def test_tokens_that_overlap_without_nesting_get_the_likelihood_of_their_chunk() -> None:
    samples = [Sample("", "x abcd x")]
    rows = label_rows(EVEN, samples, 100)[1]
    known = random_knowledge(rows, EVEN.vocab_size, 3, seed=1)
    found = align(EVEN, ODD, samples, known, "events")
    assert isinstance(found, EventDistribution)
    assert found.chunk_rows.tolist() == [0, 3, 0, 0, 0]
    assert found.chunk_logprob[1] == pytest.approx(known.label_logprob[1:3].sum())
    assert found.weight[1] == 1


def test_everything_that_both_cut_out_has_a_likelihood() -> None:
    samples = [Sample("", "x abcd x")]
    rows = label_rows(EVEN, samples, 100)[1]
    known = random_knowledge(rows, EVEN.vocab_size, 3, seed=1)
    found = align(EVEN, ODD, samples, known, "alm")
    assert isinstance(found, EventDistribution)
    assert found.k == 0
    assert found.chunk_rows.tolist() == [1, 3, 0, 0, 1]
    expected = np.add.reduceat(known.label_logprob, [0, 1, 3])
    np.testing.assert_allclose(found.chunk_logprob[[0, 1, 4]], expected, rtol=1e-6)
    both = align(EVEN, ODD, samples, known, "events+alm")
    assert isinstance(both, EventDistribution)
    np.testing.assert_array_equal(both.chunk_rows, found.chunk_rows)
    np.testing.assert_array_equal(both.chunk_logprob, found.chunk_logprob)
    only = align(EVEN, ODD, samples, known, "events")
    assert isinstance(only, EventDistribution)
    np.testing.assert_array_equal(both.logprobs, only.logprobs)


def test_likelihoods_of_what_a_tokenizer_changes_teach_nothing() -> None:
    samples = [Sample("", "x ?? x")]  # an unknown token each
    for source, target in ((EVEN, ODD), (ODD, EVEN)):
        known = random_knowledge(label_rows(source, samples, 100)[1], 4, 2, seed=0)
        found = align(source, target, samples, known, "alm")
        assert isinstance(found, EventDistribution)
        assert found.weight.tolist() == [1, *[0] * (len(found.weight) - 2), 1]


@pytest.mark.parametrize("rule", ["alm", "events+alm"])
def test_equal_tokenizers(rule: str) -> None:
    """ALM compares labels alone; events and ALM leave equal tokens what they are."""
    samples = [Sample("", "x abcd x")]
    known = random_knowledge(label_rows(EVEN, samples, 100)[1], EVEN.vocab_size, 3, seed=1)
    found = align(EVEN, EVEN, samples, known, rule)
    if rule == "alm":
        assert isinstance(found, EventDistribution)
        assert found.chunk_rows.tolist() == [1, 1, 1, 1]
        np.testing.assert_allclose(found.chunk_logprob, known.label_logprob, rtol=1e-6)
    else:
        assert isinstance(found, SparseDistribution)
        np.testing.assert_array_equal(found.logprobs, known.logprobs)


def test_teachers_of_one_tokenizer_are_mixed() -> None:
    samples = [Sample("", "x abcd x")]
    rows = label_rows(EVEN, samples, 100)[1]
    candidates = [
        align(EVEN, ODD, samples, random_knowledge(rows, 5, 2, seed=seed), "alm")
        for seed in range(2)
    ]
    parts: list[Any] = candidates
    parts[1] = parts[1].__class__(parts[0].orders, **parts[1].columns())
    weights = np.tile(np.float32([0.2, 0.6]), (5, 1))
    found = mix_events(parts, weights, 4)
    some = found.chunk_rows > 0
    expected = np.log(
        sum(w * np.exp(p.chunk_logprob) for w, p in zip([0.25, 0.75], parts, strict=True))
    )
    np.testing.assert_allclose(found.chunk_logprob[some], expected[some], rtol=1e-5)
    assert found.chunk_rows.tolist() == [1, 3, 0, 0, 1]
    np.testing.assert_allclose(found.weight, [0.8, 0.8, 0, 0, 0.8], rtol=1e-6)


@pytest.mark.parametrize(("bits", "most"), [(16, 2.0), (8, 1.0)])
def test_labels_alone_cost_a_byte_or_two_a_row(bits: int, most: float) -> None:
    rows = 20_000
    rng = np.random.default_rng(0)
    labels = -rng.exponential(size=rows).astype(np.float32)
    known = Knowledge(
        offsets=np.arange(0, rows + 1, 10),
        indices=np.zeros((rows, 0), np.int64),
        logprobs=np.zeros((rows, 0), np.float32),
        tail_logprob=np.zeros(rows, np.float32),
        label_logprob=labels,
        label_bytes=np.full(rows // 10, 40),
        tokenizer="t",
        public="p",
    )
    message = encode(known, bits)
    assert len(message) < most * rows + 400
    back = decode(message, num_rows=rows, k=0)
    assert back.k == 0
    rounding = QUANTIZERS[bits].error * (1 - labels)
    assert (np.abs(back.label_logprob - labels) <= rounding).all()
    known.validate(vocab_size=5, tokenizer="t", public="p", num_rows=rows)
    with pytest.raises(FedfuseError, match="at least 1, got 0"):
        decode(message, num_rows=rows, k=16)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"k": 0}, "knowledge.alignment: expected 'alm' with a knowledge.k of 0, got 'events'"),
        (
            {"k": 0, "alignment": "alm", "delta_threshold": 0.1},
            "knowledge.delta-threshold: expected 0 with a knowledge.k of 0, .*, got 0.1",
        ),
        (
            {"alignment": "alm", "duplicate_tokens": "first"},
            "knowledge.duplicate-tokens: expected 'sum' with .*'alm', got 'first'",
        ),
    ],
)
def test_rules_that_do_not_go_together(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        KnowledgeAligner(EVEN, [Sample("", "x")], 100, KnowledgeConfig(**rules))
    keys = {f"knowledge.{name.replace('_', '-')}": value for name, value in rules.items()}
    with pytest.raises(FedfuseError, match=message):
        parse(keys)
