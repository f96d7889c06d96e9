"""What the benchmarks compare with: token alignment as per-token loops in plain Python.

The usual way to implement FedMKT (arXiv 2406.02224), Section 3.2: for each source token a loop over
the target vocabulary, per text a dynamic programme in nested loops, per target row a loop over the
kept entries. Only the edit distance of two tokens is compiled code, that of the package
editdistance, and the cells of the dynamic programme are those of a NumPy array. It gives what the
library gives for mode "dtw" with ``duplicate_tokens="first"`` and
``unaligned_positions="one-hot"``, the paper's rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import editdistance
import numpy as np
from rapidfuzz.distance import Levenshtein


def nearest(text: bytes, targets: Sequence[bytes]) -> tuple[bytes, int]:
    """The target at the smallest edit distance, ties to the lexicographically smallest."""
    pairs = [(target, editdistance.eval(text, target)) for target in targets]
    return min(pairs, key=lambda pair: (pair[1], pair[0]))


def nearest_tight(text: bytes, targets: Sequence[bytes]) -> tuple[bytes, int]:
    """The same with the fastest distance there is, and no list: how far a plain loop can go."""
    distance = Levenshtein.distance
    best, smallest = targets[0], distance(text, targets[0])
    for target in targets:
        found = distance(text, target)
        if found < smallest or (found == smallest and target < best):
            best, smallest = target, found
    return best, smallest


def warping_path(source: Sequence[bytes], target: Sequence[bytes]) -> list[tuple[int, int]]:
    """The cheapest path; of equally cheap predecessors the diagonal, then the one above."""
    total = np.full((len(source) + 1, len(target) + 1), np.inf)
    total[0, 0] = 0.0
    for i, one in enumerate(source):
        for j, other in enumerate(target):
            cost = editdistance.eval(one, other)
            total[i + 1, j + 1] = cost + min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j = len(source), len(target)
    path = []
    while i and j:
        path.append((i - 1, j - 1))
        diagonal, above, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if diagonal <= above and diagonal <= left:
            i, j = i - 1, j - 1
        elif above <= left:
            i -= 1
        else:
            j -= 1
    return path[::-1]


def align_and_project(
    source: Sequence[int],
    target: Sequence[int],
    source_bytes: Sequence[bytes],
    target_bytes: Sequence[bytes],
    entries: Sequence[Sequence[tuple[int, float]]],
    table: Mapping[int, int],
) -> list[list[tuple[int, float]]]:
    """One text: for each target row its target ids and log-probabilities.

    ``source`` and ``target`` are the text's tokens under both tokenizers, one a row; the bytes are
    those of all their tokens by id, ``entries`` each source row's kept (id, log-probability), and
    ``table`` leads from source to target ids.
    """
    path = warping_path([source_bytes[i] for i in source], [target_bytes[i] for i in target])
    partners: list[list[int]] = [[] for _ in target]
    for i, j in path:
        partners[j].append(i)
    result = []
    for token, found in zip(target, partners, strict=True):
        if len(found) != 1 or table.get(source[found[0]]) != token:
            result.append([(token, 0.0)])
            continue
        row: dict[int, float] = {}
        for token_id, logprob in entries[found[0]]:
            mapped = table.get(token_id)
            if mapped is not None and mapped not in row:
                row[mapped] = logprob
        result.append(list(row.items()))
    return result
