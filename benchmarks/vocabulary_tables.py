"""How long tables of two vocabularies take: cold, cached, and by the loop that public code has."""

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
from fedfuse.alignment.event_table import EventTable, event_table
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.tokenizers.tokenizer import TextTokenizer


def measure_tables(
    material: Path, one: str, other: str, *, timings: Timings, repeats: int, sample: int, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Both directions between two tokenizers, in turn with the loop.

    The loop is timed on a ``sample`` of source tokens, at each repeat others; with 0 there is none.

    Returns:
        Seconds of a cold table (the slower direction's median) and, with a sample, milliseconds of
        a warm one and the speedup over the loop (from ``one`` to ``other``); and what they are
        made of.
    """
    directions = {f"{one}-{other}": (one, other), f"{other}-{one}": (other, one)}
    texts = {name: _texts(material, *pair) for name, pair in directions.items() if sample}
    draws = {name: random.Random(seed) for name in texts}
    for _ in range(repeats):
        for name, pair in directions.items():
            _cold_and_warm(material, *pair, minimum_edit_distance_table, timings)
            if sample:
                queries, targets = texts[name]
                # Of fewer than ``sample`` queries, some come again.
                drawn = draws[name].choices(queries, k=sample)
                for kind, search in (("loop", nearest), ("tight loop", nearest_tight)):
                    job = partial(_search_all, search, drawn, targets)
                    timings.measure(f"{kind} {name}", job)

    def medians(kind: str, scale: float = 1) -> dict[str, float]:
        return {name: scale * timings.median(f"{kind} {name}") for name in directions}

    cold, warm = medians("cold"), medians("warm", 1e3)
    results = {f"mined_{one}_{other}_seconds": max(cold.values())}
    raw: dict[str, Any] = {
        "cold_median_seconds": cold,
        "warm_median_milliseconds": warm,
        "known": "as warm, with tokenizers that were asked for their fingerprint before",
        "known_median_milliseconds": medians("known", 1e3),
    }
    if sample:
        searched = {name: len(queries) for name, (queries, _) in texts.items()}
        whole, tight = (
            {name: each * searched[name] / sample for name, each in medians(kind).items()}
            for kind in ("loop", "tight loop")
        )
        speedup = {name: whole[name] / cold[name] for name in cold}
        results["mined_warm_milliseconds"] = max(warm.values())
        results["mined_speedup_over_brute_force"] = speedup[f"{one}-{other}"]
        raw["brute_force"] = {
            "scaling": "median seconds of the loop on the sample, times searched, over sampled",
            "note": "exact matches are found by a dictionary: the loop skips them, and neither "
            "they nor making the surfaces count as its time",
            "sampled": sample,
            "searched": searched,
            "whole_seconds": whole,
            "speedup": speedup,
            "tight": "the same loop with rapidfuzz's distance and without a list of pairs",
            "tight_whole_seconds": tight,
            "speedup_over_tight": {name: tight[name] / cold[name] for name in cold},
        }
    return results, raw


def measure_event_tables(
    material: Path, one: str, other: str, *, timings: Timings, repeats: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Both directions between two tokenizers.

    Returns:
        Seconds of a cold table of events and milliseconds of a warm one, the slower direction's
        median; and those of each.
    """

    def build(teacher: TextTokenizer, student: TextTokenizer, cache: Path) -> EventTable:
        return event_table(teacher, student, cache_dir=cache)

    directions = [(one, other), (other, one)]
    for _ in range(repeats):
        for pair in directions:
            _cold_and_warm(material, *pair, build, timings, "events ")
    cold, warm = (
        {f"{a}-{b}": timings.median(f"events {kind} {a}-{b}") for a, b in directions}
        for kind in ("cold", "warm")
    )
    results = {
        f"events_{one}_{other}_seconds": max(cold.values()),
        "events_warm_milliseconds": 1e3 * max(warm.values()),
    }
    return results, {"cold_median_seconds": cold, "warm_median_seconds": warm}


def _cold_and_warm(
    material: Path,
    source: str,
    target: str,
    build: Callable[[TextTokenizer, TextTokenizer, Path], object],
    timings: Timings,
    what: str = "",
) -> None:
    """The whole call: no file in the cache, a file, and fingerprints known as well."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cold", "warm", "known"):
            if kind != "known":
                # New objects: they keep their surfaces and their fingerprint once computed.
                one, other = load_tokenizer(material, source), load_tokenizer(material, target)
            call = partial(build, one, other, Path(folder))
            timings.measure(f"{what}{kind} {source}-{target}", call)


def _texts(material: Path, source: str, target: str) -> tuple[list[bytes], list[bytes]]:
    """Texts of the source tokens without an exact match, and of the target tokens."""
    wanted = load_tokenizer(material, target).vocabulary_bytes
    ordinary = sorted(wanted.used - wanted.special)
    targets = [wanted.bytes[i] for i in ordinary if wanted.bytes[i]]
    given = load_tokenizer(material, source).vocabulary_bytes
    exact = set(targets)
    return [given.bytes[i] for i in sorted(given.used) if given.bytes[i] not in exact], targets


def _search_all(
    search: Callable[[bytes, Sequence[bytes]], object],
    queries: Sequence[bytes],
    targets: Sequence[bytes],
) -> None:
    for text in queries:
        search(text, targets)
