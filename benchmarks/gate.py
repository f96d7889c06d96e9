"""What learning whom to trust costs: ``python -m benchmarks.gate --json FILE``.

A round of the quickstart with 32 clients, the four built-in kinds eight times: every piece of work
that server and clients do is timed by itself, in turns, and the medians are multiplied by how often
a round does it. Of the gate are the views of the prompts, the evidence about all candidates and
the learning and weighing. What the clients know is what their untrained models know: time does not
depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from benchmarks import harness
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, parse
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import new_aligner
from fedfuse.fusion.event_mixing import AlignedRows, fuse_rows
from fedfuse.fusion.gating.learned_gate import LearnedGate
from fedfuse.fusion.teacher_stats import StackedStats, compute_stats, stack_stats

CLIENTS = 32
KINDS = 4
# Pieces of work that are there because of the gate.
GATE = ("view contexts", "compute stats", "weigh")


class Work:
    """One side and what it does in a round, piece by piece."""

    def __init__(self, config: RunConfig, who: LocalModel, candidates: list[LocalModel]) -> None:
        self.config, self.who = config, who
        self.view = who.view_contexts()
        self.aligner = new_aligner(who, config.knowledge)
        k = config.knowledge.k
        self.own = who.knowledge(k)
        self.received = [(c.knowledge(k), c.tokenizer) for c in candidates]
        self.context_losses = [self.view.loss, *(c.view_contexts().loss for c in candidates)]
        self.projected = [self.own.distribution, *self.align()]

    def jobs(self, private: Any) -> dict[str, Callable[[], Any]]:
        """By name."""
        config, who, k = self.config, self.who, self.config.knowledge.k
        gates = iter([LearnedGate(config.gate, seed=0) for _ in range(99)])
        stats = self.stats()
        weights = LearnedGate(config.gate, seed=0)(stats)
        teacher = fuse_rows(self.projected, weights, k)
        phase = config.server_distill if private is None else config.client_distill
        options = {"seed": 0, "teacher": teacher, "replay": private}
        jobs: dict[str, Callable[[], Any]] = {
            "extract": lambda: who.knowledge(k),
            "align": self.align,
            "compute stats": self.stats,
            "weigh": lambda: next(gates)(stats),
            "fuse": lambda: fuse_rows(self.projected, weights, k),
            "distil": lambda: who.learn(who.public, phase, **options),
            "evaluate": who.score,
        }
        if private is None:
            jobs["view contexts"] = who.context_losses
        else:
            jobs["extract and view"] = lambda: who.knowledge_with_contexts(k)
            jobs["local"] = lambda: who.learn(private, config.local, seed=0)
        return jobs

    def align(self) -> list[AlignedRows]:
        """What the candidates know, in the side's own terms."""
        return [self.aligner(known, tokenizer) for known, tokenizer in self.received]

    def stats(self) -> StackedStats:
        """About all candidates, side by side."""
        label, vocab_size = self.aligner.rows.token, self.who.tokenizer.vocab_size
        sent = [self.own, *(known for known, _ in self.received)]
        parts = [
            compute_stats(
                one,
                known.first_rows,
                self.projected[0],
                label,
                vocab_size,
                known.loss,
                context_loss,
            )
            for one, known, context_loss in zip(
                self.projected, sent, self.context_losses, strict=True
            )
        ]
        return stack_stats(parts, self.own.offsets, self.view.state)


def measure(config: RunConfig, timings: harness.Timings, repeats: int) -> dict[str, float]:
    """The gate's share of a round's compute, by strategy."""
    private = load_splits(config.data, config.seed, CLIENTS).private
    clients = [harness.model_of(config, number) for number in range(CLIENTS)]
    server = harness.model_of(config, None)
    sides = {"server": Work(config, server, clients).jobs(None)}
    for number in range(KINDS):
        work = Work(config, clients[number], [server])
        sides[f"client {number}"] = work.jobs(clients[number].encode(private[number]))
    all_jobs = {f"{side} {what}": job for side, jobs in sides.items() for what, job in jobs.items()}
    timings.alternate(all_jobs, repeats)
    return {
        f"{strategy}_gate_share_of_round": share(strategy, sides, timings)
        for strategy in ("fusion-x", "fedfuse")
    }


def share(strategy: str, sides: Mapping[str, Iterable[str]], timings: harness.Timings) -> float:
    """The gate's part of all that server and clients compute in a round.

    Either side extracts twice: to tell the other, and to compare itself with it. The clients view
    their prompts once, in the pass of the first extraction, and keep what they found: with
    ``fusion-x`` they tell the server's gate and have none of their own; with ``fedfuse`` they
    have, and the server views prompts a second time, when it has learned, to tell theirs. Pooled
    states of prompts are found once a run.
    """
    mutual = strategy == "fedfuse"
    total = ours = 0.0
    for side, jobs in sides.items():
        medians = {what: timings.median(f"{side} {what}") for what in jobs}
        if side == "server":
            clients, times = 1, {"extract": 2, "view contexts": 1 + mutual}
        else:
            both = medians.pop("extract and view")
            medians["view contexts"] = max(both - medians["extract"], 0)
            clients = CLIENTS // KINDS
            times = {"extract": 2, "compute stats": int(mutual), "weigh": int(mutual)}
        for what, median in medians.items():
            seconds = times.get(what, 1) * median * clients
            total += seconds
            ours += seconds if what in GATE else 0
    return ours / total


@harness.benchmark
def main(
    file: harness.File, repeats: harness.Repeats = 5, quick: harness.Quick = False
) -> Iterator[harness.Measured]:
    """Measure every piece of work, and write the result file."""
    torch.set_num_threads(1)  # as a simulated client has
    config = parse(harness.QUICK if quick else {})
    timings = harness.Timings()
    results = measure(config, timings, repeats)
    yield harness.Measured(results, {"seconds": timings.seconds}, config.seed)
