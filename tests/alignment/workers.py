"""What tests run in processes of their own."""

from __future__ import annotations

from pathlib import Path

from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.tokenizers.tokenizer import TextTokenizer


def build_table(arguments: tuple[str, str, Path]) -> list[int]:
    """The targets of a table, through the cache."""
    source, target, folder = arguments
    tokenizers = TextTokenizer.from_json(source), TextTokenizer.from_json(target)
    table = minimum_edit_distance_table(*tokenizers, folder)
    return [int(i) for i in table.best]
