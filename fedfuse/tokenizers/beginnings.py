"""Inputs that begin alike, as the options of a question do, and which of them are read as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

# Least share of a group's tokens that are read once instead of again, for it to be worth a mask.
_WORTH = 0.1
# Most inputs of a group.
_MOST = 100

Ids = Int64[ndarray, " length"]


@dataclass(frozen=True, slots=True)
class Group:
    """Inputs that begin with the same tokens.

    Attributes:
        length: tokens that they begin with, fewer than any of them has.
        inputs: places of the inputs.
        tokens: tokens of all.
    """

    length: int
    inputs: tuple[int, ...]
    tokens: int

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
        found.append(Group(length, tuple(order[begin:end]), sum(some)))
        end = begin
    return [group for group in reversed(found) if group.read <= (1 - _WORTH) * group.tokens]


@dataclass(frozen=True, slots=True)
class Packed:
    """Groups as one input each: a group's beginning, then what follows it of every input in turn.

    For G groups of N inputs, padded to L tokens.

    Attributes:
        input: ``[G, L]`` the input, by its place among the N, that a token is taken from.
        position: ``[G, L]`` the token's position in that input.
        branch: ``[G, L]`` 0 for tokens of the beginning, other numbers for what follows it, one an
            input; padding is a branch of its own.
        group: ``[N]`` the group of each input.
        length: ``[N]`` tokens of its group's beginning.
        moved: ``[N]`` how much further back than in the input what follows the beginning stands.
    """

    input: Int64[ndarray, "groups length"]
    position: Int64[ndarray, "groups length"]
    branch: Int64[ndarray, "groups length"]
    group: Int64[ndarray, " inputs"]
    length: Int64[ndarray, " inputs"]
    moved: Int64[ndarray, " inputs"]


def pack(found: Sequence[Group], sizes: Sequence[Int64[ndarray, " inputs"]]) -> Packed:
    """Lay groups out.

    Args:
        found: G groups.
        sizes: tokens of the inputs of each.
    """
    shape = len(found), max(group.read for group in found)
    source, position, branch = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    moved, first = [], 0
    for row, (group, of) in enumerate(zip(found, sizes, strict=True)):
        beginning, behind = slice(group.length), slice(group.length, group.read)
        rest = of - group.length
        begins = np.cumsum(rest) - rest
        owner = np.repeat(np.arange(len(of)), rest)
        source[row], branch[row] = first, len(of) + 1
        source[row, behind] = first + owner
        branch[row, beginning], branch[row, behind] = 0, owner + 1
        position[row, beginning] = np.arange(group.length)
        position[row, behind] = np.arange(len(owner)) - begins[owner] + group.length
        moved.append(begins)
        first += len(of)
    counts = [len(of) for of in sizes]
    return Packed(
        input=source,
        position=position,
        branch=branch,
        group=np.repeat(np.arange(len(found)), counts),
        length=np.repeat([group.length for group in found], counts),
        moved=np.concatenate(moved),
    )


def _sorted(inputs: Sequence[Ids]) -> tuple[list[bytes], list[int]]:
    """Inputs as bytes that sort as their ids do, and their order."""
    keys = [ids.astype(">u4").tobytes() for ids in inputs]
    return keys, sorted(range(len(keys)), key=keys.__getitem__)


def _alike(one: Ids, other: Ids) -> int:
    """Number of tokens that both begin with."""
    size = min(len(one), len(other))
    differing = np.flatnonzero(one[:size] != other[:size])
    return int(differing[0]) if len(differing) else size
