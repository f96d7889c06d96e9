"""Every entry of real tables: ``python -m benchmarks.mined_oracle --material FOLDER --json FILE``.

GPT-2 to Llama 2 and back, in both units, against a search that leaves nothing out: the distance of
every source text to every target text. Nothing is shared with the library's search but the
compiled edit distance of two texts. Exits with 1 when any entry differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from numpy import ndarray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.progress import track

from benchmarks.harness import File, Material, Measured, benchmark
from benchmarks.material import load_tokenizer
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer

TOKENIZERS = ("gpt2", "llama2")
UNITS = ("bytes", "characters")
# Source texts at once: with 50,000 targets at two bytes a cell, 50 MB.
_CHUNK = 512
# Mismatches that are written down; all are counted.
_SHOWN = 10
# A special token's roles in the order in which they count, and what it becomes, best first.
_BECOMES = (
    ("eos", "eos sep bos cls"),
    ("sep", "sep eos cls bos"),
    ("bos", "bos cls eos sep"),
    ("cls", "cls bos sep eos"),
    ("pad", "pad eos sep"),
    ("unk", "unk"),
    ("mask", "mask"),
)


def check(
    table: VocabularyTable, source: TextTokenizer, target: TextTokenizer, unit: str
) -> dict[str, Any]:
    """Compare each entry with the oracle's: counts, and the ``first`` mismatches.

    An exact match is a source token for text whose text some target token has.
    """
    targets, distances, exact = oracle(source, target, unit)
    expected = np.stack([targets, distances], axis=1)
    found = np.stack([table.target[:, 0], table.distance[:, 0]], axis=1)
    same_target, same_distance = (found == expected).T
    wrong = np.flatnonzero(~(same_distance & same_target)).tolist()
    return {
        "entries": len(targets),
        "equal_distances": int(same_distance.sum()),
        "equal_targets": int(same_target.sum()),
        "exact_matches": exact,
        "mismatches": len(wrong),
        "first": [
            {
                "source": i,
                "text": repr(source.token_bytes[i]),
                "found": found[i].tolist(),
                "expected": expected[i].tolist(),
            }
            for i in wrong[:_SHOWN]
        ],
    }


def oracle(
    source: TextTokenizer,
    target: TextTokenizer,
    unit: str,
    only: Sequence[int] | None = None,
) -> tuple[ndarray, ndarray, int]:
    """Target id and distance of every source id (or of those in ``only``), and the exact matches.

    The smallest distance, then the lexicographically smallest text, then of the tokens with that
    text the one in use, then the smaller id.
    """
    given, wanted = source.vocabulary_bytes, target.vocabulary_bytes
    id_of = _candidates(wanted)
    texts = sorted(id_of)
    wished = range(source.vocab_size) if only is None else only
    queries = sorted({given.bytes[i] for i in wished})
    nearest: dict[bytes, tuple[int, int]] = {}
    for start in range(0, len(queries), _CHUNK):
        chunk = queries[start : start + _CHUNK]
        cells = process.cdist(
            [as_unit(text, unit) for text in chunk],
            [as_unit(text, unit) for text in texts],
            scorer=Levenshtein.distance,
            dtype=np.uint16,
            workers=-1,
        )
        column = cells.argmin(axis=1)  # the first of equals is the smallest text
        for text, place, row in zip(chunk, column.tolist(), cells, strict=True):
            nearest[text] = id_of[texts[place]], int(row[place])
    pairs = [_special(given, wanted, i) or nearest[given.bytes[i]] for i in wished]
    exact = sum(given.bytes[i] in id_of and i not in given.special for i in wished)
    ids, distances = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return ids, distances, exact


def as_unit(text: bytes, unit: str) -> bytes | str:
    """What the distance is counted in; a byte that is no part of a character is one by itself."""
    return text if unit == "bytes" else text.decode("utf-8", "surrogateescape")


def _candidates(target: VocabularyBytes) -> dict[bytes, int]:
    """Every text that a target token stands for, with the id that is taken for it."""
    best: dict[bytes, tuple[bool, int]] = {}
    for token_id in target.used - target.special:
        text, rank = target.bytes[token_id], (token_id in target.fallback, token_id)
        if text and (text not in best or rank < best[text]):
            best[text] = rank
    return {text: token_id for text, (_, token_id) in best.items()}


def _special(
    source: VocabularyBytes, target: VocabularyBytes, token_id: int
) -> tuple[int, int] | None:
    """A special token's target and distance: by role, else by name; None for any other token."""
    if token_id not in source.special:
        return None
    own = source.roles.get(token_id, ())
    for role, becomes in _BECOMES:
        for wanted in becomes.split() if role in own else ():
            for candidate, roles in target.roles.items():
                if wanted in roles:
                    return candidate, 0
    named = [i for i in target.special if target.bytes[i] == source.bytes[token_id]]
    return (min(named), 0) if named else None


@benchmark
def main(
    material: Material,
    file: File,
    units: Annotated[str, typer.Option(help="Units of distance, by commas.")] = ",".join(UNITS),
) -> Iterator[Measured]:
    """Check both directions in all units and write the counts."""
    counts: dict[str, dict[str, Any]] = {}
    jobs = [(*pair, unit) for pair in (TOKENIZERS, TOKENIZERS[::-1]) for unit in units.split(",")]
    for source, target, unit in track(jobs, "tables", console=Console(stderr=True)):
        pair = load_tokenizer(material, source), load_tokenizer(material, target)
        table = minimum_edit_distance_table(*pair, None, unit=unit)
        counts[f"{source}-{target} {unit}"] = check(table, *pair, unit)
    yield Measured(
        {name: {k: v for k, v in count.items() if k != "first"} for name, count in counts.items()},
        {"first_mismatches": {name: count["first"] for name, count in counts.items()}},
    )
    if any(count["mismatches"] for count in counts.values()):
        sys.exit(1)
