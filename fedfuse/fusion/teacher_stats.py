"""Statistics of the candidates, the evidence of every rule: a few numbers per row and sample.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844 (Fusion-X): a candidate's score on a sample is ``r_n = exp(-CE_n)``.

Differs from the paper: beside that score, which is a single noisy label's, there is evidence that
needs no label: loss on the context, and entropy, margin and kept mass of the distribution of the
answer's first token. Those are the sender's own, before alignment: what follows a part of the
answer, in whoever's tokens, tells who expected it. CE_n is that of the aligned distribution on the
learning model's own label rows, nats per row, so that candidates of any tokenizer are judged on one
set of tokens.

A candidate's statistics are computed once, when its knowledge arrives, and are small; the
distributions themselves need not stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from fedfuse.events import EventDistribution
from fedfuse.sparse import LEAST_LOGPROB, SparseDistribution, safe_log

# Rows at a time, where entries of two distributions are compared pair by pair.
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class TeacherStats:
    """One candidate, on the T label rows of N samples of the learning model.

    Attributes:
        loss: ``[N]`` claimed and verified, nats per byte of answer.
        usable: ``[T]`` whether the candidate has a distribution on the row.
        label_logprob: ``[T]`` log-probability of the learning model's label token under the
            aligned distribution; one that is not kept has an equal share of the mass outside.
        entropy: ``[N]`` of the candidate's own distribution on the sample's first label row, in its
            own tokens: nats, over the kept entries and the tail as one class.
        margin: ``[N]`` of the same, largest probability less the second largest, in [0, 1].
        kept_mass: ``[N]`` of the same, probability of the kept entries together, in [0, 1].
        cross_entropy_to_student: ``[T]`` cross-entropy of the learning model's own distribution
            against this one, over the kept entries and the tail, nats.
        context_loss: ``[N]`` nats per byte of context, NaN where unknown.

    Rows that are not usable hold zeros.
    """

    loss: Float32[ndarray, " samples"]
    usable: Bool[ndarray, " rows"]
    label_logprob: Float32[ndarray, " rows"]
    entropy: Float32[ndarray, " samples"]
    margin: Float32[ndarray, " samples"]
    kept_mass: Float32[ndarray, " samples"]
    cross_entropy_to_student: Float32[ndarray, " rows"]
    context_loss: Float32[ndarray, " samples"]


@dataclass(frozen=True, slots=True)
class StackedStats:
    """C candidates side by side; column 0 is the learning model itself.

    Attributes:
        offsets: ``[N+1]`` rows of sample i are ``offsets[i]:offsets[i+1]``.
        loss: ``[N, C]`` nats per byte of answer.
        usable, label_logprob, cross_entropy_to_student: ``[T, C]``, see ``TeacherStats``.
        entropy, margin, kept_mass: ``[N, C]``, see there.
        context_loss: ``[N, C]`` nats per byte of context, NaN where unknown.
        state: ``[N, d]`` pooled hidden state of the learning model (``view_contexts``), or None.
        record: ``[N, C]`` under blind evidence, mean log-probability of the right option on the
            blind questions most like a sample, from which ``loss`` and ``label_logprob`` follow
            then (``evidence.judged_blind``); else None.
    """

    offsets: Int64[ndarray, " n_plus_1"]
    loss: Float32[ndarray, "samples candidates"]
    usable: Bool[ndarray, "rows candidates"]
    label_logprob: Float32[ndarray, "rows candidates"]
    entropy: Float32[ndarray, "samples candidates"]
    margin: Float32[ndarray, "samples candidates"]
    kept_mass: Float32[ndarray, "samples candidates"]
    cross_entropy_to_student: Float32[ndarray, "rows candidates"]
    context_loss: Float32[ndarray, "samples candidates"]
    state: Float32[ndarray, "samples width"] | None = None
    record: Float32[ndarray, "samples candidates"] | None = None

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return len(self.offsets) - 1

    @property
    def candidates(self) -> int:
        """Number of candidates C."""
        return int(self.loss.shape[1])

    @property
    def sample_of_row(self) -> Int64[ndarray, " rows"]:
        """``[T]`` the sample that each row belongs to."""
        return np.repeat(np.arange(self.samples), np.diff(self.offsets))

    @property
    def available(self) -> Bool[ndarray, "samples candidates"]:
        """``[N, C]`` whether a candidate has a distribution on any row of a sample."""
        return self._sums(self.usable.astype(np.float64)) > 0

    @property
    def label_likelihood(self) -> Float32[ndarray, "samples candidates"]:
        """``[N, C]`` the paper's score ``exp(-CE)``, CE in nats per usable row of the sample; 0
        where a candidate has none.
        """
        mean = self.per_sample(self.label_logprob)
        return np.where(self.available, np.exp(mean), 0).astype(np.float32)

    def per_sample(
        self, values: Float32[ndarray, "rows candidates"]
    ) -> Float32[ndarray, "samples candidates"]:
        """``[N, C]`` means over each sample's usable rows; 0 where there is none."""
        count = self._sums(self.usable.astype(np.float64))
        total = self._sums(np.where(self.usable, values, 0).astype(np.float64))
        return np.asarray(total / np.maximum(count, 1), dtype=np.float32)

    def to_rows(
        self, values: Float32[ndarray, "samples candidates"]
    ) -> Float32[ndarray, "rows candidates"]:
        """``[T, C]`` the values of each row's sample."""
        return np.repeat(values, np.diff(self.offsets), axis=0)

    def to_samples(
        self, values: Float32[ndarray, "rows candidates"]
    ) -> Float32[ndarray, "samples candidates"]:
        """``[N, C]`` means over all rows of each sample; 0 where it has none."""
        count = np.maximum(np.diff(self.offsets), 1)[:, None]
        return np.asarray(self._sums(values.astype(np.float64)) / count, dtype=values.dtype)

    def _sums(
        self, values: Float64[ndarray, "rows candidates"]
    ) -> Float64[ndarray, "samples candidates"]:
        running = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
        return np.asarray(np.diff(running[self.offsets], axis=0))


def stack_stats(
    candidates: Sequence[TeacherStats],
    offsets: Int64[ndarray, " n_plus_1"],
    state: Float32[ndarray, "samples width"] | None = None,
) -> StackedStats:
    """Stack the statistics of all candidates, the learning model's own first."""
    columns = {
        field.name: np.stack([getattr(candidate, field.name) for candidate in candidates], axis=1)
        for field in fields(TeacherStats)
    }
    return StackedStats(offsets=offsets, state=state, **columns)


def compute_stats(
    candidate: SparseDistribution | EventDistribution,
    first: SparseDistribution,
    own: SparseDistribution,
    label: Int64[ndarray, " rows"],
    vocab_size: int,
    loss: Float32[ndarray, " samples"],
    context_loss: Float32[ndarray, " samples"] | None = None,
) -> TeacherStats:
    """Statistics of one candidate.

    Args:
        candidate: its knowledge, aligned to the learning model.
        first: ``[N]`` its own distributions on the first label row of each sample, as they came;
            see ``Knowledge.first_rows``.
        own: the learning model's own knowledge (``Knowledge.distribution``);
            ``candidate`` may be it.
        label: ``[T]`` label tokens of the learning model's rows.
        vocab_size: of the learning model.
        loss: ``[N]`` the candidate's, nats per byte.
        context_loss: ``[N]`` the candidate's, nats per byte; None where unknown.
    """
    used = candidate.logprobs > -np.inf  # [T, k]
    usable = candidate.weight > 0
    # In some fusions a slot that repeats a token stays; what is not used has no mass either way.
    mass = np.exp(candidate.logprobs.astype(np.float64))
    tail = np.exp(candidate.tail_logprob.astype(np.float64))
    if isinstance(candidate, EventDistribution):
        # A row without events is known by its chunk alone.
        label_logprob = np.where(
            used.any(1), event_logprobs(candidate, label), candidate.chunk_logprob
        )
        own_logs = own_event_logprobs(candidate, own)
    else:
        label_logprob = token_logprobs(candidate, label[:, None], vocab_size)[:, 0]
        own_logs = token_logprobs(own, candidate.indices, vocab_size)
    columns = {
        "label_logprob": np.maximum(label_logprob, LEAST_LOGPROB),
        "cross_entropy_to_student": _cross_entropy(mass, tail, own_logs),
    }
    rows = {name: np.where(usable, v, 0).astype(np.float32) for name, v in columns.items()}
    if context_loss is None:
        context_loss = np.full(len(loss), np.nan, dtype=np.float32)
    return TeacherStats(
        loss=loss, usable=usable, context_loss=context_loss, **rows, **_shape_of(first)
    )


def _shape_of(first: SparseDistribution) -> dict[str, Float32[ndarray, " samples"]]:
    """Entropy, margin and kept mass of each row."""
    mass = np.exp(first.logprobs.astype(np.float64))
    tail = np.exp(first.tail_logprob.astype(np.float64))
    largest, second = np.pad(mass, ((0, 0), (0, 2)))[:, :2].T
    found = {
        "entropy": -(_xlogx(mass).sum(1) + _xlogx(tail)),
        "margin": largest - second,
        "kept_mass": mass.sum(1),
    }
    known = first.weight > 0
    return {name: np.where(known, v, 0).astype(np.float32) for name, v in found.items()}


def token_logprobs(
    candidate: SparseDistribution, tokens: Int64[ndarray, "rows m"], vocab_size: int
) -> Float32[ndarray, "rows m"]:
    """Log-probabilities of some tokens of each row under a sparse distribution.

    A token that is not kept has an equal share of the mass outside the kept ones; -inf where there
    is none.
    """
    used = candidate.logprobs > -np.inf
    others = np.maximum(vocab_size - used.sum(1), 1)
    outside = candidate.tail_logprob - np.log(others).astype(np.float32)
    found = np.empty(tokens.shape, dtype=np.float32)
    for start in range(0, len(tokens), _ROWS):
        part = slice(start, start + _ROWS)
        same = tokens[part, :, None] == candidate.indices[part, None, :]  # [rows, m, k]
        same &= used[part, None, :]
        kept = np.where(same, candidate.logprobs[part, None, :], -np.inf).max(2, initial=-np.inf)
        found[part] = np.where(same.any(2), kept, outside[part, None])
    return found


def event_logprobs(
    candidate: EventDistribution, label: Int64[ndarray, " rows"]
) -> Float32[ndarray, " rows"]:
    """``[T]`` log-probability of the event that each label is in.

    A label outside the events has an equal share of the mass outside with all other tokens there.
    """
    place = candidate.places(label[:, None])
    inside = (candidate.start <= place) & (place < candidate.stop)
    kept = np.where(inside, candidate.logprobs, -np.inf).max(1, initial=-np.inf)
    covered = (candidate.stop - candidate.start).sum(1)
    others = np.maximum(candidate.orders.shape[1] - covered, 1)
    outside = candidate.tail_logprob - np.log(others).astype(np.float32)
    found: Float32[ndarray, " rows"] = np.where(inside.any(1), kept, outside)
    return found


def own_event_logprobs(
    candidate: EventDistribution, own: SparseDistribution
) -> Float32[ndarray, "rows k"]:
    """``[T, k]`` log of the learning model's own probability of the candidate's events.

    Of its kept tokens only: what its tail gives to an event is not known.
    """
    result = np.empty(candidate.start.shape, dtype=np.float32)
    for begin in range(0, len(result), _ROWS):
        part = slice(begin, begin + _ROWS)
        events, mass = candidate[part], np.exp(own.logprobs[part])
        place = events.places(own.indices[part])[:, None, :]  # [rows, 1, k of own]
        inside = (events.start[:, :, None] <= place) & (place < events.stop[:, :, None])
        result[part] = safe_log((inside * mass[:, None, :]).sum(2, dtype=np.float64))
    return result


def _cross_entropy(
    mass: Float64[ndarray, "rows k"],
    tail: Float64[ndarray, " rows"],
    own_logs: Float32[ndarray, "rows k"],
) -> Float64[ndarray, " rows"]:
    """``-sum_j p_j log q_j`` over the candidate's entries and its tail, q the learning model's."""
    own_logs = own_logs.astype(np.float64)
    own_logs = np.maximum(own_logs, LEAST_LOGPROB)
    own_mass = np.where(mass > 0, np.exp(own_logs), 0).sum(1)
    own_tail = np.log(np.maximum(1 - own_mass, np.exp(LEAST_LOGPROB)))
    nats: Float64[ndarray, " rows"] = -((mass * own_logs).sum(1) + tail * own_tail)
    return nats


def _xlogx(p: Float64[ndarray, ...]) -> Float64[ndarray, ...]:
    result: Float64[ndarray, ...] = p * np.log(np.where(p > 0, p, 1.0))
    return result
