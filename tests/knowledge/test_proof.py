"""Nobody earns by what is claimed of labels: distributions and bytes alone prove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.proof import NATS_PER_BYTE, proven
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import scored_bytes
from fedfuse.tokenizers.label_rows import label_rows, unspelled_bytes
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]


def record(indices: list[list[int]], probs: list[list[float]], claim: list[float]) -> Knowledge:
    """Rows of one sample of ten bytes; what is left of one is the tail."""
    mass = np.array(probs)
    with np.errstate(divide="ignore"):
        tail = np.log(1 - mass.sum(1))
        logprobs = np.log(mass)
    return Knowledge(
        offsets=np.array([0, len(indices)]),
        indices=np.array(indices),
        logprobs=logprobs.astype(np.float32),
        tail_logprob=tail.astype(np.float32),
        label_logprob=np.log(np.array(claim, dtype=np.float32)),
        label_bytes=np.array([10]),
        tokenizer="t",
        public="p",
    )


def test_by_hand() -> None:
    """A kept label, one outside the entries that claims the tail, one without a tail, one lie."""
    known = record(
        [[3, 5], [3, 5], [3, 5], [3, 5], [3, 0]],
        [[0.5, 0.25], [0.5, 0.25], [0.75, 0.25], [0.5, 0.25], [0.75, 0.0]],
        [0.25, 0.25, 0.25, 0.25, 0.25],
    )
    label, unspelled = np.array([5, 7, 7, 5, 0]), np.array([0, 0, 0, 2, 0])
    found = proven(known, label, unspelled, vocab_size=12)
    expected = [0.25, 0.25 / 10, 1e-6, exp(-2 * NATS_PER_BYTE), 0.25 / 11]
    np.testing.assert_allclose(np.exp(found.label_logprob), expected, rtol=1e-5)
    assert found.loss[0] == pytest.approx(-sum(map(log, expected)) / 10, rel=1e-5)
    np.testing.assert_array_equal(found.logprobs, known.logprobs)


def test_without_entries_the_claim_is_believed() -> None:
    known = record([[], []], [[], []], [0.25, 0.5])
    found = proven(known, np.array([1, 2]), np.array([0, 1]), vocab_size=12)
    np.testing.assert_allclose(np.exp(found.label_logprob), [0.25, 1 / 256], rtol=1e-5)


def test_of_an_honest_model_all_that_is_kept_is_proven(tiny: Make, public: list[Sample]) -> None:
    """And with entries enough everything is."""
    lm = tiny("llama")
    aligner = KnowledgeAligner(lm.tokenizer, public, MAX_LENGTH, KnowledgeConfig())
    data = lm.encode(public)
    for k in (4, lm.vocab_size):
        known = extract(lm, data, k)
        found = aligner.proven(known, lm.tokenizer)
        kept = (known.indices == data.rows.token[:, None]).any(1)
        assert kept.all() == (k == lm.vocab_size)
        np.testing.assert_allclose(found.label_logprob[kept], known.label_logprob[kept], atol=1e-5)
        assert (found.label_logprob[~kept] < 0).all()


def test_the_whole_tail_for_a_label_earns_nothing(tiny: Make, public: list[Sample]) -> None:
    """Half of the probability on a wrong token, the rest claimed for the label."""
    lm = tiny("llama")
    data = lm.encode(public)
    aligner = KnowledgeAligner(lm.tokenizer, public, MAX_LENGTH, KnowledgeConfig(k=1))
    honest = extract(lm, data, 1)
    wrong = (data.rows.token + 1) % lm.vocab_size
    half = np.full(len(wrong), np.log(0.5), dtype=np.float32)
    liar = replace(
        honest,
        indices=wrong[:, None],
        logprobs=half[:, None],
        tail_logprob=half,
        label_logprob=half,
    )
    aligner.verify(liar, lm.tokenizer, data.fingerprint)
    rows = np.diff(data.rows.offsets)
    share = np.log(0.5 / (lm.tokenizer.vocab_size - 1))
    np.testing.assert_allclose(
        aligner.proven(liar, lm.tokenizer).loss, -share * rows / data.label_bytes, rtol=1e-4
    )


def unspelled(tokenizer: TextTokenizer, samples: list[Sample]) -> np.ndarray:
    _, rows = label_rows(tokenizer, samples, MAX_LENGTH)
    return unspelled_bytes(tokenizer, samples, rows, scored_bytes(samples, rows, MAX_LENGTH))


def lossy(pattern: str = r"\w+", content: str = "w") -> TextTokenizer:
    """By default every word is one and the same token, so that every claim about it is true."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "w": 2, "?": 3}, unk_token="?"))
    tokenizer.normalizer = normalizers.Replace(Regex(pattern), content)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer.from_pretrained(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="?"
        )
    )


def test_a_tokenizer_that_makes_every_claim_true_earns_nothing() -> None:
    source = lossy()
    samples = [Sample("the clinic", " saw a patient")]
    assert unspelled(source, samples).tolist() == [4, 2, 8]
    certain = replace(record([[2]] * 3, [[1.0]] * 3, [1.0] * 3), label_bytes=np.array([14]))
    aligner = KnowledgeAligner(source, samples, MAX_LENGTH, KnowledgeConfig())
    assert aligner.proven(certain, source).loss.tolist() == pytest.approx([NATS_PER_BYTE])


def test_what_is_dropped_at_the_end_earns_nothing() -> None:
    """An answer of ten bytes of which one is left, and expected with certainty."""
    source, samples = lossy("(?<=w).*", ""), [Sample("", "w abcdefgh")]
    _, rows = label_rows(source, samples, MAX_LENGTH)
    assert rows.token.tolist() == [2]
    assert unspelled(source, samples).tolist() == [10]


@pytest.mark.parametrize("kind", ["byte-level-bpe", "wordpiece", "unigram"])
def test_whose_tokens_are_the_text_stands_for_nothing_else(
    kind: str, tiny_tokenizers: dict[str, TextTokenizer], language: list[str]
) -> None:
    """Whatever precedes the answer; the built-in texts are lower case and without accents."""
    tokenizer = tiny_tokenizers[kind]
    samples = [Sample(text[:cut], text[cut:]) for text in language[:20] for cut in (0, 7)]
    assert not unspelled(tokenizer, samples).any()


def test_bytes_inside_a_character_are_the_text_together(
    tiny_tokenizers: dict[str, TextTokenizer],
) -> None:
    tokenizer = tiny_tokenizers["byte-level-bpe"]
    samples = [Sample("a", " 🐟 b"), Sample("a", " né")]
    assert not unspelled(tokenizer, samples).any()


def test_no_more_bytes_than_the_answer_has(tiny_tokenizers: dict[str, TextTokenizer]) -> None:
    """Capitals and accents that a tokenizer drops, an unknown sign, a label across the prompt."""
    tokenizer = tiny_tokenizers["wordpiece"]
    samples = [Sample("The Ba", "nk PAID É 🐟 x."), Sample("ba", "nk paid")]
    _, rows = label_rows(tokenizer, samples, MAX_LENGTH)
    found = np.bincount(rows.sample_of_row, unspelled(tokenizer, samples))
    assert 0 < found[0] <= samples[0].answer_bytes
    assert found[1] == 0
