"""Builders with tiny recipes, for processes of their own: patches do not reach those."""

from __future__ import annotations

from typing import Any

from fedfuse.builtin import models as builtin
from fedfuse.builtin.models import Recipe

TINY = {
    "gpt2": Recipe("gpt2", "byte-level-bpe", 400, 8, 1, 3, samples_per_domain=20),
    "llama": Recipe("llama", "unigram", 300, 8, 1, 3, samples_per_domain=20),
    "opt": Recipe("opt", "wordpiece", 300, 8, 1, 3, samples_per_domain=20),
}


def build_in_worker(name: str, steps: Any) -> None:
    """``builtin._build_in_worker`` with tiny recipes."""
    builtin.RECIPES.update(TINY)
    builtin._build_in_worker(name, steps)
