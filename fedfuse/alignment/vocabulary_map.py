"""The vocabulary table: for every source token the target token at minimum edit distance (MinED).

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: every source token maps to the target token
at the smallest edit distance; ties go to the lexicographically smallest.

Differs from the paper: distances are between bytes, so that a byte-level token which is half a
character is comparable (or between characters, where a byte that is no character counts as one);
special tokens map by role and are nobody's nearest text; between tokens of equal bytes the one in
use (no ``<0xNN>`` token where there is another) comes first, then the smaller id; a tokenizer maps
to itself by the identity. A token may also be spread over its m nearest targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from fedfuse.alignment.nearest import Progress, nearest_texts
from fedfuse.alignment.table_cache import load_arrays, save_arrays
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Part of every cache file's name: raise it when the same tokenizers would give another table.
_CACHE_VERSION = 4
UNITS = ("bytes", "characters")
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
    """Source token to its m nearest target tokens.

    Attributes:
        target: ``[V_source, m]`` target ids, nearest first. A token that has one counterpart by
            meaning (a special token, or any token of one's own vocabulary) has it m times.
        distance: ``[V_source, m]`` edit distances; 0 for mapped specials.
    """

    target: Int64[ndarray, "source_vocab m"]
    distance: Int32[ndarray, "source_vocab m"]

    @property
    def best(self) -> Int64[ndarray, " source_vocab"]:
        """``[V_source]`` the nearest target id of every source id."""
        best: Int64[ndarray, " source_vocab"] = self.target[:, 0]
        return best

    @property
    def weight(self) -> Float32[ndarray, "source_vocab m"]:
        """``[V_source, m]`` how a token's mass is shared among its targets; rows sum to one.

        In inverse proportion to the distance; an exact match takes everything.
        """
        share = 1.0 / np.maximum(self.distance, 1)
        exact = self.distance[:, 0] == 0
        share[exact, 0], share[exact, 1:] = 1.0, 0.0
        weight: Float32[ndarray, "source_vocab m"]
        weight = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
        return weight


def minimum_edit_distance_table(
    source: TextTokenizer,
    target: TextTokenizer,
    cache_dir: Path | None,
    *,
    unit: str = "bytes",
    m: int = 1,
    progress: Progress | None = None,
) -> VocabularyTable:
    """The MinED table from ``source`` to ``target``.

    Args:
        source: V_source tokens.
        target: V_target tokens.
        cache_dir: folder that keeps tables between runs, made if missing; None keeps none. Damaged
            files in it are replaced.
        unit: what an edit changes: "bytes" or "characters".
        m: targets per token; no more than the target has tokens for text.
        progress: called with the number of different texts that are done and of all.

    Raises:
        FedfuseError: for an unknown unit, an m below 1, or a ``target`` without a token for text.
    """
    if unit not in UNITS:
        raise FedfuseError(f"unit of edit distance: expected {', '.join(UNITS)}, got {unit!r}")
    if m < 1:
        raise FedfuseError(f"nearest targets per token: expected 1 or more, got {m}")
    if source.fingerprint == target.fingerprint:
        own = np.arange(source.vocab_size)[:, None].repeat(m, axis=1)
        return VocabularyTable(own, np.zeros(own.shape, dtype=np.int32))
    if cache_dir is None:
        return _build(source.vocabulary_bytes, target.vocabulary_bytes, unit, m, progress)
    pair = f"{source.fingerprint[:32]}-{target.fingerprint[:32]}"
    path = cache_dir / f"mined-v{_CACHE_VERSION}-{unit}-{m}-{pair}.npz"
    table = _load(path, source.vocab_size, target.vocab_size)
    if table is None:
        table = _build(source.vocabulary_bytes, target.vocabulary_bytes, unit, m, progress)
        save_arrays(path, target=table.target, distance=table.distance)
    return table


def _build(
    source: VocabularyBytes, target: VocabularyBytes, unit: str, m: int, progress: Progress | None
) -> VocabularyTable:
    """The table of ordinary tokens by distance, with special tokens set by role on top."""
    id_of = ids_of_texts(target)
    if not id_of:
        raise FedfuseError("target tokenizer: expected at least one token for text, got none")
    row_of = {text: row for row, text in enumerate(sorted(set(source.bytes)))}
    rows = np.fromiter((row_of[text] for text in source.bytes), np.int64, len(source.bytes))
    targets = sorted(id_of)
    m = min(m, len(targets))
    if unit == "bytes":
        places, distances = nearest_texts(list(row_of), targets, m, progress)
    else:
        places, distances = nearest_texts(
            [_characters(text) for text in row_of], list(map(_characters, targets)), m, progress
        )
    ids = np.fromiter((id_of[text] for text in targets), np.int64, len(targets))[places[rows]]
    distance = distances[rows]
    for token_id in source.special:
        special = _special_target(source, target, token_id)
        if special is not None:
            ids[token_id], distance[token_id] = special, 0
    return VocabularyTable(ids, distance)


def _characters(text: bytes) -> str:
    """Text as characters; a byte that is no part of one stays a unit of its own."""
    return text.decode(errors="surrogateescape")


def ids_of_texts(target: VocabularyBytes) -> dict[bytes, int]:
    """Bytes to id, for the target's tokens that stand for text."""
    ordinary = sorted(target.used - target.special, key=lambda i: (i in target.fallback, i))
    result: dict[bytes, int] = {}
    for token_id in ordinary:
        if target.bytes[token_id]:
            result.setdefault(target.bytes[token_id], token_id)
    return result


def _special_target(source: VocabularyBytes, target: VocabularyBytes, token_id: int) -> int | None:
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


def _load(path: Path, source_size: int, target_size: int) -> VocabularyTable | None:
    """The table in the file; None when there is none or it is damaged."""
    arrays = load_arrays(path, "target", "distance")
    if arrays is None:
        return None
    target, distance = arrays
    shaped = target.shape == distance.shape and target.ndim == 2 and len(target) == source_size
    typed = target.dtype == np.int64 and distance.dtype == np.int32
    if not (shaped and target.size and typed and target.min() >= 0 and target.max() < target_size):
        return None
    return VocabularyTable(target, distance)
