"""A teacher that is certain of the right token teaches no wrong token on any row."""

from __future__ import annotations

import os
from itertools import permutations

import numpy as np
import pytest

from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.test_unseen import KINDS, SAMPLES
from tests.alignment.test_unseen import unseen as unseen
from tests.tokenizer_kinds import MATERIAL, REAL, TEXTS, load_real

AWKWARD = [Sample(*parts) for parts in SAMPLES] + [Sample("", text) for text in TEXTS]
# Every pair of the public tokenizers spells up to 150,000 tokens a side; the quick suite has some.
EVERY = int(os.environ.get("FEDFUSE_EXAMPLES", "200")) >= 10_000
QUICK = [("bert_uncased", "gpt2"), ("llama2", "gpt2")]


def certain(tokenizer: TextTokenizer, samples: list[Sample], length: int) -> Knowledge:
    """Knowledge with all probability on the label token of every row."""
    rows = label_rows(tokenizer, samples, length)[1]
    zeros = np.zeros(len(rows.token), dtype=np.float32)
    ones = np.ones(len(samples), dtype=np.int64)
    return Knowledge(
        rows.offsets, rows.token[:, None], zeros[:, None], zeros - np.inf, zeros, ones, "s", "p"
    )


def check(
    source: TextTokenizer, target: TextTokenizer, samples: list[Sample], *lengths: int
) -> float:
    """Share of the student's rows that have a teacher, each of which must teach the label."""
    taught = total = 0
    for length in lengths:
        aligner = KnowledgeAligner(target, samples, length, KnowledgeConfig(alignment="events"))
        found = aligner(certain(source, samples, length), source)
        place = found.places(aligner.rows.token[:, None])
        at_label = (found.start <= place) & (place < found.stop)
        mass = np.where(at_label, np.exp(found.logprobs), 0).sum(1)
        rows = found.weight > 0
        np.testing.assert_allclose(mass[rows], 1.0, atol=1e-6)
        taught, total = taught + int(rows.sum()), total + len(rows)
    return taught / total


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
def test_between_odd_tokenizers(unseen: dict[str, TextTokenizer], one: str, other: str) -> None:
    assert check(unseen[one], unseen[other], AWKWARD, 7, 100) > 0.1


@pytest.mark.parametrize(("one", "other"), list(permutations(REAL, 2)) if EVERY else QUICK)
def test_between_public_tokenizers(one: str, other: str) -> None:
    for name in (one, other):
        if not (MATERIAL / name).is_dir():
            pytest.skip(f"no tokenizer {name} in ../shared/material/tokenizers")
    assert check(load_real(one), load_real(other), AWKWARD, 100) > 0.3
