"""Loss per byte of answer text and multiple-choice accuracy, per domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.interference import paired_noise
from fedfuse.evaluation.losses import ModelNLL, SampleNLL
from fedfuse.evaluation.options import OptionScorer, correctness, normalized
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Score:
    """Score of one model on one domain.

    Attributes:
        loss: nats per byte of answer text.
        accuracy: share of multiple-choice questions answered right; None where there are none.
        samples: number of scored samples.
        noise: largest rise since an earlier score that is no more than noise, nats per byte; see
            ``interference.paired_noise``. None without an earlier score.
        normalized_accuracy: accuracy of the options by log-probability per byte, which favours no
            short ones (lm-evaluation-harness's ``acc_norm``).
    """

    loss: float
    accuracy: float | None
    samples: int
    noise: float | None = None
    normalized_accuracy: float | None = None


class Evaluator:
    """Test set and multiple-choice questions, tokenized once for one model.

    Attributes:
        test: the test set.
        questions: the multiple-choice questions.
        options: their options; None without questions.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        test: Sequence[Sample],
        questions: Sequence[Sample],
        max_length: int,
    ) -> None:
        """Tokenize.

        Raises:
            FedfuseError: for a domain that has nothing to score in the test set.
        """
        self.test = TokenizedDataset(tokenizer, test, max_length)
        scored = {s.domain for s, n in zip(test, self.test.label_bytes, strict=True) if n}
        if empty := sorted({s.domain for s in test} - scored):
            raise FedfuseError(
                f"no label position in the test samples of {', '.join(empty)} within {max_length} "
                "tokens; give samples with an answer, or a larger max-length"
            )
        self.questions = list(questions)
        self.options = OptionScorer(tokenizer, questions, max_length) if questions else None

    @property
    def texts(self) -> list[TokenizedDataset]:
        """All that a model is asked about: the test set, and the options of the questions."""
        return [self.test, *([self.options.texts] if self.options else [])]

    def evaluate(
        self, nll_of: ModelNLL, before: SampleNLL | None = None
    ) -> tuple[dict[str, Score], SampleNLL]:
        """Score a model.

        Args:
            nll_of: the model's ``sample_nll``.
            before: ``[N]`` NLL of an earlier call, to tell a change from noise.

        Returns:
            Loss and accuracy per domain, domains sorted, and ``[N]`` NLL of each test sample.
        """
        nll = nll_of(self.test)
        correct = self._correct(nll_of)  # [2, Q]
        domains = np.array([s.domain for s in self.test.samples])
        asked = np.array([q.domain for q in self.questions])
        scores = {}
        for domain in sorted(set(domains.tolist())):
            here = domains == domain
            size = self.test.label_bytes[here].sum()
            loss = float(nll[here].sum() / size)
            noise = None
            if before is not None:
                # The domain's loss is the mean of these.
                each = here.sum() / size
                noise = paired_noise(before[here] * each, nll[here] * each)
            questions = asked == domain
            raw, per_byte = (
                correct[:, questions].mean(1).tolist() if questions.any() else (None, None)
            )
            scores[domain] = Score(loss, raw, int(here.sum()), noise, per_byte)
        return scores, nll

    def _correct(self, nll_of: ModelNLL) -> Float64[ndarray, "2 questions"]:
        """``[2, Q]`` ``correctness`` by the options' whole text and per byte."""
        if self.options is None:
            return np.empty((2, 0))
        logprobs = self.options.logprobs(nll_of)
        right = np.array([question.label for question in self.questions])
        scores = normalized(logprobs), self.options.per_byte(logprobs)
        return np.array([correctness(found, right) for found in scores], dtype=np.float64)
