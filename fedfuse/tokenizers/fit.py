"""How samples fit a model's input: what is cut off, and what leaves nothing to learn or to tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.tokenizers.dataset import scored_bytes
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Fit:
    """Counts of some samples, or of the options of some questions.

    Attributes:
        samples: their number.
        label_tokens: tokens that are learned or scored.
        prompts_cut: samples whose prompt lost its beginning.
        answers_cut: samples whose answer lost its end.
        unscored: samples without any such token.
        undecided: questions with an option that is cut off, or two that have the same tokens.
    """

    samples: int
    label_tokens: int
    prompts_cut: int
    answers_cut: int
    unscored: int
    undecided: int = 0

    @property
    def lost(self) -> float:
        """Share of the samples whose answer is not there as a whole."""
        return (self.answers_cut + self.unscored) / max(1, self.samples)


def fit_samples(tokenizer: TextTokenizer, samples: Sequence[Sample], max_length: int) -> Fit:
    """Count what a tokenizer makes of samples in an input of so many tokens."""
    return _fit(tokenizer, samples, max_length)[0]


def fit_questions(tokenizer: TextTokenizer, questions: Sequence[Sample], max_length: int) -> Fit:
    """Count what a tokenizer makes of questions; all counts but two are of their options."""
    options = [q.answered(option) for q in questions for option in q.options]
    found, lost = _fit(tokenizer, options, max_length)
    ids = iter(tokenizer.encode_ids([option.text for option in options]))
    each, undecided = iter(lost.tolist()), 0
    for question in questions:
        different = {tuple(next(ids)) for _ in question.options}
        cut = sum(next(each) for _ in question.options)
        undecided += len(different) < len(question.options) or cut > 0
    return replace(found, samples=len(questions), undecided=undecided)


def _fit(
    tokenizer: TextTokenizer, samples: Sequence[Sample], max_length: int
) -> tuple[Fit, Bool[ndarray, " samples"]]:
    """The counts, and ``[N]`` whether a sample's answer is not there as a whole."""
    _, rows = label_rows(tokenizer, samples, max_length)
    unscored = np.diff(rows.offsets) == 0
    whole = np.array([sample.answer_bytes for sample in samples], dtype=np.int64)
    cut = ~unscored & (scored_bytes(samples, rows, max_length) < whole)
    fit = Fit(
        samples=len(samples),
        label_tokens=len(rows.token),
        prompts_cut=int((rows.begin != 0).sum()),
        answers_cut=int(cut.sum()),
        unscored=int(unscored.sum()),
    )
    return fit, unscored | cut
