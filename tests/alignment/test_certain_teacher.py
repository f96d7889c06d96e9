"""A teacher that is certain of the right token teaches no wrong token on any row."""

from __future__ import annotations

import json
import os
from itertools import permutations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.events import EventDistribution
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.test_unseen import KINDS, SAMPLES
from tests.alignment.test_unseen import unseen as unseen
from tests.tokenizer_kinds import MATERIAL, REAL, SPECIALS, TEXTS, load_real

AWKWARD = [
    *(Sample(*parts) for parts in SAMPLES),
    *(Sample("", text) for text in TEXTS),
    Sample("", ""),
    Sample("prompt alone", ""),
    Sample("first line\r\n", "second\r\nthird\r\n"),
    Sample("\t tab", "\tand  two  spaces \t"),
    Sample("ends in a space ", "no"),
    Sample("ends without", " no"),
    Sample("two\n\n", "\n\nlines\n  indented\n\tby a tab"),
    Sample("12", "345678 and 3.14159, 1,000,000 or 007 and 42%"),
    Sample("a</s>", "b<s>c</s> <pad><unk>[CLS] <|endoftext|> x</s>"),
    Sample("combining: ", "e\u0301 n\u0303o a\u030a\u0323, \u1e69 s\u0323\u0307"),
    Sample("family 👩\u200d👩", "\u200d👧 flag 🇩🇪🇫🇷 skin 👍🏽 heart ❤\ufe0f"),
    Sample("für ", "Füße, Öl, GÖTZ und õ÷ÿþ"),
    Sample("東京", "と大阪、서울과 부산。你好"),
    Sample("\u201cquoted", "\u201d \u2013 it\u2019s … «x» \u00a0nbsp \u2009thin"),
    Sample("▁marker", " Ġ ▁▁ <0x0A> ##a a</w>"),
]


# What has tokens for every text, and says it as it is.
LOSSLESS = {
    "byte-level BPE by normalizer",
    "newlines",
    "newlines, marker",
    "added letters",
    "added spaces",
}
# Every pair of the public tokenizers spells up to 150,000 tokens a side; the quick suite has some.
EVERY = int(os.environ.get("FEDFUSE_EXAMPLES", "200")) >= 10_000
QUICK = [("bert_uncased", "gpt2"), ("llama2", "gpt2")]


def _newlines(marker: bool) -> Tokenizer:
    """Falcon's and AI21's kind: a token may begin with a newline and go on with a word."""
    lines = ["\n".join(TEXTS), "\n\n".join(TEXTS), "\r\n  ".join(TEXTS), "\nThe\n- no\n"]
    settings = {"vocab_size": 420, "max_token_length": 7, "show_progress": False}
    if marker:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
        settings["special_tokens"] = [*SPECIALS.values(), *(f"<0x{n:02X}>" for n in range(256))]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        settings["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        settings["special_tokens"] = list(SPECIALS.values())
    tokenizer.train_from_iterator(lines * 5, trainers.BpeTrainer(**settings))
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIALS)]  # bytes come from the model
    return Tokenizer.from_str(json.dumps(spec))


def _added(*contents: str) -> Tokenizer:
    """Tokens of text that are found before the model sees it: DeepSeek-Coder's, Pythia's."""
    tokenizer = _newlines(marker=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in contents])
    return tokenizer


MORE = {
    "newlines": lambda: _newlines(marker=False),
    "newlines, marker": lambda: _newlines(marker=True),
    "added letters": lambda: _added(*"õ÷Áýÿøúþüùöû"),
    "added spaces": lambda: _added("  ", "   ", "    ", "\n\n", "</s> "),
}


@pytest.fixture(scope="module")
def odd(unseen: dict[str, TextTokenizer]) -> dict[str, TextTokenizer]:
    """Eleven with odd normalizers and pre-tokenizers, and four with odd tokens."""
    return unseen | {
        name: TextTokenizer.from_json(make().to_str(), SPECIALS) for name, make in MORE.items()
    }


def certain(tokenizer: TextTokenizer, samples: list[Sample], length: int) -> Knowledge:
    """Knowledge with all probability on the label token of every row."""
    rows = label_rows(tokenizer, samples, length)[1]
    zeros = np.zeros(len(rows.token), dtype=np.float32)
    ones = np.ones(len(samples), dtype=np.int64)
    return Knowledge(
        rows.offsets, rows.token[:, None], zeros[:, None], zeros - np.inf, zeros, ones, "s", "p"
    )


def check(
    source: TextTokenizer, target: TextTokenizer, samples: list[Sample], length: int
) -> float:
    """Share of the student's rows that have a teacher, each of which must teach the label."""
    aligner = KnowledgeAligner(target, samples, length, KnowledgeConfig(alignment="events"))
    found = aligner(certain(source, samples, length), source)
    assert isinstance(found, EventDistribution)
    place = found.places(aligner.rows.token[:, None])
    at_label = (found.start <= place) & (place < found.stop)
    mass = np.where(at_label, np.exp(found.logprobs), 0).sum(1)
    rows = (found.weight > 0) & (found.stop > found.start).any(1)
    np.testing.assert_allclose(mass[rows], 1.0, atol=1e-6)
    np.testing.assert_array_equal(found.chunk_logprob, 0)
    for first in np.flatnonzero(found.chunk_rows).tolist():
        rows[first : first + found.chunk_rows[first]] = True
    return float(rows.mean())


@pytest.mark.parametrize(("one", "other"), list(permutations([*KINDS, *MORE], 2)))
def test_between_odd_tokenizers(odd: dict[str, TextTokenizer], one: str, other: str) -> None:
    """A rule that teaches nothing teaches nothing wrong, so there is a least share."""
    share = check(odd[one], odd[other], AWKWARD, 100)
    # Whole words hold few of these texts, and bytes all of them.
    least = 0.05 if "WordLevel, words" in (one, other) else 0.2
    assert share > (0.8 if {one, other} <= LOSSLESS else least)


@pytest.mark.parametrize("one", list(MORE))
def test_texts_that_are_cut_off(odd: dict[str, TextTokenizer], one: str) -> None:
    for other in list(KINDS)[::4]:
        assert check(odd[one], odd[other], AWKWARD, 7) > 0.02
        assert check(odd[other], odd[one], AWKWARD, 7) > 0.02


@pytest.mark.parametrize(("one", "other"), list(permutations(REAL, 2)) if EVERY else QUICK)
def test_between_public_tokenizers(one: str, other: str) -> None:
    for name in (one, other):
        if not (MATERIAL / name).is_dir():
            pytest.skip(f"no tokenizer {name} in ../shared/material/tokenizers")
    share = check(load_real(one), load_real(other), [*AWKWARD, *real_texts()], 200)
    # Texts in lower case, and few foreign letters.
    assert share > (0.5 if "bert_uncased" in (one, other) else 0.9)


def real_texts() -> list[Sample]:
    """Some texts of each data set of the material."""
    samples = []
    for file in sorted((MATERIAL.parent / "datasets").glob("*/t*.jsonl")):
        for line in file.read_text().splitlines()[:20]:
            record = json.loads(line)
            question = record.get("question") or record.get("text") or record["premise"]
            samples.append(Sample(question[:40], question[40:] + f"\n{record.get('target', '')}"))
    return samples
