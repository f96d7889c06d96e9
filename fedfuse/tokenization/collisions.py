"""Entries of a sparse distribution that reached the same token, put together, all rows at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Num
from numpy import ndarray

RULES = ("sum", "first")


def put_together(
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
    largest_first = np.argsort(-logprobs, axis=1, kind="stable")
    ids = np.take_along_axis(ids, largest_first, axis=1)
    logs = np.take_along_axis(logprobs, largest_first, axis=1).astype(np.float64)
    # A stable sort by id keeps the largest entry first among equals: it leads its group.
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    logs = np.take_along_axis(logs, order, axis=1)
    leads = np.ones((rows, c), dtype=bool)
    leads[:, 1:] = ids[:, 1:] != ids[:, :-1]
    follower = np.flatnonzero(~leads.ravel() & (logs.ravel() > -np.inf))
    lost = np.zeros(rows)
    flat = logs.ravel()
    if len(follower):
        leader = np.maximum.accumulate(np.where(leads.ravel(), np.arange(rows * c), 0))[follower]
        if rule == "sum":
            # Relative to the largest: no sum of tiny masses underflows.
            first, place = np.unique(leader, return_index=True)
            share = np.exp(flat[follower] - flat[leader])
            flat[first] += np.log1p(np.add.reduceat(share, place))
        else:
            lost += np.bincount(follower // c, weights=np.exp(flat[follower]), minlength=rows)
        flat[follower] = -np.inf
    # Of equally large entries the one with the smaller place among the given comes first.
    back = np.take_along_axis(largest_first, order, axis=1)
    descending = np.lexsort((back, -logs), axis=1)
    ids = np.take_along_axis(ids, descending, axis=1)
    logs = np.take_along_axis(logs, descending, axis=1)
    lost += np.exp(logs[:, k:]).sum(axis=1)
    ids, logs = ids[:, :k], logs[:, :k]
    width = ids.shape[1]
    kept_ids = np.zeros((rows, k), dtype=np.int64)
    kept = np.full((rows, k), -np.inf, dtype=np.float32)
    kept[:, :width] = logs
    kept_ids[:, :width] = np.where(np.isneginf(logs), 0, ids)
    return kept_ids, kept, lost
