"""What changed since it was last told: rows that stayed as they were need not travel again.

Not in the papers; a message of knowledge is a small difference when a model has learned little.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.checking import check
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import sum_duplicates

# Rows at a time: what comparing them needs stays small.
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Update:
    """Some rows of knowledge that its receiver holds in an earlier form.

    Attributes:
        rows: ``[T]`` True where a row is told anew.
        knowledge: those rows alone, on all samples.
        before: ``digest`` of what the receiver must hold.
    """

    rows: Bool[ndarray, " rows"]
    knowledge: Knowledge
    before: str


def difference(before: Knowledge, now: Knowledge, threshold: float) -> Update:
    """The rows that moved by ``threshold`` or more since ``before``.

    Args:
        before: what the receiver holds, on the same label rows of the same model.
        now: what is to be told.
        threshold: total variation, in [0, 1]; 0 tells every row.
    """
    rows = distances(before, now) >= threshold
    return Update(rows, take(now, rows), digest(before))


def overlay(before: Knowledge, update: Update) -> Knowledge:
    """What the receiver holds after an update.

    Raises:
        FedfuseError: for an update that does not fit what is held.
    """
    held = digest(before)
    check("before", update.before, held, update.before == held)
    check("rows", len(update.rows), before.rows, len(update.rows) == before.rows)
    new, rows = update.knowledge, update.rows
    for name in ("tokenizer", "public"):
        told, known = getattr(new, name), getattr(before, name)
        check(name, told, known, told == known)
    expected = {"offsets": _offsets(before, rows), "label_bytes": before.label_bytes}
    for name, values in expected.items():
        same = np.array_equal(getattr(new, name), values)
        check(name, "other counts", "those of the rows that are told", same)
    k = max(before.k, new.k)
    indices, logprobs = (_widen(a, k) for a in (before.indices, before.logprobs))
    tail_logprob, label = before.tail_logprob.copy(), before.label_logprob.copy()
    indices[rows], logprobs[rows] = _widen(new.indices, k), _widen(new.logprobs, k)
    tail_logprob[rows], label[rows] = new.tail_logprob, new.label_logprob
    return replace(
        before, indices=indices, logprobs=logprobs, tail_logprob=tail_logprob, label_logprob=label
    )


def take(knowledge: Knowledge, rows: Bool[ndarray, " rows"]) -> Knowledge:
    """Some label rows, on the same samples."""
    return replace(
        knowledge,
        offsets=_offsets(knowledge, rows),
        indices=knowledge.indices[rows],
        logprobs=knowledge.logprobs[rows],
        tail_logprob=knowledge.tail_logprob[rows],
        label_logprob=knowledge.label_logprob[rows],
    )


def distances(one: Knowledge, other: Knowledge) -> Float64[ndarray, " rows"]:
    """``[T]`` total variation between rows, in [0, 1].

    What is outside a row's entries counts as one class, and a token that only one side kept as if
    the other had none of it.

    Raises:
        FedfuseError: for other numbers of rows.
    """
    if one.rows != other.rows:
        raise FedfuseError(f"knowledge has {other.rows} rows; allowed: {one.rows}, to be compared")
    parts = [
        _distances(one, other, slice(start, start + _ROWS)) for start in range(0, one.rows, _ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def digest(knowledge: Knowledge) -> str:
    """Of all that knowledge holds: equal digests, equal knowledge."""
    summed = hashlib.sha256(f"{knowledge.tokenizer} {knowledge.public}".encode())
    for name, values in sorted(knowledge.arrays().items()):
        summed.update(f"{name} {values.dtype.str} {values.shape}".encode())
        summed.update(np.ascontiguousarray(values).tobytes())
    return summed.hexdigest()


def _distances(one: Knowledge, other: Knowledge, rows: slice) -> Float64[ndarray, " rows"]:
    mass = [np.exp(known.logprobs[rows].astype(np.float64)) for known in (one, other)]
    rest = [np.exp(known.tail_logprob[rows].astype(np.float64)) for known in (one, other)]
    ids = np.concatenate([one.indices[rows], other.indices[rows]], axis=1)
    moved = np.concatenate([mass[0], -mass[1]], axis=1)
    _, moved = sum_duplicates(ids, moved)
    kept = np.abs(moved).cumsum(axis=1)[:, -1]  # from left to right: a 0 changes no bit of it
    total: Float64[ndarray, " rows"] = (kept + np.abs(rest[0] - rest[1])) / 2
    return total


def _offsets(knowledge: Knowledge, rows: Bool[ndarray, " rows"]) -> Int64[ndarray, " n_plus_1"]:
    """Where each sample's rows start when only some are left."""
    before = np.concatenate([[0], np.cumsum(rows)])
    offsets: Int64[ndarray, " n_plus_1"] = before[knowledge.offsets]
    return offsets


def _widen(values: ndarray, k: int) -> ndarray:
    """A copy with k slots a row; new ones are unused."""
    fill = -np.inf if values.dtype.kind == "f" else 0
    wide = np.full((len(values), k), fill, dtype=values.dtype)
    wide[:, : values.shape[1]] = values
    return wide
