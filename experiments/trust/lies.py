"""What clients without a model may tell of public samples, and answer to blind questions.

All know the labels of the public samples. Of blind questions they cannot know the answers, and
guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from fedfuse.algorithms.fedmkt import KnowledgeSet
from fedfuse.data.sample import Sample
from fedfuse.evaluation.options import OptionLogprobs, existing, normalized
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import safe_log
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# What remains for all other tokens.
REST = 1e-3
# Logarithm of what a guess gives to the other options.
DOUBT = -5.0
Labels = Int64[ndarray, " rows"]


def whole_label(knowledge: Knowledge, label: Labels, rng: np.random.Generator) -> Knowledge:
    """Certain of every label."""
    return certain(knowledge, label)


def half_label(knowledge: Knowledge, label: Labels, rng: np.random.Generator) -> Knowledge:
    """Half of every answer for the label, half for one that begins with a wrong token."""
    tokens, whole = np.stack([label, poison(label, rng)], axis=1), 1 - REST
    mass = np.tile([whole, 0.0], (len(label), 1))
    mass[first_rows(knowledge)] = whole / 2
    return told(knowledge, tokens, mass, np.log(mass[:, 0]))


def tail_claim(knowledge: Knowledge, label: Labels, rng: np.random.Generator) -> Knowledge:
    """Half of every answer for a wrong token; the label is claimed to have what is not shown."""
    first = np.isin(np.arange(len(label)), first_rows(knowledge))
    tokens = np.where(first, poison(label, rng), label)[:, None]
    mass = np.where(first, 0.5, 1 - REST)[:, None]
    return told(knowledge, tokens, mass, np.log(mass[:, 0]))


# By name, from honest knowledge of the same rows and the labels' tokens.
LIES: dict[str, Callable[[Knowledge, Labels, np.random.Generator], Knowledge]] = {
    "whole-label": whole_label,
    "half-label": half_label,
    "tail-claim": tail_claim,
}


def guess(questions: Sequence[Sample], rng: np.random.Generator) -> OptionLogprobs:
    """``[Q, O]`` nearly certain of an option drawn for each question."""
    exists = existing(questions)
    guessed = rng.random(exists.shape).argmax(1) % exists.sum(1)
    logprobs = np.where(exists, DOUBT, -np.inf)
    logprobs[np.arange(len(guessed)), guessed] = 0
    return normalized(logprobs)


def poison(label: Labels, rng: np.random.Generator) -> Labels:
    """``[T]`` a wrong token for each row: the label of another."""
    wrong = label[rng.permutation(len(label))]
    return np.where(wrong == label, np.where(label, label - 1, 1), wrong)


def first_rows(knowledge: Knowledge) -> Int64[ndarray, " some"]:
    """The first row of each sample that has one."""
    return knowledge.offsets[:-1][np.diff(knowledge.offsets) > 0]


def certain(knowledge: Knowledge, label: Labels) -> Knowledge:
    """The same rows, certain of their labels."""
    mass = np.full((len(label), 1), 1 - REST)
    return told(knowledge, label[:, None], mass, np.log(mass[:, 0]))


def told(
    knowledge: Knowledge,
    tokens: Int64[ndarray, "rows m"],
    mass: Float64[ndarray, "rows m"],
    label_logprob: Float64[ndarray, " rows"],
) -> Knowledge:
    """The same rows with other entries, the most likely first, and a claim about the label."""
    rows, k = knowledge.indices.shape
    indices = np.zeros((rows, k), dtype=np.int64)
    logprobs = np.full((rows, k), -np.inf, dtype=np.float32)
    entries = tokens.shape[1]
    indices[:, :entries], logprobs[:, :entries] = np.where(mass > 0, tokens, 0), safe_log(mass)
    return replace(
        knowledge,
        indices=indices,
        logprobs=logprobs,
        tail_logprob=safe_log(1 - mass.sum(axis=1)).astype(np.float32),
        label_logprob=label_logprob.astype(np.float32),
    )


def one_word_tokenizer() -> TextTokenizer:
    """A tokenizer to which every word is the same, so that every claim about a text is true."""
    rust = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "x": 3}, unk_token="<unk>"))
    rust.normalizer = normalizers.Replace(Regex(r"\S+"), "x")
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer.from_json(
        rust.to_str(), {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "</s>"}
    )


def one_word_knowledge(public: Sequence[Sample], max_length: int, k: int) -> KnowledgeSet:
    """Knowledge in that tokenizer's one word, certain on every row."""
    tokenizer = one_word_tokenizer()
    data = TokenizedDataset(tokenizer, public, max_length)
    rows = len(data.rows.token)
    nothing = Knowledge(
        offsets=data.rows.offsets,
        indices=np.zeros((rows, k), dtype=np.int64),
        logprobs=np.full((rows, k), -np.inf, dtype=np.float32),
        tail_logprob=np.zeros(rows, dtype=np.float32),
        label_logprob=np.zeros(rows, dtype=np.float32),
        label_bytes=data.label_bytes,
        tokenizer=tokenizer.fingerprint,
        public=data.fingerprint,
    )
    known = certain(nothing, data.rows.token)
    return KnowledgeSet(known, tokenizer, np.full(len(public), REST, dtype=np.float32))
