"""Public material that benchmarks read: tokenizers and long texts."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.data.records import Record, load_records
from fedfuse.tokenizers.tokenizer import ROLES, TextTokenizer

# Data sets that texts come from, in this order.
SOURCES = ("gsm8k", "arc_easy", "arc_challenge")


def load_tokenizer(material: Path, name: str) -> TextTokenizer:
    """A new object at each call, so that nothing computed for another measurement is kept."""
    folder = material / "tokenizers" / name
    config = json.loads((folder / "tokenizer_config.json").read_text())
    specials = {role: config[f"{role}_token"] for role in ROLES if config.get(f"{role}_token")}
    return TextTokenizer.from_json((folder / "tokenizer.json").read_text(), specials)


def load_text(material: Path) -> str:
    """Questions and worked answers of the data sets, one behind the other."""
    records = [record for source in SOURCES for record in train_records(material, source)]
    return "\n\n".join(f"{r['question']} {r.get('target', '')}".strip() for r in records)


def train_records(material: Path, source: str) -> list[Record]:
    """Records of a data set's train split."""
    records = load_records(str(material / "datasets" / source), "train")
    return [record for _, record in records]


def cut(text: str, ends: Int64[ndarray, " n"], length: int, tokens: int) -> list[str]:
    """The beginning of a text, whose n tokens end at the bytes ``ends``, in pieces.

    Each has ``length`` tokens, all together at most ``tokens``.

    Raises:
        SystemExit: when there is less text than one piece.
    """
    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    # A byte 10xxxxxx is inside a character; a piece ends with the character.
    begins = np.flatnonzero(np.append(raw, 0) & 0xC0 != 0x80)
    last = ends[: max(tokens, length)][length - 1 :: length]
    places = np.append(0, begins[np.searchsorted(begins, last)]).tolist()
    if not len(last):
        raise SystemExit(f"the material has {len(ends)} tokens; a text of {length} is needed")
    return [raw[start:stop].tobytes().decode() for start, stop in pairwise(places)]
