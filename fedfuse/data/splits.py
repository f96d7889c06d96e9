"""Real data sets cut into a federation's splits: private, public, test, holdout, blind samples and
questions.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import chain, combinations

import numpy as np

from fedfuse.config.data import DataConfig
from fedfuse.data.partition import partition
from fedfuse.data.records import available_splits, load_records, source_name
from fedfuse.data.sample import Sample, Splits
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError

log = logging.getLogger(__name__)

# What data sets call their test split, the best first.
TEST_SPLITS = ("test", "dev", "validation")


def build_splits(config: DataConfig, num_partitions: int, seed: int) -> Splits:
    """Read data sets and cut them into disjoint splits; all sizes are per domain.

    Args:
        config: what to read, several sources joined by ``+``, and how much of it for each split.
            A source is a domain named after its last path component, unless its records name their
            own. The test split may be called ``dev`` or ``validation``; a single file has no
            splits: its test samples are a part of it. A ``test`` or ``private`` of 0 takes all.
        num_partitions: number of clients.
        seed: seed of the shuffles and the dealing.

    Raises:
        FedfuseError: for data that cannot be read, is too small for the sizes, or overlaps.
    """
    _check_sizes(config)
    train: list[Sample] = []
    test: list[Sample] = []
    for part in _sources(config.source):
        for_training, held_out = _read(part, config, seed)
        train += for_training
        test += held_out
    train = _without_duplicates(train, test)

    private: list[Sample] = []
    public: list[Sample] = []
    holdout: list[Sample] = []
    blind: list[Sample] = []
    reserved = config.public + config.holdout + config.blind
    for domain, samples in _shuffled(train, seed):
        sizes = (config.public, config.holdout, config.blind)
        *cut, rest = _cut(samples, *sizes)
        if not rest:
            raise FedfuseError(
                f"domain {domain!r} has {len(samples)} distinct train samples: expected more than "
                f"the {reserved} for public ({config.public}), holdout ({config.holdout}) and "
                f"blind ({config.blind})"
            )
        for split, found in zip((public, holdout, blind), cut, strict=True):
            split += found
        private += rest[: config.private or None]
    tested = [s for _, group in _shuffled(test, seed) for s in group[: config.test or None]]
    asked = _grouped(s for s in tested if s.options)
    questions = [s for _, group in asked for s in group[: config.questions]]
    parts = partition(private, config.partition, num_partitions, config.alpha, seed)
    splits = Splits(parts, public, tested, holdout, questions, blind)
    check_splits(splits)
    return splits


def own_samples(source: str, template: str, shared: Sequence[Sample]) -> list[Sample]:
    """The private samples of a client that has data of its own: all of it, but for what all share.

    Args:
        source: as for ``build_splits``; of what has splits, the one named ``train``.
        template: see ``to_samples``.
        shared: samples whose texts are left out.

    Raises:
        FedfuseError: for data that cannot be read, or has no text that is not shared.
    """
    own: list[Sample] = []
    for part in _sources(source):
        split = "train" if available_splits(part) else ""
        records = load_records(part, split)
        own += to_samples(records, domain=source_name(part), template=template)
    kept = _without_duplicates(own, shared)
    if not kept:
        raise FedfuseError(
            f"data source {source!r} has no text that is not in the public or test set: "
            "expected at least one"
        )
    return kept


def scored_data(source: str, template: str) -> list[Sample]:
    """All samples of data that a finished model is scored on.

    Args:
        source: as for ``build_splits``; of what has splits, the one for tests.
        template: see ``to_samples``.

    Raises:
        FedfuseError: for data that cannot be read.
    """
    found: list[Sample] = []
    for part in _sources(source):
        split = _test_split(available_splits(part))
        found += to_samples(load_records(part, split), domain=source_name(part), template=template)
    return found


def split_validation(
    samples: Sequence[Sample], most: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Cut validation samples off: of each domain a tenth, at most ``most``.

    Returns:
        The others, in their order, and the validation samples.
    """
    validation: list[Sample] = []
    kept: set[str] = set()
    for _, group in _shuffled(samples, seed):
        found, rest = _cut(group, min(most, len(group) // 10))
        validation += found
        kept |= {sample.text for sample in rest}
    return [sample for sample in samples if sample.text in kept], validation


def check_splits(splits: Splits) -> None:
    """Check that a federation can be run and trusted on these splits.

    Raises:
        FedfuseError: for an empty public or test set or client, and for a text that is in two of
            private, public, test, holdout and blind, naming both.
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
        "blind": {sample.text for sample in splits.blind},
    }
    for first, second in combinations(texts, 2):
        shared = texts[first] & texts[second]
        if shared:
            raise FedfuseError(
                f"overlapping splits: expected no text in two, got {len(shared)} in {first} and "
                f"{second}; one is {min(shared)!r}"
            )


def _check_sizes(config: DataConfig) -> None:
    least = {"public": 1, "test": 0, "holdout": 0, "blind": 0, "questions": 0, "private": 0}
    sizes = {name: getattr(config, name) for name in least}
    wrong = [
        f"data.{name}: expected at least {least[name]}, got {size}"
        for name, size in sizes.items()
        if size < least[name]
    ]
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


def _read(source: str, config: DataConfig, seed: int) -> tuple[list[Sample], list[Sample]]:
    """The train and the test samples of one source."""

    def read(split: str) -> list[Sample]:
        records = load_records(source, split)
        return to_samples(records, domain=source_name(source), template=config.template)

    if splits := available_splits(source):
        return read("train"), read(_test_split(splits))
    if not config.test:
        raise FedfuseError(
            f"data source {source!r} is a single file: expected a data.test above 0, the number of "
            "samples a domain to cut off for the test, got 0"
        )
    distinct = {sample.text: sample for sample in read("")}.values()
    train: list[Sample] = []
    tested: list[Sample] = []
    for _, group in _shuffled(distinct, seed):
        found, rest = _cut(group, config.test)
        tested += found
        train += rest
    return train, tested


def _test_split(splits: Sequence[str]) -> str:
    """What a source calls its test split; one without splits needs no name."""
    return next((name for name in TEST_SPLITS if name in splits), TEST_SPLITS[0])


def _without_duplicates(train: Sequence[Sample], held_out: Sequence[Sample]) -> list[Sample]:
    """The train samples whose text is no held-out sample's and no earlier train sample's."""
    tested = {sample.text for sample in held_out}
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
    """The samples of each domain in an order that no other domain has any influence on; those of
    one chat stay together.
    """
    shuffled = []
    for domain, group in _grouped(samples):
        chats = _chats(group)
        order = np.random.default_rng([seed, *domain.encode()]).permutation(len(chats))
        shuffled.append((domain, [sample for index in order for sample in chats[index]]))
    return shuffled


def _cut(samples: Sequence[Sample], *sizes: int) -> list[list[Sample]]:
    """The first samples, so many in each part, and the rest; no chat is in two parts.

    An answer in a chat is in the turns before the next one: what is left of a chat that a part ends
    in goes to nobody.
    """
    parts: list[list[Sample]] = [[] for _ in sizes]
    left = deque(_chats(samples))
    for part, size in zip(parts, sizes, strict=True):
        while left and len(part) < size:
            part += left.popleft()[: size - len(part)]
    return [*parts, [sample for chat in left for sample in chat]]


def _chats(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples of one chat together, by their first ones; each other sample alone.

    Of one chat are samples that have a user's turn and an answer to it in common: a greeting that
    all chats begin with makes them no one chat.
    """
    chats: list[list[Sample]] = []
    chat_of: dict[tuple[tuple[str, str], ...], list[Sample]] = {}  # by turns up to an answer
    for sample in samples:
        turns = (*sample.turns, ("assistant", sample.answer))
        users = np.cumsum([role == "user" for role, _ in turns])
        said = [
            turns[: i + 1] for i, (role, _) in enumerate(turns) if role == "assistant" and users[i]
        ]
        chat = next((chat_of[part] for part in said if part in chat_of), None)
        if chat is None:
            chat = []
            chats.append(chat)
        chat.append(sample)
        for part in said:
            chat_of.setdefault(part, chat)
    return chats
