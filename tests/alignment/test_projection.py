"""Projection of knowledge onto another vocabulary and other rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.alignment.positions import align_rows, one_to_one
from fedfuse.alignment.projection import project
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.oracles import projection as oracle
from tests.tokenizer_kinds import KINDS, TEXTS, by_hand


def record(indices: npt.ArrayLike, probabilities: npt.ArrayLike) -> Knowledge:
    """Knowledge of one sample; what the probabilities leave is the tail."""
    ids = np.array(indices, dtype=np.int64)
    given = np.array(probabilities, dtype=np.float64)
    rows = len(given)
    with np.errstate(divide="ignore"):
        logs = np.log(given).astype(np.float32)
        rest = np.log(np.maximum(1 - given.sum(1), 0)).astype(np.float32)
    return Knowledge(
        offsets=np.array([0, rows]),
        indices=ids,
        logprobs=logs,
        tail_logprob=rest,
        label_logprob=np.zeros(rows, dtype=np.float32),
        label_bytes=np.array([1]),
        tokenizer="source",
        public="public",
    )


def rows_of(tokens: list[int]) -> LabelRows:
    n = np.arange(len(tokens))
    return LabelRows(
        np.array([0, len(tokens)]), np.array(tokens, dtype=np.int64), n, n, n + 1, np.zeros(1)
    )


def table_of(targets: list[int]) -> VocabularyTable:
    return VocabularyTable(np.array(targets)[:, None], np.zeros((len(targets), 1), dtype=np.int32))


def mass(projected: SparseDistribution) -> np.ndarray:
    kept = np.exp(projected.logprobs.astype(np.float64)).sum(1)
    return kept + np.exp(projected.tail_logprob.astype(np.float64))


KNOWLEDGE = record([[0, 1, 2], [3, 1, 0]], [[0.4, 0.3, 0.2], [0.5, 0.25, 0.25]])
TABLE = table_of([7, 5, 5, 7])


def test_sum_by_hand() -> None:
    """0.3 and 0.2 meet at 5 and overtake the 0.4 at 7; 0.5 and 0.25 meet at 7."""
    found = project(
        KNOWLEDGE.distribution,
        TABLE,
        one_to_one(np.array([1, -1, 0])),
        rows_of([7, 8, 9]),
    )
    assert found.indices.tolist() == [[7, 5, 0], [0, 0, 0], [5, 7, 0]]
    np.testing.assert_allclose(
        np.exp(found.logprobs), [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0.4, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(np.exp(found.tail_logprob), [0, 1, 0.1], atol=1e-7)
    assert found.weight.tolist() == [1, 0, 1]
    assert found.logprobs.dtype == found.tail_logprob.dtype == found.weight.dtype == np.float32
    assert found.indices.dtype == np.int64


def test_paper_rule_by_hand() -> None:
    """The first wins and what it displaces is tail; no teacher gives the predicted token."""
    found = project(
        KNOWLEDGE.distribution,
        TABLE,
        one_to_one(np.array([1, -1, 0])),
        rows_of([7, 8, 9]),
        duplicate_tokens="first",
        unaligned_positions="one-hot",
    )
    assert found.indices.tolist() == [[7, 5, 0], [8, 0, 0], [7, 5, 0]]
    np.testing.assert_allclose(
        np.exp(found.logprobs), [[0.5, 0.25, 0], [1, 0, 0], [0.4, 0.3, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(np.exp(found.tail_logprob), [0.25, 0, 0.3], rtol=1e-6)
    assert found.weight.tolist() == [1, 1, 1]


def test_one_hot_is_on_the_predicted_token() -> None:
    """Not on the token that the row reads: the convention again."""
    tokenizer = by_hand("wordpiece", ["[UNK]", "[CLS]", "a", "b", "c"], cls="[CLS]")
    (ids,), rows = label_rows(tokenizer, [Sample("", "a b c")], 10)
    assert ids.tolist() == [1, 2, 3, 4]
    found = project(
        record([[0]], [[1.0]]).distribution,
        table_of([0]),
        one_to_one(np.array([-1, -1, -1])),
        rows,
        unaligned_positions="one-hot",
    )
    assert found.indices[:, 0].tolist() == [2, 3, 4]


def test_a_perfect_teacher_stays_perfect_across_tokenizers(
    tokenizers: dict[str, TextTokenizer],
) -> None:
    """From rows to table to projection: where both predict the same text, the label gets the mass.

    The teacher knows position row + 1 of its own input. A shift anywhere would teach another token.
    """
    samples = [Sample("", text) for text in TEXTS[:3]]
    for one in KINDS:
        for other in KINDS:
            source, target = tokenizers[one], tokenizers[other]
            inputs, rows = label_rows(source, samples, 200)
            known = [inputs[s][r + 1] for s, r in zip(rows.sample_of_row, rows.row, strict=True)]
            knowledge = replace(
                record([[int(i)] for i in known], [[1.0]] * len(known)), offsets=rows.offsets
            )
            table = minimum_edit_distance_table(source, target, None)
            own = label_rows(target, samples, 200)[1]
            paired = align_rows(rows, own)
            found = project(knowledge.distribution, table, paired, own)
            taught = np.flatnonzero(found.weight)
            pairs = zip(rows.token[paired.source_row[taught]], own.token[taught], strict=True)
            same = [source.token_bytes[s] == target.token_bytes[t] for s, t in pairs]
            compared = taught[same]
            assert len(compared) >= (len(own.token) if one == other else 1)
            assert found.indices[compared, 0].tolist() == own.token[compared].tolist()
            assert not found.logprobs[compared, 0].any()


@st.composite
def problems(draw: st.DrawFn) -> tuple[Knowledge, VocabularyTable, np.ndarray, LabelRows]:
    vocabulary, k = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    k = min(k, vocabulary)
    rows = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = np.array([rng.permutation(vocabulary)[:k] for _ in range(rows)]).reshape(rows, k)
    raw = rng.dirichlet(np.full(k + 1, 0.5), rows)
    kept = -np.sort(-raw[:, :k], axis=1)
    unused = rng.integers(0, k + 1, rows)
    kept[np.arange(k) >= k - unused[:, None] // 2] = 0.0
    knowledge = record(indices, kept)
    targets = rng.integers(0, draw(st.integers(1, 8)), vocabulary)
    goal = draw(st.integers(0, 6))
    return (
        knowledge,
        table_of(targets.tolist()),
        rng.integers(-1, rows, goal),
        rows_of(rng.integers(0, 8, goal).tolist()),
    )


@pytest.mark.parametrize("duplicate_tokens", ["sum", "first"])
@pytest.mark.parametrize("unaligned_positions", ["skip", "one-hot"])
@settings(max_examples=80, deadline=None, derandomize=True)
@given(problem=problems())
def test_projection_equals_oracle(
    duplicate_tokens: str,
    unaligned_positions: str,
    problem: tuple[Knowledge, VocabularyTable, np.ndarray, LabelRows],
) -> None:
    knowledge, table, source_row, target = problem
    found = project(
        knowledge.distribution,
        table,
        one_to_one(source_row),
        target,
        duplicate_tokens=duplicate_tokens,
        unaligned_positions=unaligned_positions,
    )
    assert found.indices.shape == found.logprobs.shape == (len(target.token), knowledge.k)
    assert (found.logprobs[:, 1:] <= found.logprobs[:, :-1]).all()
    np.testing.assert_allclose(mass(found), 1.0, atol=1e-5)
    for t, s in enumerate(source_row.tolist()):
        used = np.isfinite(found.logprobs[t])
        got = dict(zip(found.indices[t][used].tolist(), found.logprobs[t][used], strict=True))
        assert len(got) == used.sum()
        if s >= 0:
            want, rest = oracle.project_row(
                knowledge.indices[s].tolist(),
                knowledge.logprobs[s].tolist(),
                float(knowledge.tail_logprob[s]),
                table.best.tolist(),
                duplicate_tokens,
            )
        else:
            want = {int(target.token[t]): 1.0} if unaligned_positions == "one-hot" else {}
            rest = 1.0 - len(want)
        assert found.weight[t] == float(s >= 0 or unaligned_positions == "one-hot")
        assert got.keys() == want.keys()
        for token_id, logprob in got.items():
            assert math.exp(logprob) == pytest.approx(want[token_id], rel=1e-5)
        assert math.exp(found.tail_logprob[t]) == pytest.approx(rest, abs=1e-6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problem=problems(), duplicate_tokens=st.sampled_from(["sum", "first"]))
def test_identity_returns_its_input(
    problem: tuple[Knowledge, VocabularyTable, np.ndarray, LabelRows], duplicate_tokens: str
) -> None:
    knowledge, table, _, _ = problem
    identity = table_of(list(range(len(table.target))))
    target = rows_of([0] * knowledge.num_rows)
    found = project(
        knowledge.distribution,
        identity,
        one_to_one(np.arange(knowledge.num_rows)),
        target,
        duplicate_tokens=duplicate_tokens,
    )
    used = np.isfinite(knowledge.logprobs)
    np.testing.assert_array_equal(found.indices[used], knowledge.indices[used])
    np.testing.assert_array_equal(found.logprobs, knowledge.logprobs)
    np.testing.assert_array_equal(found.tail_logprob, knowledge.tail_logprob)
    assert found.weight.all()


def test_knowledge_of_nothing_but_the_rest() -> None:
    """k = 0 teaches nothing, yet an unmatched row still gets its token."""
    empty = record(np.empty((1, 0)), np.empty((1, 0)))
    found = project(
        empty.distribution,
        TABLE,
        one_to_one(np.array([0, -1])),
        rows_of([2, 3]),
        unaligned_positions="one-hot",
    )
    assert found.indices.tolist() == [[0], [3]]
    np.testing.assert_allclose(mass(found), 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duplicate_tokens": "last"}, "duplicate_tokens: expected sum or first, got last"),
        (
            {"unaligned_positions": "guess"},
            "unaligned_positions: expected skip or one-hot, got guess",
        ),
        ({"alignment": one_to_one(np.array([0]))}, r"source_row: expected \(2,\), got \(1,\)"),
        (
            {"alignment": one_to_one(np.array([0, 2]))},
            r"expected -1\.\.1, got \(0, 2\)",
        ),
        (
            {"alignment": one_to_one(np.array([-2, 0]))},
            r"source_row: expected -1\.\.1, got \(-2, 0\)",
        ),
        ({"table": table_of([0, 0])}, r"teacher.indices: expected 0\.\.1, got \(0, 3\)"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "teacher": KNOWLEDGE.distribution,
        "table": TABLE,
        "alignment": one_to_one(np.array([0, 1])),
        "target": rows_of([1, 2]),
    }
    with pytest.raises(FedfuseError, match=message):
        project(**(arguments | change))
