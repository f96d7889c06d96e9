"""Evidence as a gate sees it: one vector per candidate, on a scale that no other candidate changes.

Every feature is a difference from the learning model's own on the same sample or row, in natural
units. So a candidate's vector depends on itself and on the learning model alone, whoever else is
there, and a gate that was trained with four candidates can be given thirty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from fedfuse.fusion.evidence import LEAST_LOGPROB, Evidence

Features = Float32[ndarray, "units candidates features"]


def build_features(
    evidence: Evidence,
    names: Sequence[str],
    record: Float32[ndarray, "samples candidates two"] | None,
    *,
    per_row: bool,
) -> Features:
    """``[U, C, F]`` the candidates' vectors; U is N samples, or T rows.

    Args:
        evidence: of all candidates.
        names: features to build, of ``FEATURES``.
        record: what ``track_record`` found; needed for the feature of that name.
        per_row: one vector per row instead of one per sample; features of samples are repeated.
    """
    columns: list[ndarray] = []
    for name in names:
        if name in ("entropy", "margin", "kept-mass"):
            values = getattr(evidence, name.replace("-", "_"))
            values = values if per_row else evidence.per_sample(values)
            columns.append(values - values[:, :1])
            continue
        if name == "prompt-loss":
            # The ratio, since what a byte costs depends on the text.
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.log(evidence.prompt_loss / evidence.prompt_loss[:, :1])
            found = [np.where(np.isfinite(ratio), ratio, 0)]
        elif name == "reward":
            found = [evidence.reward - evidence.reward[:, :1]]
        else:
            assert record is not None
            found = [record[:, :, part] - record[:, :1, part] for part in range(record.shape[2])]
        for part in found:
            columns.append(part[evidence.sample_of_row] if per_row else part)
    return np.stack(columns, axis=2).astype(np.float32)


def track_record(
    evidence: Evidence,
    known: Bool[ndarray, " samples"],
    neighbours: int,
) -> Float32[ndarray, "samples candidates two"]:
    """How well each candidate did on the known samples that are most like each sample.

    Alike are samples whose pooled hidden states have the largest cosine, the mean over all samples
    taken off. A known sample is no neighbour of its own.

    Args:
        evidence: with ``state``; without, every known sample is a neighbour of every other.
        known: ``[N]`` samples whose labels may be looked at.
        neighbours: how many to ask, at least 1.

    Returns:
        ``[N, C, 2]`` over the neighbours, of the candidate's label probability per row: the mean of
        its logarithm, which punishes who excludes what happens, and the logarithm of its mean,
        which a few wrong labels cannot spoil.
    """
    logs = np.maximum(evidence.per_sample(evidence.label_logprob), LEAST_LOGPROB)  # [N, C]
    logs = np.where(evidence.available, logs, LEAST_LOGPROB).astype(np.float64)
    if evidence.state is None:
        near = [np.flatnonzero(known & (np.arange(len(known)) != i)) for i in range(len(known))]
        chosen: list[Int64[ndarray, " some"]] | ndarray = near
    else:
        chosen = _nearest(evidence.state.astype(np.float64), known, neighbours)
    record = np.empty((*logs.shape, 2), dtype=np.float32)
    for sample, which in enumerate(chosen):
        found = logs[which] if len(which) else np.full((1, logs.shape[1]), LEAST_LOGPROB)
        record[sample, :, 0] = found.mean(0)
        record[sample, :, 1] = np.log(np.exp(found).mean(0))
    return record


def _nearest(
    state: Float64[ndarray, "samples width"], known: Bool[ndarray, " samples"], neighbours: int
) -> Int64[ndarray, "samples neighbours"]:
    """``[N, m]`` the known samples of largest cosine, itself left out."""
    state = state - state.mean(0)
    state = state / np.maximum(np.linalg.norm(state, axis=1, keepdims=True), 1e-12)
    places = np.flatnonzero(known)
    count = min(neighbours, max(len(places) - 1, 0))
    near = np.empty((len(state), count), dtype=np.int64)
    for start in range(0, len(state), 1024):
        part = slice(start, start + 1024)
        cosine = state[part] @ state[places].T
        cosine[np.arange(len(state))[part, None] == places[None, :]] = -np.inf
        near[part] = places[np.argsort(-cosine, axis=1, kind="stable")[:, :count]]
    return near
