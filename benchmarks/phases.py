"""What the quickstart's distillation phases cost: ``python -m benchmarks.phases --json FILE``.

The quickstart's own models, public set and settings: the server's distillation, a distillation of
each client with replay of its private samples, and extraction of each model's knowledge; as they
are, and as they were before the fused loss (``benchmarks.dense_training``). Both take turns, and
medians are compared, so that what else the machine does hits both. Then one round of the
quickstart, for some seeds: both ways must end at the same test loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from statistics import mean
from typing import Annotated, Any

import torch
import typer

from benchmarks import dense_training, harness
from fedfuse.algorithms.local_model import AdapterState
from fedfuse.config.run_config import RunConfig, model_of_partition, parse
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import new_aligner
from fedfuse.fusion.fuser import KnowledgeFuser
from fedfuse.fusion.rules import dual_min_ce
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.tokenizer import TextTokenizer

CLIENTS = 4
WAYS = ("before", "after")


class Side:
    """The server (``partition`` None) or a client, with both ways to do what it does."""

    def __init__(self, config: RunConfig, partition: int | None) -> None:
        self.config, self.partition = config, partition
        side = config.server if partition is None else config.clients
        name = side.model if partition is None else model_of_partition(side.model, partition)
        self.name = name.removeprefix("builtin:")
        self.local_model = harness.model_of(config, partition)
        self.phase = config.server_distill if partition is None else config.client_distill
        self._private = (
            []
            if partition is None
            else load_splits(config.data, config.seed, CLIENTS).private[partition]
        )
        self.private = self.local_model.encode(self._private) if self._private else None

    @cached_property
    def padded(self) -> dense_training.PaddedSet:
        """The public set as it was batched before."""
        return dense_training.PaddedSet(self.local_model, self.local_model.public.samples)

    @cached_property
    def padded_private(self) -> dense_training.PaddedSet | None:
        """The private set as it was batched before."""
        if not self._private:
            return None
        return dense_training.PaddedSet(self.local_model, self._private)

    def local(self) -> None:
        """A client's training on its own data."""
        assert self.private is not None
        self.local_model.reset()
        self.local_model.learn(self.private, self.config.local, seed=self.config.seed)

    def distil(
        self, way: str, teacher: SparseDistribution, start: AdapterState, steps: int | None = None
    ) -> float:
        """A distillation phase from a given adapter on; returns its last loss."""
        self.local_model.adapter = start
        settings = self.phase if steps is None else replace(self.phase, steps=steps)
        if way == "before":
            return dense_training.train(
                self.local_model,
                self.padded,
                settings,
                self.config.seed,
                teacher,
                settings.objective.label_weight,
                self.padded_private,
            )
        loss, _ = self.local_model.learn(
            self.local_model.public,
            settings,
            seed=self.config.seed,
            teacher=teacher,
            replay=self.private,
        )
        return loss

    def extract(self, way: str) -> Any:
        """Knowledge of the public set."""
        k = self.config.knowledge.k
        if way == "before":
            return dense_training.extract(self.local_model, self.padded, k)
        return self.local_model.knowledge(k)

    def fused_targets(self, known: list[tuple[Knowledge, TextTokenizer]]) -> SparseDistribution:
        """What others teach this side, as in a round."""
        rules = self.config.knowledge
        aligner = new_aligner(self.local_model, rules)
        fuser = KnowledgeFuser(aligner, self.local_model.knowledge(rules.k))
        others = [fuser.align_teacher(*teacher) for teacher in known]
        return fuser.fuse(others, dual_min_ce, rules.k, tail=rules.tail).teacher

    def loss(self) -> float:
        """Test loss, nats per byte, mean over domains."""
        return mean(score.loss for score in self.local_model.score().values())

    def own_teacher(self) -> SparseDistribution:
        """Its own knowledge: who teaches does not matter for what a phase costs."""
        known = self.local_model.knowledge(self.config.knowledge.k)
        return known.distribution


def measure_time(
    config: RunConfig, timings: harness.Timings, *, repeats: int, steps: int
) -> dict[str, float]:
    """Seconds of a phase now over those before; clients' phases one after the other."""
    sides = [Side(config, partition) for partition in (None, *range(CLIENTS))]
    jobs: dict[str, Callable[[], Any]] = {}
    for side in sides:
        teacher, start = side.own_teacher(), side.local_model.adapter
        for way in WAYS:
            jobs[f"{side.name} distil {way}"] = lambda s=side, w=way, t=teacher, a=start: s.distil(
                w, t, a, steps
            )
            jobs[f"{side.name} extract {way}"] = lambda s=side, w=way: s.extract(w)
    for side in sides:  # the first calls set things up
        for way in WAYS:
            side.distil(way, side.own_teacher(), side.local_model.adapter, 1)
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


def one_round(config: RunConfig, steps: int | None = None) -> dict[str, dict[str, float]]:
    """Test losses of the server, and of the first client, after a round, both ways."""
    server = Side(config, None)
    server.local_model.reset()
    known, adapters = [], []
    for partition in range(CLIENTS):
        client = Side(config, partition)
        client.local()
        adapters.append(client.local_model.adapter)
        known.append(
            (client.local_model.knowledge(config.knowledge.k), client.local_model.tokenizer)
        )
    teacher, start = server.fused_targets(known), server.local_model.adapter
    losses: dict[str, dict[str, float]] = {"server": {}, "client": {}}
    for way in WAYS:
        server.distil(way, teacher, start, steps)
        losses["server"][way] = server.loss()
    told = (server.local_model.knowledge(config.knowledge.k), server.local_model.tokenizer)
    client = Side(config, 0)
    client.local_model.adapter = adapters[0]
    teacher = client.fused_targets([told])
    for way in WAYS:
        client.distil(way, teacher, adapters[0], steps)
        losses["client"][way] = client.loss()
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
    given: dict[str, Any] = dict(harness.QUICK) if quick else {}
    config = parse(given)
    timings = harness.Timings()
    results = measure_time(config, timings, repeats=repeats, steps=steps)
    losses = [
        one_round(parse(given | {"seed": seed}), steps if quick else None) for seed in range(seeds)
    ]
    results |= {
        f"{side}_loss_{way}": mean(loss[side][way] for loss in losses)
        for side in ("server", "client")
        for way in WAYS
    }
    raw = {"seconds": timings.seconds, "losses": losses}
    yield harness.Measured(results, raw, config.seed, {"torch_threads": torch.get_num_threads()})
