"""Real data sets cut into a federation's splits: private, public, test, holdout, questions."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, combinations

import numpy as np

from fedfuse.data.partition import partition
from fedfuse.data.records import available_splits, load_records, source_name
from fedfuse.data.sample import Sample, Splits
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError

log = logging.getLogger(__name__)

# Where the split "test" is asked for and there is none: what data sets call their next best.
TEST_FALLBACKS = ("dev", "validation")


def build_splits(
    source: str,
    *,
    num_partitions: int,
    scheme: str,
    alpha: float,
    seed: int,
    public_samples: int,
    test_samples: int,
    holdout_samples: int,
    question_samples: int,
    private_samples: int,
    template: str = "",
    train_split: str = "train",
    test_split: str = "test",
) -> Splits:
    """Read data sets and cut them into disjoint splits; all sizes are per domain.

    Args:
        source: what ``load_records`` reads, several joined by ``+``. Each is a domain named after
            its last path component, unless its records name their own.
        num_partitions: number of clients; see ``partition``.
        scheme: how private samples are dealt.
        alpha: label skew of the schemes ``dirichlet`` and ``dirichlet-equal``.
        seed: of the shuffles and the dealing.
        public_samples: from the train split, at least 1.
        test_samples: from the test split, at most; 0 takes all.
        holdout_samples: from the train split; 0 for none.
        question_samples: those of the test samples that have options, at most; 0 for none.
        private_samples: from the rest of the train split, at most; 0 takes all.
        template: see ``to_samples``.
        train_split: the split to train on.
        test_split: the split to test on; ``test`` falls back to ``dev`` or ``validation``. A source
            that is a single file has no splits: its test samples are a part of it.

    Raises:
        FedfuseError: for data that cannot be read, is too small for the sizes, or overlaps.
    """
    _check_sizes(public_samples, test_samples, holdout_samples, question_samples, private_samples)
    train: list[Sample] = []
    test: list[Sample] = []
    for part in _sources(source):
        learn, held = _read(part, template, train_split, test_split, seed, test_samples)
        train += learn
        test += held
    train = _without_duplicates(train, test)

    private: list[Sample] = []
    public: list[Sample] = []
    holdout: list[Sample] = []
    for domain, samples in _shuffled(train, seed):
        reserved = public_samples + holdout_samples
        if len(samples) <= reserved:
            raise FedfuseError(
                f"domain {domain!r} has {len(samples)} distinct train samples: expected more than "
                f"the {reserved} for public ({public_samples}) and holdout ({holdout_samples})"
            )
        public += samples[:public_samples]
        holdout += samples[public_samples:reserved]
        private += samples[reserved:][: private_samples or None]
    tested = [s for _, group in _shuffled(test, seed) for s in group[: test_samples or None]]
    questions = [
        s for _, group in _grouped(s for s in tested if s.options) for s in group[:question_samples]
    ]
    splits = Splits(
        partition(private, scheme, num_partitions, alpha, seed), public, tested, holdout, questions
    )
    check_splits(splits)
    return splits


def own_samples(source: str, template: str, shared: Splits) -> list[Sample]:
    """The private samples of a client that has data of its own: all of it, but for what all share.

    Args:
        source: as for ``build_splits``; of what has splits, the one named ``train``.
        template: see ``to_samples``.
        shared: whose public, test and holdout texts are left out.

    Raises:
        FedfuseError: for data that cannot be read, or has no text that is not shared.
    """
    own: list[Sample] = []
    for part in _sources(source):
        split = "train" if available_splits(part) else ""
        records = load_records(part, split)
        own += to_samples(records, domain=source_name(part), template=template)
    kept = _without_duplicates(own, [*shared.public, *shared.test, *shared.holdout])
    if not kept:
        raise FedfuseError(
            f"data source {source!r} has no text that is not in the public, test or holdout set: "
            "expected at least one"
        )
    return kept


def check_splits(splits: Splits) -> None:
    """Check that a federation can be run and trusted on these splits.

    Raises:
        FedfuseError: for an empty public or test set or client, and for a text that is in two of
            private, public, test and holdout, naming both.
    """
    for name, samples in (("public", splits.public), ("test", splits.test)):
        if not samples:
            raise FedfuseError(f"the {name} set: expected at least one sample, got none")
    for number, part in enumerate(splits.private):
        if not part:
            raise FedfuseError(f"the private set of partition {number} is empty")
    texts = {
        "private": {sample.text for sample in chain.from_iterable(splits.private)},
        "public": {sample.text for sample in splits.public},
        "test": {sample.text for sample in splits.test},
        "holdout": {sample.text for sample in splits.holdout},
    }
    for first, second in combinations(texts, 2):
        shared = texts[first] & texts[second]
        if shared:
            raise FedfuseError(
                f"overlapping splits: expected no text in two, got {len(shared)} in {first} and "
                f"{second}; one is {min(shared)!r}"
            )


def _check_sizes(public: int, test: int, holdout: int, questions: int, private: int) -> None:
    if public < 1:
        raise FedfuseError(
            f"public_samples: expected at least 1, or there is no public set, got {public}"
        )
    sizes = {
        "test_samples": test,
        "holdout_samples": holdout,
        "question_samples": questions,
        "private_samples": private,
    }
    wrong = [f"{name}: expected 0 or more, got {size}" for name, size in sizes.items() if size < 0]
    if wrong:
        raise FedfuseError("; ".join(wrong))


def _sources(source: str) -> list[str]:
    parts = [part.strip() for part in source.split("+")]
    if not all(parts):
        raise FedfuseError(
            f"data source {source!r} has an empty part: expected names joined by '+'"
        )
    names = [source_name(part) for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FedfuseError(
            f"data source {source!r} has several parts named {', '.join(twice)}: "
            "expected different last path components, since they name the domains"
        )
    return parts


def _read(
    source: str, template: str, train_split: str, test_split: str, seed: int, test_samples: int
) -> tuple[list[Sample], list[Sample]]:
    """The train and the test samples of one source."""
    name = source_name(source)
    splits = available_splits(source)
    if splits:
        if test_split == "test" and test_split not in splits:
            test_split = next((other for other in TEST_FALLBACKS if other in splits), test_split)
        train, test = (
            to_samples(load_records(source, split), domain=name, template=template)
            for split in (train_split, test_split)
        )
        return train, test
    if not test_samples:
        raise FedfuseError(
            f"data source {source!r} is a single file and test_samples is 0: "
            "expected the number of samples a domain to cut off for the test"
        )
    samples = to_samples(load_records(source, ""), domain=name, template=template)
    samples = list({sample.text: sample for sample in samples}.values())
    groups = [group for _, group in _shuffled(samples, seed)]
    return (
        [sample for group in groups for sample in group[test_samples:]],
        [sample for group in groups for sample in group[:test_samples]],
    )


def _without_duplicates(train: Sequence[Sample], held: Sequence[Sample]) -> list[Sample]:
    """The train samples whose text is no held-out sample's and no earlier train sample's."""
    tested = {sample.text for sample in held}
    distinct = {s.text: s for s in reversed(train) if s.text not in tested}
    kept = list(reversed(distinct.values()))
    if len(kept) < len(train):
        leaked = sum(sample.text in tested for sample in train)
        log.warning(
            "dropped %d of %d train samples: %d with a text that is held out, %d repeated",
            len(train) - len(kept),
            len(train),
            leaked,
            len(train) - len(kept) - leaked,
        )
    return kept


def _grouped(samples: Iterable[Sample]) -> list[tuple[str, list[Sample]]]:
    """The samples of each domain, sorted by its name."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.domain].append(sample)
    return sorted(groups.items())


def _shuffled(samples: Iterable[Sample], seed: int) -> list[tuple[str, list[Sample]]]:
    """The samples of each domain in an order that no other domain has any influence on."""
    shuffled = []
    for domain, group in _grouped(samples):
        order = np.random.default_rng([seed, *domain.encode()]).permutation(len(group))
        shuffled.append((domain, [group[index] for index in order]))
    return shuffled
