"""Entries of a sparse distribution that reached the same token, put together, all rows at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Num
from numpy import ndarray

RULES = ("sum", "first")


def sum_duplicates(
    ids: Int64[ndarray, "rows c"], logprobs: Num[ndarray, "rows c"], k: int, rule: str
) -> tuple[Int64[ndarray, "rows k"], Float32[ndarray, "rows k"], Float64[ndarray, " rows"]]:
    """Merge entries of a row that share an id and keep the k largest.

    Args:
        ids: token ids; any in unused slots.
        logprobs: float32 or float64 log-probabilities; -inf in unused slots.
        k: entries to keep.
        rule: "sum" adds what collides up; "first" keeps the largest and loses the rest.

    Returns:
        Ids (0 in unused slots), log-probabilities, descending, and the mass lost in each row.
    """
    rows, c = ids.shape
    if c > k:
        return _merge(ids, logprobs, k, rule)
    kept_ids = np.zeros((rows, k), dtype=np.int64)
    kept = np.full((rows, k), -np.inf, dtype=np.float32)
    lost = np.zeros(rows)
    ready = _ready(ids, logprobs) if c else np.ones(rows, dtype=bool)
    kept_ids[ready, :c], kept[ready, :c] = ids[ready], logprobs[ready]
    merge = ~ready
    if merge.any():
        kept_ids[merge], kept[merge], lost[merge] = _merge(ids[merge], logprobs[merge], k, rule)
    return kept_ids, kept, lost


def _ready(
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
    ids: Int64[ndarray, "rows c"], logprobs: Num[ndarray, "rows c"], k: int, rule: str
) -> tuple[Int64[ndarray, "rows k"], Float32[ndarray, "rows k"], Float64[ndarray, " rows"]]:
    rows, c = ids.shape
    order = _descending(logprobs)
    ids = np.take_along_axis(ids, order, axis=1)
    logs = np.take_along_axis(logprobs, order, axis=1).astype(np.float64)
    leader, follower = _followers(ids, logs)
    lost = np.zeros(rows)
    flat = logs.ravel()
    if len(follower):
        if rule == "sum":
            # Relative to the largest: no sum of tiny masses underflows.
            first, place = np.unique(leader, return_index=True)
            share = np.exp(flat[follower] - flat[leader])
            flat[first] += np.log1p(np.add.reduceat(share, place))
        else:
            lost += np.bincount(follower // c, weights=np.exp(flat[follower]), minlength=rows)
        flat[follower] = -np.inf
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
    """What sorts each row, largest first; equal ones stay in their order."""
    return np.argsort(-values, axis=1, kind="stable")


def _followers(
    ids: Int64[ndarray, "rows c"], logs: Float64[ndarray, "rows c"]
) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"]]:
    """Used slots whose id stands further left in the row already, and the slots where it stands.

    Returns:
        Flat positions: of the first slot with the id (ascending), and of the later slot.
    """
    rows, c = ids.shape
    # Sorting id and slot as one number is several times faster than sorting slots by their id.
    by_id = np.sort(ids * c + np.arange(c), axis=1)
    token, slot = np.divmod(by_id, c)
    same = np.zeros((rows, c), dtype=bool)
    same[:, 1:] = token[:, 1:] == token[:, :-1]
    at = np.flatnonzero(same)
    if not len(at):
        return at, at
    starts = np.maximum.accumulate(np.where(same.ravel(), 0, np.arange(rows * c)))[at]
    flat = slot.ravel()
    base = at // c * c
    leader, follower = base + flat[starts], base + flat[at]
    used = logs.ravel()[follower] > -np.inf
    leader, follower = leader[used], follower[used]
    order = np.argsort(leader, kind="stable")
    return leader[order], follower[order]
