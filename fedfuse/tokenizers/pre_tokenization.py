"""How a tokenizer treats the space between words, found out by asking it.

Settings alone do not say: a regular expression may drop, keep or isolate whitespace, a normalizer
may replace it, and sequences nest. So the loaded normalizer and pre-tokenizer are given two words,
and what is left between them is the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer

_CHILDREN = ("normalizers", "pretokenizers", "decoders")
# Letters that normalizers leave alone, but for their case.
_TWO_WORDS = "ab cd"
_BETWEEN = re.compile("b(.*?)c", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """What a tokenizer does to words before its model sees them.

    Attributes:
        marker: what stands for the space between two words; a space where nothing else does.
        dropped: the pre-tokenizer drops the space, so that no token says where a word begins.
        normalize: the normalizer.
        cut: whether the pre-tokenizer cuts the text inside.
    """

    marker: str
    dropped: bool
    normalize: Callable[[str], str]
    cut: Callable[[str], bool]


def components(component: Any) -> Iterator[Mapping[str, Any]]:
    """The component, or the components of a sequence, at any depth."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for key in _CHILDREN:
        for child in component.get(key) or []:
            yield from components(child)


def pre_tokenization(spec: Mapping[str, Any]) -> PreTokenization:
    """Ask the normalizer and the pre-tokenizer of a parsed ``tokenizer.json``.

    Raises:
        Exception: of the Rust library, when it cannot load one of the two.
    """
    shell = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "normalizer": spec.get("normalizer"),
        "pre_tokenizer": spec.get("pre_tokenizer"),
    }
    loaded = Tokenizer.from_str(json.dumps(shell))

    def normalize(text: str) -> str:
        return loaded.normalizer.normalize_str(text) if loaded.normalizer else text

    def pieces(normalized: str) -> list[str]:
        if not loaded.pre_tokenizer:
            return [normalized]
        return [piece for piece, _ in loaded.pre_tokenizer.pre_tokenize_str(normalized)]

    @cache
    def cut(text: str) -> bool:
        return len(pieces(normalize(text))) > 1

    normalized = normalize(_TWO_WORDS)
    before = _BETWEEN.search(normalized)
    after = _BETWEEN.search("".join(pieces(normalized)))
    left = after[1] if after else " "
    return PreTokenization(
        marker=left if left.strip() else _marker_of(spec.get("decoder")),
        dropped=left == "" and before is not None and before[1] != "",
        normalize=normalize,
        cut=cut,
    )


def _marker_of(decoder: Any) -> str:
    """What a decoder turns into a space."""
    for part in components(decoder):
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "CTC":
            return str(part["word_delimiter_token"])
        if part["type"] == "Replace" and part["content"] == " ":
            return part["pattern"].get("String") or " "
    return " "
