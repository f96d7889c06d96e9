"""What learning whom to trust costs: ``python -m benchmarks.selector --json FILE``.

A round of the quickstart with 32 clients, the four built-in kinds eight times: every piece of work
that server and clients do is timed by itself, in turns, and the medians are multiplied by how often
a round does it. Of the selector are the views of the prompts, the evidence about all candidates and
the learning and weighing. What the clients know is what their untrained models know: time does not
depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.frame import Timings, machine, write_json
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, model_of_partition, parse
from fedfuse.factory.models import load_local_model, load_splits, new_aligner
from fedfuse.fusion.gating.learned_gate import LearnedGate
from fedfuse.fusion.mixing import fuse
from fedfuse.fusion.teacher_stats import StackedStats, compute_stats, stack_stats
from fedfuse.knowledge.record import Knowledge

CLIENTS = 32
KINDS = 4
# Of a run that checks the benchmark itself.
QUICK = {
    "data.private": 20,
    "data.public": 4,
    "data.test": 1,
    "data.questions": 2,
    "local.steps": 2,
    "server-distill.steps": 2,
    "client-distill.steps": 2,
}
# Pieces of work that are there because of the selector.
SELECTOR = ("view prompts", "examine", "select")


class Work:
    """One side and what it does in a round, piece by piece."""

    def __init__(self, config: RunConfig, who: LocalModel, candidates: list[LocalModel]) -> None:
        self.config, self.who = config, who
        self.view = who.view_contexts()
        self.aligner = new_aligner(who, config.knowledge)
        k = config.knowledge.k
        self.own = who.knowledge(k)
        self.heard = [(c.knowledge(k), c.tokenizer, c.view_contexts().loss) for c in candidates]
        self.projected = [self.aligner.own(self.own)]
        self.projected += [self.aligner(known, tokenizer) for known, tokenizer, _ in self.heard]

    def jobs(self, private: Any) -> dict[str, Callable[[], Any]]:
        """By name."""
        k = self.config.knowledge.k
        settings = self.config.gate
        selectors = iter([LearnedGate(settings, seed=0) for _ in range(99)])
        stats = self.stats()
        weights = LearnedGate(settings, seed=0)(stats)
        teacher = fuse(self.projected, weights, k)
        server = private is None
        phase = self.config.server_distill if server else self.config.client_distill
        jobs: dict[str, Callable[[], Any]] = {
            "extract": lambda: self.who.knowledge(k),
            "translate": lambda: [self.aligner(known, t) for known, t, _ in self.heard],
            "examine": self.stats,
            "select": lambda: next(selectors)(stats),
            "fuse": lambda: fuse(self.projected, weights, k),
            "distil": lambda: self.who.learn(
                self.who.public,
                phase,
                seed=0,
                teacher=teacher,
                replay=private,
            ),
        }
        jobs["evaluate"] = self.who.score
        if server:
            jobs["view prompts"] = self.who.context_losses
        else:
            jobs["extract and view"] = lambda: self.who.knowledge_with_contexts(k)
            jobs["local"] = lambda: self.who.learn(private, self.config.local, seed=0)
        return jobs

    def stats(self) -> StackedStats:
        """About all candidates, side by side."""
        label, vocab_size = self.aligner.rows.token, self.who.tokenizer.vocab_size
        told: list[tuple[Knowledge, Any]] = [(self.own, self.view.loss)]
        told += [(known, loss) for known, _, loss in self.heard]
        parts = [
            compute_stats(one, self.projected[0], label, vocab_size, known.loss, context_loss)
            for one, (known, context_loss) in zip(self.projected, told, strict=True)
        ]
        return stack_stats(parts, self.own.offsets, self.view.state)


def main(
    json: Annotated[Path, typer.Option(help="File to write.")],
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Repeats of every piece.")] = 5,
    quick: Annotated[bool, typer.Option(help="A check of the benchmark: sizes too small.")] = False,
) -> None:
    """Measure and write the result file."""
    started, about = time.monotonic(), machine()
    torch.set_num_threads(1)  # as a simulated client has
    config = parse(dict(QUICK) if quick else {})
    timings = Timings()
    results = measure(config, timings, repeats)
    write_json(
        json,
        command=f"python -m benchmarks.selector --json FILE --repeats {repeats}"
        + " --quick" * quick,
        seed=config.seed,
        started=started,
        about=about | {"torch_threads": torch.get_num_threads()},
        results=results,
        raw={"seconds": timings.seconds},
    )


def measure(config: RunConfig, timings: Timings, repeats: int) -> dict[str, float]:
    """The selector's share of a round's compute, by strategy."""
    private = load_splits(config.data, config.seed, CLIENTS).private
    clients = [
        load_local_model(
            "client",
            model_of_partition(config.clients.model, number),
            config.clients,
            config.data,
            config.seed,
        )
        for number in range(CLIENTS)
    ]
    server = load_local_model(
        "server", config.server.model, config.server, config.data, config.seed
    )
    sides = {"server": Work(config, server, clients).jobs(None)}
    for number in range(KINDS):
        work = Work(config, clients[number], [server])
        sides[f"client {number}"] = work.jobs(clients[number].encode(private[number]))
    for _ in range(repeats):
        for side, jobs in sides.items():
            for what, job in jobs.items():
                timings.measure(f"{side} {what}", job)
    return {
        f"{strategy}_selector_share_of_round": share(strategy, sides, timings)
        for strategy in ("fusion-x", "fedfuse")
    }


def share(strategy: str, sides: Mapping[str, Iterable[str]], timings: Timings) -> float:
    """The selector's part of all that server and clients compute in a round.

    Either side extracts twice: to tell the other, and to compare itself with it. The clients view
    their prompts once, in the pass of the first extraction, and keep what they found: with
    ``fusion-x`` they tell the server's selector and have none of their own; with ``fedfuse`` they
    have, and the server views prompts a second time, when it has learned, to tell theirs. Pooled
    states of prompts are found once a run.
    """
    mutual = strategy == "fedfuse"
    total = ours = 0.0
    for side, jobs in sides.items():
        server = side == "server"
        medians = {what: timings.median(f"{side} {what}") for what in jobs}
        if not server:
            both = medians.pop("extract and view")
            medians["view prompts"] = max(both - medians["extract"], 0)
        for what, median in medians.items():
            twice = what == "extract" or (what == "view prompts" and server and mutual)
            times = 2 if twice else 1
            if what in ("examine", "select") and not (server or mutual):
                times = 0
            seconds = times * median * (1 if server else CLIENTS // KINDS)
            total += seconds
            ours += seconds if what in SELECTOR else 0
    return ours / total


if __name__ == "__main__":
    typer.run(main)
