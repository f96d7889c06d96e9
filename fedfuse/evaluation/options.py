"""How probable a model finds each option of multiple-choice questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.evaluation.losses import ModelNLL
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# ``[Q, O]`` log-probability of each option, or of its share of all options of its question; -inf
# where a question has fewer than O.
OptionLogprobs = Float32[ndarray, "questions options"]


class OptionScorer:
    """Options of questions, tokenized once for one model.

    Attributes:
        texts: a sample for each option, question by question.
        exists: ``[Q, O]`` whether a question has so many options.
    """

    def __init__(
        self, tokenizer: TextTokenizer, questions: Sequence[Sample], max_length: int
    ) -> None:
        """Tokenize.

        Raises:
            FedfuseError: when no option has a token within ``max_length`` of them.
        """
        self.exists = existing(questions)
        expanded = [q.answered(option) for q in questions for option in q.options]
        question = np.nonzero(self.exists)[0]  # its options are compared behind one prompt
        self.texts = TokenizedDataset(tokenizer, expanded, max_length, question)
        whole = np.array([sample.answer_bytes for sample in expanded], dtype=np.int64)
        cut = np.zeros(self.exists.shape, dtype=bool)
        cut[self.exists] = self.texts.label_bytes < whole
        self._unknown = self.exists & cut.any(1, keepdims=True)
        self._bytes = np.ones(self.exists.shape)
        self._bytes[self.exists] = whole

    def shares(self, nll: ModelNLL) -> OptionLogprobs:
        """Shares of each question's options.

        Options are compared by the log-probability of their whole text, which is what the Bayes
        rule compares; for other habits see ``per_byte``.
        """
        return normalized(self.logprobs(nll))

    def logprobs(self, nll: ModelNLL) -> OptionLogprobs:
        """Log-probabilities of the options' texts, nats.

        Where an option is cut off, nothing is known, and all of the question are equal.
        """
        logprob = np.full(self.exists.shape, -np.inf)
        logprob[self.exists] = -nll(self.texts)
        even = -np.log(np.maximum(self.exists.sum(1, keepdims=True), 1))
        found: OptionLogprobs = np.where(self._unknown, even, logprob).astype(np.float32)
        return found

    def per_byte(self, logprobs: OptionLogprobs) -> OptionLogprobs:
        """The same by the options' bytes, nats per byte; equal where nothing is known."""
        found = np.where(self._unknown, logprobs, logprobs / self._bytes)
        return np.asarray(found, dtype=np.float32)


def existing(questions: Sequence[Sample]) -> Bool[ndarray, "questions options"]:
    """``[Q, O]`` whether a question has so many options; O is the largest number."""
    count = np.array([len(question.options) for question in questions], dtype=np.int64)
    exists: Bool[ndarray, "questions options"] = np.arange(count.max(initial=0)) < count[:, None]
    return exists


def normalized(logprob: ndarray) -> OptionLogprobs:
    """The same with shares that add to one; -inf is no option."""
    shares: OptionLogprobs = (logprob - _total(logprob)).astype(np.float32)
    return shares


def possible(logprob: ndarray) -> OptionLogprobs:
    """The same, scaled down where probabilities add to more than one; -inf is no option."""
    found: OptionLogprobs = (logprob - np.maximum(_total(logprob), 0)).astype(np.float32)
    return found


def _total(logprob: ndarray) -> ndarray:
    """``[Q, 1]`` log of the sum of probabilities."""
    highest = logprob.max(1, keepdims=True, initial=-np.inf)
    total: ndarray = np.log(np.exp(logprob - highest).sum(1, keepdims=True)) + highest
    return total
