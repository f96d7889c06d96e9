"""Inputs that begin alike, as the options of a question do, and which of them are read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.data.sampling import parts_by_length

# Least share of a group's tokens that are read once instead of again, for it to be worth two passes
# in place of one.
_WORTH = 0.3
# Most inputs of a group.
_MOST = 100

Ids = Int64[ndarray, " length"]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which inputs a model can read together with others that begin alike.

    Attributes:
        longest: tokens of an input, at most, padding between its beginning and its rest included.
        mixed: whether beginnings of different lengths can be in one pass.
    """

    longest: int
    mixed: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Inputs that begin with the same tokens.

    Attributes:
        length: tokens that they begin with, fewer than any of them has.
        inputs: places of the inputs.
        longest: tokens of the longest.
        tokens: tokens of all.
    """

    length: int
    inputs: tuple[int, ...]
    longest: int
    tokens: int

    @property
    def rest(self) -> int:
        """Most tokens that follow the beginning."""
        return self.longest - self.length

    @property
    def read(self) -> int:
        """Tokens that are read: the beginning once, and what follows it of each."""
        return self.tokens - (len(self.inputs) - 1) * self.length


def containing(inputs: Sequence[Ids]) -> Int64[ndarray, " inputs"]:
    """For each of N inputs the place of one that begins with it, and that no other begins with."""
    keys, order = _sorted(inputs)  # all that begin with an input follow it
    found = np.arange(len(keys))
    for place, after in reversed(list(pairwise(order))):
        if keys[after].startswith(keys[place]):
            found[place] = found[after]
    return found


def groups(inputs: Sequence[Ids], longest: int) -> list[Group]:
    """Groups of inputs for which it is worth to read what they share once.

    Of all ways to cut the sorted inputs into groups, the one with the fewest tokens to read.

    Args:
        inputs: token ids of N inputs, none of which begins with another.
        longest: tokens of an input, at most; longer ones are in no group.
    """
    _, order = _sorted(inputs)
    order = [place for place in order if len(inputs[place]) <= longest]
    sizes = [len(inputs[place]) for place in order]
    alike = [_alike(inputs[one], inputs[other]) for one, other in pairwise(order)]
    fewest, begins = [0], []  # tokens to read of the first n inputs, and where their last group is
    for last, size in enumerate(sizes):
        least, begin, tokens, length = fewest[last] + size, last, size, size
        for first in range(last - 1, max(-1, last - _MOST), -1):
            tokens, length = tokens + sizes[first], min(length, alike[first])
            if not length:
                break
            read = fewest[first] + tokens - (last - first) * length
            if read < least:
                least, begin = read, first
        fewest.append(least)
        begins.append(begin)
    found: list[Group] = []
    end = len(order)
    while end:
        begin = begins[end - 1]
        length = min(alike[begin : end - 1], default=sizes[begin] - 1)
        some = sizes[begin:end]
        found.append(Group(length, tuple(order[begin:end]), max(some), sum(some)))
        end = begin
    return [group for group in reversed(found) if group.read <= (1 - _WORTH) * group.tokens]


def parts(
    found: Sequence[Group], max_tokens: int, pass_cost: int, sharing: Sharing
) -> Iterator[list[Group]]:
    """Groups that can be read together.

    Args:
        found: groups.
        max_tokens: a part's inputs times the tokens of the longest, at most; a larger group is a
            part alone. 0 for no limit.
        pass_cost: see ``parts_by_length``.
        sharing: which the model can read together.
    """
    lengths = np.array([group.length for group in found], dtype=np.int64)
    for near in parts_by_length(lengths, 0, pass_cost):
        part: list[Group] = []
        for group in (found[place] for place in near):
            more = [*part, group]
            size = max(g.length for g in more) + max(g.rest for g in more)
            full = max_tokens and sum(len(g.inputs) for g in more) * size > max_tokens
            alike = sharing.mixed or group.length == more[0].length
            if part and (full or size > sharing.longest or not alike):
                yield part
                more = [group]
            part = more
        yield part


def _sorted(inputs: Sequence[Ids]) -> tuple[list[bytes], list[int]]:
    """Inputs as bytes that sort as their ids do, and their order."""
    keys = [ids.astype(">u4").tobytes() for ids in inputs]
    return keys, sorted(range(len(keys)), key=keys.__getitem__)


def _alike(one: Ids, other: Ids) -> int:
    """Number of tokens that both begin with."""
    size = min(len(one), len(other))
    differing = np.flatnonzero(one[:size] != other[:size])
    return int(differing[0]) if len(differing) else size
