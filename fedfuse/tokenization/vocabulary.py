"""The vocabulary table: for every source token the target token at minimum edit distance (MinED).

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: every source token maps to the target token
at the smallest edit distance; ties go to the lexicographically smallest.

Differs from the paper: distances are between bytes, so that a byte-level token which is half a
character is comparable; special tokens map by role and are nobody's nearest text; between tokens of
equal bytes the one in use (no ``<0xNN>`` token where there is another) comes first, then the
smaller id; a tokenizer maps to itself by the identity.

Exact without comparing everything: equal bytes by hash first. For the others the length difference
bounds the distance from below, so targets are visited in rings of growing length difference, and a
source token is done when its best distance is below the next ring's bound.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from fedfuse.errors import FedfuseError
from fedfuse.tokenization.surface import Surfaces, surfaces
from fedfuse.tokenization.tokenizer import TextTokenizer

# Part of every cache file's name: raise it when the same tokenizers would give another table.
_CACHE_VERSION = 1
# Distances computed at once: 2^22 cells stay within a few megabytes, also at four bytes each.
_CELLS = 1 << 22
# What a special token may become, by its role, best first. An id with several roles (GPT-2's end of
# text) is predicted as an end, so ends come first.
_ROLE_TARGETS = {
    "eos": ("eos", "sep", "bos", "cls"),
    "sep": ("sep", "eos", "cls", "bos"),
    "bos": ("bos", "cls", "eos", "sep"),
    "cls": ("cls", "bos", "sep", "eos"),
    "pad": ("pad", "eos", "sep"),
    "unk": ("unk",),
    "mask": ("mask",),
}


@dataclass(frozen=True, slots=True)
class VocabularyTable:
    """Source token to target token.

    Attributes:
        target: ``[V_source]`` the target id of every source id.
        distance: ``[V_source]`` edit distance between the two in bytes; 0 for mapped specials.
    """

    target: Int64[ndarray, " source_vocab"]
    distance: Int32[ndarray, " source_vocab"]


def minimum_edit_distance_table(
    source: TextTokenizer, target: TextTokenizer, cache_dir: Path | None
) -> VocabularyTable:
    """The MinED table from ``source`` to ``target``.

    Args:
        source: V_source tokens.
        target: V_target tokens.
        cache_dir: folder that keeps tables between runs, made if missing; None keeps none. Damaged
            files in it are replaced.

    Raises:
        FedfuseError: when ``target`` has no token that stands for text.
    """
    if source.fingerprint == target.fingerprint:
        size = source.vocab_size
        return VocabularyTable(np.arange(size), np.zeros(size, dtype=np.int32))
    if cache_dir is None:
        return _build(surfaces(source), surfaces(target))
    name = f"mined-v{_CACHE_VERSION}-{source.fingerprint[:32]}-{target.fingerprint[:32]}.npz"
    path = cache_dir / name
    table = _load(path, source.vocab_size, target.vocab_size)
    if table is None:
        table = _build(surfaces(source), surfaces(target))
        _save(path, table)
    return table


def _build(source: Surfaces, target: Surfaces) -> VocabularyTable:
    """The table of ordinary tokens by distance, with special tokens set by role on top."""
    id_of = _ids_of_texts(target)
    if not id_of:
        raise FedfuseError("target tokenizer has no token for text; allowed: at least one")
    unique = sorted(set(source.bytes))
    texts, distances = _nearest(unique, sorted(id_of))
    row_of = {text: row for row, text in enumerate(unique)}
    rows = np.array([row_of[text] for text in source.bytes], dtype=np.int64)
    ids = np.array([id_of[text] for text in texts], dtype=np.int64)[rows]
    distance = distances[rows]
    for token_id in source.special:
        special = _special_target(source, target, token_id)
        if special is not None:
            ids[token_id], distance[token_id] = special, 0
    return VocabularyTable(ids, distance)


def _ids_of_texts(target: Surfaces) -> dict[bytes, int]:
    """Bytes to id, for the target's tokens that stand for text."""
    ordinary = sorted(target.used - target.special, key=lambda i: (i in target.fallback, i))
    result: dict[bytes, int] = {}
    for token_id in ordinary:
        if target.bytes[token_id]:
            result.setdefault(target.bytes[token_id], token_id)
    return result


def _special_target(source: Surfaces, target: Surfaces, token_id: int) -> int | None:
    """The target's special token of the same role or, without a role, of the same name."""
    id_of_role = {role: i for i, roles in target.roles.items() for role in roles}
    own = source.roles.get(token_id, ())
    for role, wanted in _ROLE_TARGETS.items():
        if role in own:
            for candidate in wanted:
                if candidate in id_of_role:
                    return id_of_role[candidate]
    same = [i for i in target.special if target.bytes[i] == source.bytes[token_id]]
    return min(same, default=None)


def _nearest(
    source: Sequence[bytes], target: Sequence[bytes]
) -> tuple[list[bytes], Int32[ndarray, " n"]]:
    """For each source text the nearest target text, ties to the smallest, and the distance.

    Args:
        source: n different texts.
        target: different texts, sorted.
    """
    rank_of = {text: rank for rank, text in enumerate(target)}
    best_rank = np.array([rank_of.get(text, -1) for text in source], dtype=np.int64)
    distance = np.zeros(len(source), dtype=np.int32)
    ranks_of_length = _by_length(target)
    missing = np.flatnonzero(best_rank < 0)
    for length, within in _by_length([source[i] for i in missing.tolist()]).items():
        rows = missing[within]
        queries = [source[i] for i in rows.tolist()]
        best_rank[rows], distance[rows] = _search(queries, length, target, ranks_of_length)
    return [target[rank] for rank in best_rank.tolist()], distance


def _by_length(texts: Sequence[bytes]) -> dict[int, Int64[ndarray, " some"]]:
    """Length to the places of the texts of that length, ascending."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    values, starts = np.unique(lengths[order], return_index=True)
    return (
        dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
    )


def _search(
    queries: list[bytes],
    length: int,
    target: Sequence[bytes],
    ranks_of_length: dict[int, Int64[ndarray, " some"]],
) -> tuple[Int64[ndarray, " n"], Int32[ndarray, " n"]]:
    """Rank of the nearest target and its distance, for queries of one length."""
    unreached = np.iinfo(np.int32).max
    distance = np.full(len(queries), unreached, dtype=np.int32)
    rank = np.full(len(queries), len(target), dtype=np.int64)
    rings = sorted(ranks_of_length, key=lambda other: abs(other - length))
    for other in rings:
        # A target at the bound itself may still win a tie.
        active = np.flatnonzero(distance >= abs(other - length))
        if not len(active):
            break
        ranks = ranks_of_length[other]
        texts = [target[r] for r in ranks]
        step = max(1, _CELLS // len(texts))
        for part in np.split(active, range(step, len(active), step)):
            cells = _distances([queries[i] for i in part], texts, max(length, other))
            column = cells.argmin(axis=1)  # the first of equals is the smallest text
            found, found_rank = cells[np.arange(len(part)), column], ranks[column]
            closer = found < distance[part]
            tied = (found == distance[part]) & (found_rank < rank[part])
            better = part[closer | tied]
            distance[better] = found[closer | tied]
            rank[better] = found_rank[closer | tied]
    return rank, distance


def _distances(queries: list[bytes], texts: list[bytes], longest: int) -> ndarray:
    """Edit distances ``[queries, texts]``, in one byte each where they fit."""
    dtype = np.uint8 if longest <= np.iinfo(np.uint8).max else np.int32
    return process.cdist(queries, texts, scorer=Levenshtein.distance, dtype=dtype)


def _save(path: Path, table: VocabularyTable) -> None:
    """Write whole or not at all: another process may be reading or writing the same table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, target=table.target, distance=table.distance)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _load(path: Path, source_size: int, target_size: int) -> VocabularyTable | None:
    """The table in the file; None when there is none or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            target, distance = arrays["target"], arrays["distance"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    shaped = target.shape == distance.shape == (source_size,)
    typed = target.dtype == np.int64 and distance.dtype == np.int32
    if not (shaped and typed and target.min() >= 0 and target.max() < target_size):
        return None
    return VocabularyTable(target, distance)
