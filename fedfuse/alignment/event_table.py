"""Which student tokens each of a teacher's tokens stands for: one table for a pair of tokenizers.

Student tokens are ordered by their spelling in the teacher's tokens. Those whose spelling begins
with the same teacher tokens are then neighbours, so that an event, after any number of teacher
tokens that were read, is a range.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from numpy import ndarray

from fedfuse.alignment.spelling import LONGEST, NO_TOKEN, spellings
from fedfuse.alignment.table_cache import load_arrays, save_arrays
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer

# In place of a token's first byte: the text ends, or nothing is known of it.
END, NOTHING = 256, -1
# Part of every cache file's name: raise it when the same tokenizers would give other spellings.
_CACHE_VERSION = 4


@dataclass(frozen=True, slots=True)
class PrefixLevel:
    """Ranges of student tokens whose spellings agree in their first ``depth + 1`` tokens.

    Attributes:
        key: ``[n]`` start of the range at the depth before, times the teacher's vocabulary size,
            plus the next token of the spelling; ascending.
        start: ``[n]`` first place of each range.
        stop: ``[n]`` place behind its last.
        whole: ``[n]`` place behind the tokens whose spelling ends at this depth, which come first.
        following: ``[n, 32]`` bytes with which tokens of the range go on behind those, a bit each;
            all of them where no spelling ends here.
    """

    key: Int64[ndarray, " n"]
    start: Int64[ndarray, " n"]
    stop: Int64[ndarray, " n"]
    whole: Int64[ndarray, " n"]
    following: UInt8[ndarray, "n 32"]


@dataclass(frozen=True, slots=True)
class EventTable:
    """Events of a teacher's tokens in a student's vocabulary.

    Attributes:
        order: ``[V_student]`` student tokens by spelling; those without one come last.
        place: ``[V_student]`` place of each token in ``order``.
        student_pieces: ``[V_teacher, 16]`` spelling of each teacher token in student tokens.
        levels: prefix ranges by depth.
        opening: ``[2, V_teacher]`` start and stop of the range of each teacher token where nothing
            was read; where there is none, the place of the first token of its own spelling.
        first_byte: ``[V_teacher]`` of each teacher token; ``END`` for the end of a text,
            ``NOTHING`` for other special tokens.
        special: the student's special tokens: where a text has one, unknown or written out, nobody
            teaches it.
    """

    order: Int32[ndarray, " student_vocab"]
    place: Int32[ndarray, " student_vocab"]
    student_pieces: Int32[ndarray, "teacher_vocab longest"]
    levels: list[PrefixLevel]
    opening: Int64[ndarray, "2 teacher_vocab"]
    first_byte: Int64[ndarray, " teacher_vocab"]
    special: frozenset[int] = frozenset()

    def event(
        self, depth: int, before: Int64[ndarray, " *shape"], token: Int64[ndarray, " *shape"]
    ) -> tuple[Int64[ndarray, " *shape"], Int64[ndarray, " *shape"]]:
        """Look up the ranges of student tokens that go on with a teacher token.

        Args:
            depth: teacher tokens read before.
            before: start of the range of student tokens that begin with those; 0 at depth 0.
            token: teacher tokens.

        Returns:
            start and stop; equal where no student token goes on so.
        """
        if depth >= len(self.levels):
            return np.zeros_like(token), np.zeros_like(token)
        level = self.levels[depth]
        key = before * len(self.student_pieces) + token
        at = np.minimum(np.searchsorted(level.key, key), len(level.key) - 1)
        found = (level.key[at] == key) & (before >= 0)
        start = np.where(found, level.start[at], 0)
        return start, np.where(found, level.stop[at], start)

    def ending(
        self, depth: int, before: Int64[ndarray, " *shape"], token: Int64[ndarray, " *shape"]
    ) -> tuple[Int64[ndarray, " *shape"], Int64[ndarray, " *shape"]]:
        """Look up the ranges of student tokens that end before a teacher token.

        The text goes on with a token that no student token goes on with, not even with its first
        byte: so the student writes what was read as a token of its own.

        Args:
            depth: teacher tokens read before, one or more.
            before: start of the range of student tokens that begin with those.
            token: teacher tokens.

        Returns:
            start and stop; equal where the student may write a longer token, or cannot write what
            was read as one.
        """
        if depth > len(self.levels):
            return np.zeros_like(token), np.zeros_like(token)
        level = self.levels[depth - 1]
        at = np.minimum(np.searchsorted(level.start, before), len(level.start) - 1)
        byte = self.first_byte[token]
        bits = level.following[at, byte.clip(0, 255) >> 3] << (byte & 7).astype(np.uint8)
        goes_on = (bits & 128 > 0) & (byte != END)
        found = (level.start[at] == before) & (byte != NOTHING) & ~goes_on
        start = np.where(found, level.start[at], 0)
        return start, np.where(found, level.whole[at], start)


def event_table(
    teacher: TextTokenizer,
    student: TextTokenizer,
    space_shift: int = 0,
    cache_dir: Path | None = None,
) -> EventTable:
    """Build the table of a pair.

    Args:
        teacher: tokenizer of V_teacher tokens.
        student: tokenizer of V_student tokens.
        space_shift: for places where only the student's tokens begin with a space that the text
            does not have (1), only the teacher's do (-1), or both agree (0).
        cache_dir: folder that keeps spellings between runs, made if missing; None keeps none.
            Damaged files in it are replaced.

    Raises:
        FedfuseError: when the folder cannot be written.
    """
    return table_of_spellings(
        _cached_spellings(student, teacher, -space_shift, cache_dir),
        _cached_spellings(teacher, student, space_shift, cache_dir),
        student.vocabulary_bytes,
        teacher.vocabulary_bytes,
    )


def _cached_spellings(
    source: TextTokenizer, target: TextTokenizer, space_shift: int, cache_dir: Path | None
) -> Int32[ndarray, "source_vocab longest"]:
    if cache_dir is None:
        return spellings(source, target, space_shift)
    pair = f"{source.fingerprint[:32]}-{target.fingerprint[:32]}"
    path = cache_dir / f"spellings-v{_CACHE_VERSION}-{space_shift}-{pair}.npz"
    [pieces] = load_arrays(path, "pieces") or [np.empty(0)]
    shaped = pieces.shape == (source.vocab_size, LONGEST) and pieces.dtype == np.int32
    if shaped and pieces.min() >= NO_TOKEN and pieces.max() < target.vocab_size:
        return pieces
    pieces = spellings(source, target, space_shift)
    save_arrays(path, pieces=pieces)
    return pieces


def table_of_spellings(
    teacher_pieces: Int32[ndarray, "student_vocab longest"],
    student_pieces: Int32[ndarray, "teacher_vocab longest"],
    student: VocabularyBytes,
    teacher: VocabularyBytes,
) -> EventTable:
    """Build the table from the spellings of the student's tokens, and of the teacher's."""
    size = len(student_pieces)
    # Tokens without a spelling come last, shorter spellings before longer ones that go on.
    first = np.where(teacher_pieces[:, 0] == NO_TOKEN, size, teacher_pieces[:, 0])
    order = np.lexsort([*teacher_pieces.T[:0:-1], first])
    pieces = teacher_pieces[order].astype(np.int64)
    num_spelled = int(np.searchsorted(first[order], size))
    lengths = np.array([len(text) for text in student.bytes])
    begin, lengths = np.append(0, lengths.cumsum())[order], lengths[order]
    letters = np.frombuffer(b"".join(student.bytes), dtype=np.uint8)
    levels = []
    new = np.zeros(len(order), dtype=bool)
    before = np.zeros(len(order), dtype=np.int64)
    for depth in range(LONGEST):
        column = pieces[:, depth]
        new[1:] |= column[1:] != column[:-1]
        begins = new.copy()
        begins[:1] = True
        starts = np.flatnonzero(begins)
        stops = np.append(starts[1:], len(order))
        kept = (column[starts] != NO_TOKEN) & (starts < num_spelled)
        if not kept.any():
            break
        starts, stops = starts[kept], np.minimum(stops[kept], num_spelled)
        key = before[starts] * size + column[starts]
        last = depth + 1 == LONGEST
        ends = np.ones(len(order), dtype=bool) if last else pieces[:, depth + 1] == NO_TOKEN
        so_far = np.append(0, ends.cumsum())
        whole = starts + so_far[stops] - so_far[starts]
        following = _following(starts, stops, whole, begin, lengths, letters)
        levels.append(PrefixLevel(key, starts, stops, whole, following))
        within = np.repeat(starts, stops - starts)
        before = np.full(len(order), -1, dtype=np.int64)
        before[_ranges(starts, stops)] = within
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    opening = _opening(levels, place, student_pieces)
    first_byte = _first_bytes(teacher, student_pieces)
    order = order.astype(np.int32)
    special = student.special
    return EventTable(order, place, student_pieces, levels, opening, first_byte, special)


def _following(
    starts: Int64[ndarray, " n"],
    stops: Int64[ndarray, " n"],
    whole: Int64[ndarray, " n"],
    begin: Int64[ndarray, " student_vocab"],
    lengths: Int64[ndarray, " student_vocab"],
    letters: UInt8[ndarray, " bytes"],
) -> UInt8[ndarray, "n 32"]:
    """See ``PrefixLevel``; the token at a place is ``lengths`` letters from ``begin`` on."""
    some = np.flatnonzero(whole > starts)
    following = np.ones((len(starts), 256), dtype=bool)
    following[some] = False
    of, places = np.repeat(some, stops[some] - whole[some]), _ranges(whole[some], stops[some])
    read = lengths[starts[of]]
    longer = lengths[places] > read
    following[of[longer], letters[(begin[places] + read)[longer]]] = True
    return np.packbits(following, axis=1)


def _first_bytes(
    teacher: VocabularyBytes, student_pieces: Int32[ndarray, "teacher_vocab longest"]
) -> Int64[ndarray, " teacher_vocab"]:
    """See ``EventTable``."""
    first = np.array([text[0] if text else NOTHING for text in teacher.bytes], dtype=np.int64)
    first[list(teacher.special)] = NOTHING
    ends = [i for i, roles in teacher.roles.items() if "eos" in roles]
    first[[i for i in ends if student_pieces[i, 0] != NO_TOKEN]] = END
    return first


def _opening(
    levels: list[PrefixLevel],
    place: Int32[ndarray, " student_vocab"],
    student_pieces: Int32[ndarray, "teacher_vocab longest"],
) -> Int64[ndarray, "2 teacher_vocab"]:
    """See ``EventTable``; an empty range for a token without a spelling."""
    first = student_pieces[:, 0]
    start = np.where(first == NO_TOKEN, 0, place[first]).astype(np.int64)
    opening = np.stack([start, start + (first != NO_TOKEN)])
    for level in levels[:1]:
        opening[:, level.key] = level.start, level.stop
    return opening


def _ranges(start: Int64[ndarray, " n"], stop: Int64[ndarray, " n"]) -> Int64[ndarray, " total"]:
    """All places of some ranges, one range behind the other."""
    length = stop - start
    ends = length.cumsum()
    places: Int64[ndarray, " total"]
    places = np.arange(length.sum()) + np.repeat(start - ends + length, length)
    return places
