"""Sparse next-token distributions: a few tokens of each row, and the probability outside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Num
from numpy import ndarray

DUPLICATE_RULES = ("sum", "first")
# What a distribution gives at least to a token that it does not keep: no single label is proof.
LEAST_LOGPROB = np.float32(np.log(1e-6))


@dataclass(frozen=True, slots=True)
class SparseDistribution:
    """Next-token distributions of T label rows over one vocabulary. Logarithms are natural.

    Attributes:
        indices: ``[T, k]`` token ids; any id in unused slots.
        logprobs: ``[T, k]`` log-probabilities, descending; -inf in unused slots.
        tail_logprob: ``[T]`` log of the probability outside the k entries; -inf for none.
        weight: ``[T]`` in [0, 1], 0 where nothing is known of the row.
        self_weight: ``[N]`` in [0, 1], the receiving model's trust in itself on each sample; None
            for a distribution that was not fused for a model.
    """

    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    tail_logprob: Float32[ndarray, " rows"]
    weight: Float32[ndarray, " rows"]
    self_weight: Float32[ndarray, " samples"] | None = None

    @classmethod
    def empty(cls, num_rows: int, k: int, tail_logprob: float) -> SparseDistribution:
        """Rows of which nothing is known, to be filled in."""
        return cls(
            np.zeros((num_rows, k), dtype=np.int64),
            np.full((num_rows, k), -np.inf, dtype=np.float32),
            np.full(num_rows, tail_logprob, dtype=np.float32),
            np.zeros(num_rows, dtype=np.float32),
        )

    @property
    def num_rows(self) -> int:
        """Number of label rows T."""
        return len(self.tail_logprob)

    @property
    def k(self) -> int:
        """Number of entries per row."""
        return int(self.indices.shape[1])

    def with_self_weight(self, self_weight: Float32[ndarray, " samples"]) -> SparseDistribution:
        """The same, fused for a model with this trust in itself."""
        return replace(self, self_weight=self_weight)

    def without_tail(self) -> SparseDistribution:
        """The same, with the kept entries taken for all there is."""
        return replace(self, tail_logprob=np.full_like(self.tail_logprob, -np.inf))

    def __getitem__(self, rows: slice | Int64[ndarray, " some"]) -> SparseDistribution:
        """Some of the rows."""
        return replace(
            self,
            indices=self.indices[rows],
            logprobs=self.logprobs[rows],
            tail_logprob=self.tail_logprob[rows],
            weight=self.weight[rows],
        )


def sum_duplicates(
    indices: Int64[ndarray, "rows m"], values: Float64[ndarray, "rows m"]
) -> tuple[Int64[ndarray, "rows m"], Float64[ndarray, "rows m"]]:
    """Sum the values of equal indices in each row.

    Returns:
        ``[R, m]`` the indices in ascending order, and ``[R, m]`` the sum of each at its first slot,
        0 at its later ones.
    """
    indices, slot, first = _sort_by_id(indices)
    values = np.take_along_axis(values, slot, axis=1)
    # Number the groups over the whole array, so that one bincount sums them all.
    group = first.ravel().cumsum() - 1
    sums = np.bincount(group, weights=values.ravel())
    return indices, np.where(first, sums[group].reshape(values.shape), 0.0)


def top_k(
    ids: Int64[ndarray, "rows c"], logprobs: Num[ndarray, "rows c"], k: int, duplicates: str = "sum"
) -> tuple[Int64[ndarray, "rows k"], Float32[ndarray, "rows k"], Float64[ndarray, " rows"]]:
    """Keep the k most likely tokens of each row, among entries of which several may be one token.

    Args:
        ids: token ids; any in unused slots.
        logprobs: float32 or float64 log-probabilities; -inf in unused slots.
        k: entries to keep.
        duplicates: "sum" adds entries of one token up; "first" keeps the largest and loses the
            rest.

    Returns:
        Ids (0 in unused slots), log-probabilities, descending, and the probability lost per row.
    """
    rows, c = ids.shape
    if c > k:
        return _merge(ids, logprobs, k, duplicates)
    kept_ids = np.zeros((rows, k), dtype=np.int64)
    kept = np.full((rows, k), -np.inf, dtype=np.float32)
    lost = np.zeros(rows)
    ready = _is_ready(ids, logprobs) if c else np.ones(rows, dtype=bool)
    kept_ids[ready, :c], kept[ready, :c] = ids[ready], logprobs[ready]
    merge = ~ready
    if merge.any():
        kept_ids[merge], kept[merge], lost[merge] = _merge(
            ids[merge], logprobs[merge], k, duplicates
        )
    return kept_ids, kept, lost


def safe_log(probability: Float64[ndarray, ...]) -> Float64[ndarray, ...]:
    """Natural logarithm, -inf at 0 without a warning."""
    result = np.full(probability.shape, -np.inf)
    np.log(probability, out=result, where=probability > 0)
    return result


def _is_ready(
    ids: Int64[ndarray, "rows c"], logprobs: Num[ndarray, "rows c"]
) -> Bool[ndarray, " rows"]:
    """Rows that need nothing: all ids differ, all slots are used and in descending order.

    By columns, since each is compared as a whole with every other.
    """
    columns = np.ascontiguousarray(ids.T, dtype=np.int32)
    ready = (logprobs[:, 1:] <= logprobs[:, :-1]).all(axis=1) & (logprobs[:, -1] > -np.inf)
    for shift in range(1, len(columns)):
        ready &= (columns[shift:] != columns[:-shift]).all(axis=0)
    return ready


def _merge(
    ids: Int64[ndarray, "rows c"], logprobs: Num[ndarray, "rows c"], k: int, duplicates: str
) -> tuple[Int64[ndarray, "rows k"], Float32[ndarray, "rows k"], Float64[ndarray, " rows"]]:
    rows, c = ids.shape
    order = _descending(logprobs)
    ids = np.take_along_axis(ids, order, axis=1)
    logs = np.take_along_axis(logprobs, order, axis=1).astype(np.float64)
    first, repeat = _find_repeats(ids, logs)
    lost = np.zeros(rows)
    flat = logs.ravel()
    if len(repeat):
        if duplicates == "sum":
            # Relative to the largest: no sum of tiny probabilities underflows.
            leader, start = np.unique(first, return_index=True)
            share = np.exp(flat[repeat] - flat[first])
            flat[leader] += np.log1p(np.add.reduceat(share, start))
        else:
            lost += np.bincount(repeat // c, weights=np.exp(flat[repeat]), minlength=rows)
        flat[repeat] = -np.inf
    order = _descending(logs)
    ids = np.take_along_axis(ids, order, axis=1)
    logs = np.take_along_axis(logs, order, axis=1)
    width = min(k, c)
    if c > k:
        lost += np.exp(logs[:, k:]).sum(axis=1)
    kept_ids = np.zeros((rows, k), dtype=np.int64)
    kept = np.full((rows, k), -np.inf, dtype=np.float32)
    kept[:, :width] = logs[:, :width]
    kept_ids[:, :width] = np.where(np.isneginf(logs[:, :width]), 0, ids[:, :width])
    return kept_ids, kept, lost


def _descending(values: Num[ndarray, "rows c"]) -> Int64[ndarray, "rows c"]:
    """Order of each row, largest first; equal values stay in their order."""
    return np.argsort(-values, axis=1, kind="stable")


def _find_repeats(
    ids: Int64[ndarray, "rows c"], logs: Float64[ndarray, "rows c"]
) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"]]:
    """Used slots whose id stands further left in the row already, and the slots where it stands.

    Returns:
        Flat positions: of the first slot with the id (ascending), and of the later slot.
    """
    _, slot, is_first = _sort_by_id(ids)
    c = ids.shape[1]
    at = np.flatnonzero(~is_first)
    if not len(at):
        return at, at
    starts = np.maximum.accumulate(np.where(is_first.ravel(), np.arange(ids.size), 0))[at]
    flat = slot.ravel()
    base = at // c * c
    first, repeat = base + flat[starts], base + flat[at]
    used = logs.ravel()[repeat] > -np.inf
    first, repeat = first[used], repeat[used]
    order = np.argsort(first, kind="stable")
    return first[order], repeat[order]


def _sort_by_id(
    ids: Int64[ndarray, "rows c"],
) -> tuple[Int64[ndarray, "rows c"], Int64[ndarray, "rows c"], Bool[ndarray, "rows c"]]:
    """Each row's ids in ascending order, the slot that each was in, and where a new id begins."""
    c = ids.shape[1]
    # Sorting id and slot as one number is several times faster than sorting slots by their id.
    by_id, slot = np.divmod(np.sort(ids * c + np.arange(c), axis=1), max(c, 1))
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = by_id[:, 1:] != by_id[:, :-1]
    return by_id, slot, first
