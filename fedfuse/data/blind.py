"""Blind samples: questions whose answers the server alone knows.

Labels of the public set are known to all, so whoever repeats them looks like an expert. Trust is
therefore earned on samples of which clients see the prompt and some answers to choose from, and do
not know which is right. Not in the papers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedfuse.data.sample import Sample

# Answers to choose from: few, since each costs a pass over the text.
OPTIONS = 4


@dataclass(frozen=True, slots=True)
class BlindSamples:
    """Samples whose answers the server alone knows, and the questions about them, in one order.

    Attributes:
        shown: as public samples are shown.
        asked: prompts with options, and the right option.
    """

    shown: list[Sample]
    asked: list[Sample]

    def __len__(self) -> int:
        return len(self.asked)


def blind_questions(samples: Sequence[Sample], seed: int) -> BlindSamples:
    """Ask for the answer of each sample, among the answers of others of its domain.

    Samples are grouped, up to ``OPTIONS`` with different answers to a group, and all of a group are
    asked with the same options, their answers. So every option is right once: neither how often it
    occurs nor where it stands tells for which prompt. Domains of one answer each, such as the
    classes of a data set, count as one domain, since no client is told a question's domain. A
    sample that fits into no group, as there is no other answer left, is not asked. Text without a
    prompt is asked how it goes on: its first half is the prompt.

    Args:
        samples: with answers.
        seed: of the groups and of the order of samples and options.
    """
    rng = np.random.default_rng([seed, 4])
    by_domain: dict[str, list[Sample]] = defaultdict(list)
    whole: dict[Sample, Sample] = {}
    for sample in samples:
        prompted = sample if sample.prompt else _halved(sample)
        by_domain[sample.domain].append(prompted)
        whole[prompted] = sample
    found = BlindSamples([], [])
    domains = [members for _, members in sorted(by_domain.items())]
    several = [members for members in domains if len({sample.answer for sample in members}) > 1]
    single = [sample for members in domains if members not in several for sample in members]
    for members in (*several, single):
        shuffled = [members[index] for index in rng.permutation(len(members))]
        for group in _groups(shuffled):
            options = tuple(sorted(sample.answer for sample in group))
            for index in rng.permutation(len(group)):
                sample = group[index]
                label = options.index(sample.answer)
                question = replace(sample, options=options, label=label)
                found.shown.append(whole[sample])
                found.asked.append(question)
    return found


def _halved(sample: Sample) -> Sample:
    """Text cut before the first space after its middle, or where there is none, in its middle."""
    text = sample.answer
    space = re.compile(r"(?<=\S)\s").search(text, len(text) // 2)
    cut = space.start() if space else len(text) // 2
    return Sample(text[:cut], text[cut:], sample.domain)


def _groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of different answers together; the most frequent answers first, or they are left."""
    by_answer: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_answer[sample.answer].append(sample)
    groups = []
    while len(by_answer) > 1:
        most = sorted(by_answer, key=lambda answer: -len(by_answer[answer]))[:OPTIONS]
        groups.append([by_answer[answer].pop() for answer in most])
        by_answer = defaultdict(list, {a: left for a, left in by_answer.items() if left})
    return groups
