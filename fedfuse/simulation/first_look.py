"""A first look at a user's models and data: settings that suit them, and what a run will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedfuse.builtin.models import build, is_builtin, model_folder
from fedfuse.config.data import DataConfig
from fedfuse.config.model import can_learn
from fedfuse.config.run_config import RunConfig, model_configs, model_of_partition
from fedfuse.config.training import TrainingConfig
from fedfuse.data.records import available_splits
from fedfuse.data.sample import Sample
from fedfuse.data.splits import build_splits
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.factory.models import load_local_model, tokenizer_of
from fedfuse.models.dry_run import longest_input_of
from fedfuse.models.loading import UNLIMITED_LENGTH
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Texts that are tokenized, evenly spread.
LOOKED_AT = 500
# Distinct records of a domain below which nothing is left to learn from.
FEWEST = 40
# Fewest samples of a split, so that questions have options.
_LEAST = 4
# Training steps that are timed, after one that is not.
_TIMED = 2
# A pass without a gradient takes about a third of a training step.
_SCORING = 1 / 3


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the data's texts under a model's tokenizer.

    Attributes:
        median: of a text, prompt and answer.
        most: that 99 in 100 texts do not exceed.
        longest: of all that were looked at.
        shared: share of the answers' tokens that end where one of the server's tokens ends.
    """

    median: int
    most: int
    longest: int
    shared: float


def sizes(source: str, seed: int, base: DataConfig) -> dict[str, int]:
    """Samples a domain for each split, so that about half of the smallest domain stays private.

    Args:
        source: as ``data.source``.
        seed: seed of the run.
        base: sizes to stay below.

    Returns:
        By field of ``DataConfig``.

    Raises:
        FedfuseError: for data that cannot be read, or a domain of too few distinct records.
    """
    apart = all(available_splits(part.strip()) for part in source.split("+"))
    looked = replace(
        base, source=source, private=0, public=1, holdout=0, blind=0, test=0 if apart else 1
    )
    splits = build_splits(looked, 1, seed)
    kept = [*splits.private[0], *splits.public, *([] if apart else splits.test)]
    domain, count = min(Counter(s.domain for s in kept).items(), key=lambda item: item[1])
    if count < FEWEST:
        raise FedfuseError(
            f"domain {domain!r} of {source!r}: expected at least {FEWEST} distinct records to "
            f"train on, got {count}"
        )
    wanted = {"public": base.public, "holdout": base.holdout, "blind": base.blind}
    tested = min(Counter(sample.domain for sample in splits.test).values())
    wanted |= {"test": min(base.test, tested) if apart else base.test}
    cut = {name: size for name, size in wanted.items() if not (apart and name == "test")}
    scale = min(1.0, count / 2 / sum(cut.values()))
    return wanted | {name: max(_LEAST, int(size * scale)) for name, size in cut.items()}


def lengths(config: RunConfig, clients: int) -> dict[str, Lengths]:
    """Lengths of the data's texts, by model; built-in models must be built."""
    splits = load_splits(config.data, config.seed, clients)
    everything = [*splits.public, *splits.test, *(s for part in splits.private for s in part)]
    samples = everything[:: max(1, len(everything) // LOOKED_AT)][:LOOKED_AT]
    configs = model_configs(config, clients)
    tokenizers = {name: tokenizer_of(name, of.tokenizer) for name, of in configs.items()}
    server = _ends(tokenizers[config.server.model], samples)
    found = {}
    for name, tokenizer in tokenizers.items():
        texts, _ = label_rows(tokenizer, samples, UNLIMITED_LENGTH)
        counts = np.array([len(ids) for ids in texts]) + 1  # room to tell what is cut
        own = _ends(tokenizer, samples)
        shared = len(own & server) / max(1, len(own))
        middle, most = np.percentile(counts, [50, 99])
        found[name] = Lengths(int(middle), int(np.ceil(most)), int(counts.max()), shared)
    return found


def shortest_limit(config: RunConfig, clients: int) -> tuple[int, str]:
    """Fewest tokens that a model of the run takes at most, and its name; see ``longest_input_of``.

    Models that are asked elsewhere say nothing of theirs.
    """
    names = [name for name in model_configs(config, clients) if can_learn(name)]
    folders = {name: str(model_folder(name)) if is_builtin(name) else name for name in names}
    limits = ((longest_input_of(folder), name) for name, folder in folders.items())
    return min(limits, default=(UNLIMITED_LENGTH, ""))


def _ends(tokenizer: TextTokenizer, samples: Sequence[Sample]) -> set[tuple[int, int]]:
    """Sample and byte where each of the answers' tokens ends."""
    _, rows = label_rows(tokenizer, samples, UNLIMITED_LENGTH)
    return set(zip(rows.sample_of_row.tolist(), rows.byte_end.tolist(), strict=True))


def step_seconds(config: RunConfig, clients: int) -> dict[str, float]:
    """Seconds of a step of training, by model that can learn, on samples of the data.

    Raises:
        FedfuseError: for a model that cannot be loaded or trained, or takes less than
            ``data.max-length``.
    """
    splits = load_splits(config.data, config.seed, clients)
    shared = shared_samples(config.data, config.seed)
    phases: dict[str, TrainingConfig] = {config.server.model: config.server_distill}
    for number in range(clients):
        phases.setdefault(model_of_partition(config.clients.model, number), config.local)
    found = {}
    for name, phase in phases.items():
        if not can_learn(name):
            continue
        if is_builtin(name):
            build(name)
        role = config.server if name == config.server.model else config.clients
        model = load_local_model("look", name, role, shared, config.data.max_length, config.seed)
        samples = [*splits.public, *splits.private[0]][: _TIMED * phase.batch_size]
        data, plain = model.encode(samples), TrainingConfig(batch_size=phase.batch_size)
        model.learn(data, replace(plain, steps=1), seed=0)
        start = time.monotonic()
        model.learn(data, replace(plain, steps=_TIMED), seed=0)
        found[name] = (time.monotonic() - start) / _TIMED
        model.reset()
    return found


def run_seconds(config: RunConfig, clients: int, at_once: int, steps: dict[str, float]) -> float:
    """A guess of a run's seconds, from those of a step of each model.

    Args:
        config: the run config.
        clients: number of clients.
        at_once: number of them that run at the same time.
        steps: as ``step_seconds`` returns them.
    """
    domains = len(load_splits(config.data, config.seed, clients).domains)
    data, batch = config.data, config.local.batch_size
    scored = domains * (data.test + 4 * data.questions) / batch * _SCORING
    known = domains * data.public / batch * _SCORING
    replayed = 2 if config.client_distill.replay else 1
    trained = config.local.steps + replayed * config.client_distill.steps
    alone = 2 if config.baselines else 0  # standalone and public-only have as many steps
    names = [model_of_partition(config.clients.model, number) for number in range(clients)]
    of_clients = sum(steps.get(name, 0.0) for name in names) / at_once
    of_server, distil = steps.get(config.server.model, 0.0), config.server_distill.steps
    by_clients = config.rounds * ((1 + alone) * trained + known + (1 + alone) * scored)
    by_server = config.rounds * ((1 + alone / 2) * distil + known + scored)
    by_server += distil if config.labels_first else 0
    return of_clients * by_clients + of_server * by_server
