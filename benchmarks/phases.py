"""What the quickstart's distillation phases cost: ``python -m benchmarks.phases --json FILE``.

The quickstart's own models, public set and settings: the server's distillation, a distillation of
each client with replay of its private samples, and extraction of each model's knowledge; as they
are, and as they were before the fused loss (``benchmarks.dense_training``). Both take turns, and
medians are compared, so that what else the machine does hits both. Then one round of the
quickstart, for some seeds: both ways must end at the same test loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer

from benchmarks import dense_training, harness
from fedfuse.algorithms.fedmkt import client_step, local_step, server_step
from fedfuse.algorithms.local_model import AdapterState, LocalModel
from fedfuse.config.run_config import RunConfig, model_of_partition, parse
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import new_aligner
from fedfuse.fusion.rules import dual_min_ce
from fedfuse.sparse import SparseDistribution

CLIENTS = 4
WAYS = ("before", "after")
# What could be done before.
DENSE = {"knowledge.alignment": "exact-boundary"}


def learning(way: str) -> AbstractContextManager[object]:
    """Context in which local models learn in one of the ``WAYS``."""
    if way == "after":
        return nullcontext()
    return patch.object(LocalModel, "learn", dense_training.learn)


class Side:
    """The server (``partition`` None) or a client, with both ways to do what it does."""

    def __init__(self, config: RunConfig, partition: int | None) -> None:
        self.config = config
        self.local_model = harness.model_of(config, partition)
        self.private = None
        if partition is None:
            name, self.phase = config.server.model, config.server_distill
        else:
            name = model_of_partition(config.clients.model, partition)
            self.phase = config.client_distill
            samples = load_splits(config.data, config.seed, CLIENTS).private[partition]
            self.private = self.local_model.encode(samples)
        self.name = name.removeprefix("builtin:")

    def distil(
        self, way: str, teacher: SparseDistribution, start: AdapterState, steps: int
    ) -> float:
        """A distillation phase from a given adapter on; returns its last loss."""
        self.local_model.adapter = start
        with learning(way):
            loss, _ = self.local_model.learn(
                self.local_model.public,
                replace(self.phase, steps=steps),
                seed=self.config.seed,
                teacher=teacher,
                replay=self.private,
            )
        return loss

    def extract(self, way: str) -> Any:
        """Knowledge of the public set."""
        k = self.config.knowledge.k
        if way == "before":
            return dense_training.extract(self.local_model, k)
        return self.local_model.knowledge(k)

    def loss(self) -> float:
        """Test loss, nats per byte, mean over domains."""
        return mean(score.loss for score in self.local_model.score().values())

    def own_teacher(self) -> SparseDistribution:
        """Its own knowledge: who teaches does not matter for what a phase costs."""
        return self.local_model.knowledge(self.config.knowledge.k).distribution


def measure_time(
    config: RunConfig, timings: harness.Timings, *, repeats: int, steps: int
) -> dict[str, float]:
    """Seconds of a phase now over those before; clients' phases one after the other."""
    sides = [Side(config, partition) for partition in (None, *range(CLIENTS))]
    jobs: dict[str, Callable[[], Any]] = {}
    for side in sides:
        teacher, start = side.own_teacher(), side.local_model.adapter
        for way in WAYS:
            jobs[f"{side.name} distil {way}"] = partial(side.distil, way, teacher, start, steps)
            jobs[f"{side.name} extract {way}"] = partial(side.extract, way)
            side.distil(way, teacher, start, 1)  # the first calls set things up
    timings.alternate(jobs, repeats)

    def seconds(names: list[str], what: str, way: str) -> float:
        return sum(timings.median(f"{name} {what} {way}") for name in names)

    server, clients = [sides[0].name], [side.name for side in sides[1:]]
    groups = {
        "server_distil": (server, "distil"),
        "client_distil": (clients, "distil"),
        "extract": (server + clients, "extract"),
    }
    return {
        f"{group}_time_after_over_before": seconds(*what, "after") / seconds(*what, "before")
        for group, what in groups.items()
    }


def one_round(config: RunConfig) -> dict[str, dict[str, float]]:
    """Test losses of the server, and of the first client, after a round, both ways."""
    server, first = Side(config, None), Side(config, 0)
    public, rules, seed = server.local_model.public, config.knowledge, config.seed
    received, adapters = [], []
    for partition in range(CLIENTS):
        client = Side(config, partition)
        model = client.local_model
        model.reset()
        assert client.private is not None
        *_, sent = local_step(model, client.private, model.public, rules.k, config.local, seed=seed)
        received.append((str(partition), sent))
        adapters.append(model.adapter)
    losses: dict[str, dict[str, float]] = {"server": {}, "client": {}}
    for way in WAYS:
        model = server.local_model
        model.reset()
        aligner = new_aligner(model, rules)
        with learning(way):
            _, sent = server_step(
                model, public, received, dual_min_ce, aligner, rules, server.phase, seed=seed
            )
        losses["server"][way] = server.loss()
    for way in WAYS:
        model = first.local_model
        model.adapter = adapters[0]
        with learning(way):
            client_step(
                model,
                model.public,
                sent,
                dual_min_ce,
                new_aligner(model, rules),
                rules,
                first.phase,
                seed=seed,
                replay=first.private,
            )
        losses["client"][way] = first.loss()
    return losses


@harness.benchmark
def main(
    file: harness.File,
    repeats: harness.Repeats = 9,
    steps: harness.Steps = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Rounds for the losses, a seed each.")] = 3,
    quick: harness.Quick = False,
) -> Iterator[harness.Measured]:
    """Measure phases and rounds, and write the result file."""
    torch.set_num_threads(1)  # as a simulated client has
    config = parse({**(harness.QUICK if quick else {}), **DENSE})
    timings = harness.Timings()
    results = measure_time(config, timings, repeats=repeats, steps=steps)
    losses = [one_round(replace(config, seed=seed)) for seed in range(seeds)]
    results |= {
        f"{side}_loss_{way}": mean(loss[side][way] for loss in losses)
        for side in ("server", "client")
        for way in WAYS
    }
    yield harness.Measured(results, {"seconds": timings.seconds, "losses": losses}, config.seed)
