"""How long a vocabulary table takes: cold, from the cache, and by the loop that public code has."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Timings
from benchmarks.material import load_tokenizer
from benchmarks.plain_alignment import nearest, nearest_tight
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table


def measure_tables(
    material: Path, one: str, other: str, timings: Timings, *, repeats: int, sample: int, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Both directions between two tokenizers, in turn with the loop on a sample of the vocabulary.

    Args:
        material: folder of the tokenizers.
        one: a tokenizer's name.
        other: another's.
        timings: what the repeats are added to.
        repeats: of everything.
        sample: source tokens that the loop is timed on, at each repeat others; 0 for no loop.
        seed: of the samples.

    Returns:
        ``seconds`` (cold, the slower direction's median), ``warm_milliseconds`` and, with a sample,
        ``speedup`` (from ``one`` to ``other``); and what they are made of.
    """
    directions = ((one, other), (other, one))
    searches = {pair: _Loop(material, *pair, random.Random(seed)) for pair in directions if sample}
    for _ in range(repeats):
        for pair in directions:
            _cold_and_warm(material, *pair, timings)
            if sample:
                searches[pair].measure(sample, timings)
    names = {pair: "-".join(pair) for pair in directions}
    cold = {name: timings.median(f"cold {name}") for name in names.values()}
    warm = {name: 1e3 * timings.median(f"warm {name}") for name in names.values()}
    results = {"seconds": max(cold.values()), "warm_milliseconds": max(warm.values())}
    raw: dict[str, Any] = {
        "cold_median_seconds": cold,
        "warm_median_milliseconds": warm,
        "known": "as warm, with tokenizers that were asked for their fingerprint before",
        "known_median_milliseconds": {n: 1e3 * timings.median(f"known {n}") for n in cold},
    }
    if sample:
        whole, tight = (
            {
                names[pair]: timings.median(f"{kind} {names[pair]}") * search.rows / sample
                for pair, search in searches.items()
            }
            for kind in ("loop", "tight loop")
        )
        speedup = {name: whole[name] / cold[name] for name in cold}
        results["speedup"] = speedup[names[one, other]]
        raw["brute_force"] = {
            "scaling": "median seconds of the loop on the sample, times searched, over sampled",
            "note": "exact matches are found by a dictionary: the loop skips them, and neither "
            "they nor making the surfaces count as its time",
            "sampled": sample,
            "searched": {names[pair]: search.rows for pair, search in searches.items()},
            "whole_seconds": whole,
            "speedup": speedup,
            "tight": "the same loop with rapidfuzz's distance and without a list of pairs",
            "tight_whole_seconds": tight,
            "speedup_over_tight": {name: tight[name] / cold[name] for name in cold},
        }
    return results, raw


def _cold_and_warm(material: Path, source: str, target: str, timings: Timings) -> None:
    """The whole call: no file in the cache, a file, and fingerprints known as well."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cold", "warm", "known"):
            if kind != "known":
                # New objects: they keep their surfaces and their fingerprint once computed.
                one, other = load_tokenizer(material, source), load_tokenizer(material, target)
            call = partial(minimum_edit_distance_table, one, other, Path(folder))
            timings.measure(f"{kind} {source}-{target}", call)


class _Loop:
    """The loop over all targets, on source tokens drawn from those that have no exact match."""

    def __init__(self, material: Path, source: str, target: str, generator: random.Random) -> None:
        self._pair = f"{source}-{target}"
        self._generator = generator
        wanted = load_tokenizer(material, target).vocabulary_bytes
        ordinary = sorted(wanted.used - wanted.special)
        self._targets = [wanted.bytes[i] for i in ordinary if wanted.bytes[i]]
        exact = set(self._targets)
        given = load_tokenizer(material, source).vocabulary_bytes
        self._queries = [given.bytes[i] for i in sorted(given.used) if given.bytes[i] not in exact]

    @property
    def rows(self) -> int:
        """Source tokens that the loop would have to run for."""
        return len(self._queries)

    def measure(self, sample: int, timings: Timings) -> None:
        """Time the loop on new tokens; with fewer than ``sample`` of them, some come again."""
        queries = self._generator.choices(self._queries, k=sample)
        targets = self._targets
        for name, search in (("loop", nearest), ("tight loop", nearest_tight)):
            timings.measure(f"{name} {self._pair}", partial(_search_all, search, queries, targets))


def _search_all(
    search: Callable[[bytes, Sequence[bytes]], object],
    queries: Sequence[bytes],
    targets: Sequence[bytes],
) -> None:
    for text in queries:
        search(text, targets)
