"""Deltas: rows that hardly changed since they were last sent are not sent again.

Not in the papers; a message of knowledge is a small difference when a model has learned little.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from fedfuse.knowledge.record import Knowledge, check
from fedfuse.sparse import sum_duplicates

# Rows at a time: what comparing them needs stays small.
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Delta:
    """Rows of knowledge that replace those of an earlier version, the base.

    Attributes:
        row_mask: ``[T]`` True where a row is replaced.
        knowledge: the replacing rows alone, on all samples.
        base: ``digest`` of the base.
    """

    row_mask: Bool[ndarray, " rows"]
    knowledge: Knowledge
    base: str


def compute_delta(base: Knowledge, new: Knowledge, threshold: float) -> Delta:
    """Select the rows that moved by ``threshold`` or more since ``base``.

    Args:
        base: what the receiver has, on the same label rows of the same model.
        new: what it should have.
        threshold: total variation, in [0, 1]; 0 selects every row.
    """
    row_mask = distances(base, new) >= threshold
    return Delta(row_mask, select_rows(new, row_mask), digest(base))


def apply_delta(base: Knowledge, delta: Delta) -> Knowledge:
    """Replace the rows of ``base`` that the delta has.

    Raises:
        FedfuseError: for a delta that does not fit the base.
    """
    found = digest(base)
    check("base", delta.base, found, delta.base == found)
    new, mask = delta.knowledge, delta.row_mask
    check("row_mask", f"{len(mask)} rows", base.num_rows, len(mask) == base.num_rows)
    for name in ("tokenizer", "public"):
        theirs, ours = getattr(new, name), getattr(base, name)
        check(name, theirs, ours, theirs == ours)
    expected = {"offsets": _offsets(base, mask), "label_bytes": base.label_bytes}
    for name, values in expected.items():
        same = np.array_equal(getattr(new, name), values)
        check(name, "other counts", "those of the replaced rows", same)
    k = max(base.k, new.k)
    indices, logprobs = (_widen(a, k) for a in (base.indices, base.logprobs))
    tail_logprob, label = base.tail_logprob.copy(), base.label_logprob.copy()
    indices[mask], logprobs[mask] = _widen(new.indices, k), _widen(new.logprobs, k)
    tail_logprob[mask], label[mask] = new.tail_logprob, new.label_logprob
    return replace(
        base, indices=indices, logprobs=logprobs, tail_logprob=tail_logprob, label_logprob=label
    )


def select_rows(knowledge: Knowledge, row_mask: Bool[ndarray, " rows"]) -> Knowledge:
    """Some label rows, on the same samples."""
    return replace(
        knowledge,
        offsets=_offsets(knowledge, row_mask),
        indices=knowledge.indices[row_mask],
        logprobs=knowledge.logprobs[row_mask],
        tail_logprob=knowledge.tail_logprob[row_mask],
        label_logprob=knowledge.label_logprob[row_mask],
    )


def distances(one: Knowledge, other: Knowledge) -> Float64[ndarray, " rows"]:
    """``[T]`` total variation between rows, in [0, 1].

    What is outside a row's entries counts as one class, and a token that only one side kept as if
    the other had none of it.

    Raises:
        FedfuseError: for other numbers of rows.
    """
    check("num_rows", other.num_rows, one.num_rows, other.num_rows == one.num_rows)
    parts = [
        _distances(one, other, slice(start, start + _ROWS))
        for start in range(0, one.num_rows, _ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def digest(knowledge: Knowledge) -> str:
    """SHA-256 (hex) of all fields: equal digests, equal knowledge."""
    hashed = hashlib.sha256(f"{knowledge.tokenizer} {knowledge.public}".encode())
    for name, values in sorted(knowledge.arrays().items()):
        hashed.update(f"{name} {values.dtype.str} {values.shape}".encode())
        hashed.update(np.ascontiguousarray(values).tobytes())
    return hashed.hexdigest()


def _distances(one: Knowledge, other: Knowledge, rows: slice) -> Float64[ndarray, " rows"]:
    mass = [np.exp(known.logprobs[rows].astype(np.float64)) for known in (one, other)]
    rest = [np.exp(known.tail_logprob[rows].astype(np.float64)) for known in (one, other)]
    ids = np.concatenate([one.indices[rows], other.indices[rows]], axis=1)
    moved = np.concatenate([mass[0], -mass[1]], axis=1)
    _, moved = sum_duplicates(ids, moved)
    kept = np.abs(moved).cumsum(axis=1)[:, -1]  # from left to right: a 0 changes no bit of it
    total: Float64[ndarray, " rows"] = (kept + np.abs(rest[0] - rest[1])) / 2
    return total


def _offsets(knowledge: Knowledge, row_mask: Bool[ndarray, " rows"]) -> Int64[ndarray, " n_plus_1"]:
    """Where each sample's rows start when only some are left."""
    before = np.concatenate([[0], np.cumsum(row_mask)])
    offsets: Int64[ndarray, " n_plus_1"] = before[knowledge.offsets]
    return offsets


def _widen(values: ndarray, k: int) -> ndarray:
    """A copy with k slots a row; new ones are unused."""
    fill = -np.inf if values.dtype.kind == "f" else 0
    wide = np.full((len(values), k), fill, dtype=values.dtype)
    wide[:, : values.shape[1]] = values
    return wide
