"""How probable a model finds each option of multiple-choice questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.evaluation.losses import ModelNLL
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# ``[Q, O]`` log-probability of each option, or of its share of all options of its question; -inf
# where a question has fewer than O.
OptionLogprobs = Float32[ndarray, "questions options"]
# Options that differ by less are equal, nats: padding changes the last digits.
TIE = 1e-4


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
        self._max_length = max_length
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

    def alone(self, nll: ModelNLL, premise: str = "") -> OptionLogprobs:
        """Log-probabilities of the options' texts without their question, nats.

        Args:
            nll: the model's ``sample_nll``.
            premise: prompt in the question's place, the same for all: what any question of the kind
                ends with, such as ``Answer:``. Empty, an option begins the text.

        Raises:
            FedfuseError: when no option has a token within the longest input.
        """
        options = [sample.answer for sample in self.texts.samples]
        distinct = {option: place for place, option in enumerate(dict.fromkeys(options))}
        samples = [Sample(premise, option) for option in distinct]
        found = -nll(TokenizedDataset(self.texts.tokenizer, samples, self._max_length))
        logprob = np.full(self.exists.shape, -np.inf)
        logprob[self.exists] = found[[distinct[option] for option in options]]
        return logprob.astype(np.float32)

    def calibrated(self, logprobs: OptionLogprobs, alone: OptionLogprobs) -> OptionLogprobs:
        """How much more probable the question makes each option, nats; equal where unknown.

        Which option is likely anyway, as a short or a common one is, no longer counts. With a
        premise this is domain-conditional pointwise mutual information (Holtzman et al., "Surface
        Form Competition", arXiv 2104.08315); without one, lm-evaluation-harness's
        ``acc_mutual_info`` compares it.

        Args:
            logprobs: result of ``logprobs``.
            alone: result of ``alone``.
        """
        known = self.exists & ~self._unknown
        return logprobs - np.where(known, alone, np.float32(0))


def correctness(
    scores: OptionLogprobs, right: Int64[ndarray, " questions"]
) -> Float64[ndarray, " questions"]:
    """``[Q]`` 1 where the right option has the highest score, else 0.

    Where several have it, as they are cut off or have the same tokens, the right one among them
    counts as a guess: one over their number.

    Args:
        scores: score of each option; -inf where a question has fewer than O.
        right: index of each question's right option.
    """
    likely = scores >= scores.max(1, keepdims=True) - TIE
    found: Float64[ndarray, " questions"] = likely[np.arange(len(right)), right] / likely.sum(1)
    return found


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
