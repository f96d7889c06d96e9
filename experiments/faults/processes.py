"""Failures done to real processes, by schedule: ``python -m experiments.faults.processes``.

A SuperLink with TLS, three registered SuperNodes with workers, and the app itself. While a run goes
on, processes are killed, stopped for longer than the deadline, taken away for a round, started
late; the server's own is killed and the run resumed.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import typer

from experiments import harness
from experiments.faults.account import Absence, lapses
from experiments.faults.machines import CONNECTED, RECEIVED, SENT, Machines, wait
from experiments.faults.run import SMALL
from experiments.faults.tables import publish, summarize
from fedfuse.builtin.models import ensure
from fedfuse.config.run_config import Scalar
from fedfuse.simulation.flwr_run import Workspace
from fedfuse.tracking.line_files import LineReader
from fedfuse.tracking.records import MessageLine
from fedfuse.tracking.run import read_run

CLIENTS = 3
ROUNDS = 3
# Schedules that run side by side: most of their time is waiting.
AT_ONCE = 2
# Eight times what a message takes where nobody else is at work.
DEADLINE = 40.0
RESTART_SECONDS = 10.0
# Within which a client that was started again has answered something: it is let in after a minute
# at most, and imports take their time.
BACK_SECONDS = 240.0
RUN_SECONDS = 900.0
# Done to one client: SIGKILL of its SuperNode or its worker while it works on a message, SIGSTOP of
# both for longer than the deadline, SIGTERM of both for a round; ``late`` is started in round 1.
KINDS = ("node killed", "worker killed", "frozen", "away", "late")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one client."""

    kind: str  # one of ``KINDS``
    client: int
    message: int  # the number of the message, from 1, that it works on
    delay: float  # seconds after it has taken it
    seconds: float  # before it is started again, or goes on after the deadline


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """A schedule."""

    faults: tuple[Fault, ...]  # of clients; one client has none
    kill: tuple[int, float]  # round and seconds after its first reply for the server; 0 for none
    piggyback: bool  # a round is one message, or three


def draw(seed: int) -> FaultPlan:
    """A schedule at random; each kind comes first in one of so many."""
    rng = np.random.default_rng(seed)
    first, second, _ = (int(client) for client in rng.permutation(CLIENTS))
    kinds = [KINDS[seed % len(KINDS)], str(rng.choice(KINDS))]
    piggyback = bool(rng.random() < 0.5)
    # The first is the registration; the last ones leave no time to come back.
    last = ROUNDS if piggyback else 3 * ROUNDS - 2
    faults = tuple(
        Fault(
            kind,
            client,
            message=int(rng.integers(2, last + 1)),
            delay=round(float(rng.uniform(0, 1.5)), 2),
            seconds=round(float(rng.uniform(1, 5)), 2),
        )
        for kind, client in zip(kinds, (first, second), strict=True)
    )
    kill = (int(rng.integers(1, ROUNDS)), round(float(rng.uniform(0, 5)), 2))
    return FaultPlan(faults, kill if rng.random() < 0.5 else (0, 0.0), piggyback)


class Play:
    """A run among failures on some machines."""

    def __init__(self, machines: Machines, plan: FaultPlan) -> None:
        self._machines, self._plan = machines, plan
        self.absences: list[Absence] = []  # of clients, in lines of messages.jsonl

    def __call__(self) -> None:
        """Start everything, do what the plan says, and wait for the end."""
        late = {fault.client for fault in self._plan.faults if fault.kind == "late"}
        early = [client for client in self._machines.clients if client.number not in late]
        for client in early:
            client.start()
        wait(lambda: all(c.count(CONNECTED) for c in early), "all are connected")
        self._machines.submit()
        acts = [self._suffer(fault) for fault in self._plan.faults]
        if self._plan.kill[0]:
            acts.append(self._kill_server(*self._plan.kill))
        deadline = time.monotonic() + RUN_SECONDS
        while self.status() not in ("finished", "failed"):
            if time.monotonic() > deadline:
                raise SystemExit(f"no end within {RUN_SECONDS:g} s:\n{self._machines.tail()}")
            for act in acts:
                next(act, None)
            time.sleep(0.1)

    def status(self) -> str:
        """Of the run; empty before it has begun."""
        file = self._machines.folder / "config.json"
        return str(json.loads(file.read_text())["status"]) if file.exists() else ""

    def message_log(self) -> list[MessageLine]:
        """What is written so far."""
        return LineReader().read_file(self._machines.folder, MessageLine)

    def _round(self) -> int:
        return max((line.round for line in self.message_log()), default=-1)

    def _suffer(self, fault: Fault) -> Iterator[None]:
        """Do it; yields until its time has come."""
        machine = self._machines.clients[fault.client]
        if fault.kind != "late":
            while machine.count(RECEIVED) < fault.message:
                yield
            yield from _pause(fault.delay)
        absence = Absence(str(fault.client), len(self.message_log()))
        self.absences.append(absence)
        if fault.kind == "late":
            yield from self._until_round(1)
        elif fault.kind == "frozen":
            machine.send(signal.SIGSTOP)
            yield from _pause(DEADLINE + fault.seconds)
            machine.send(signal.SIGCONT)
        elif fault.kind == "away":
            machine.send(signal.SIGTERM)
            yield from self._until_round(self._round() + 1)
        else:
            machine.send(signal.SIGKILL, fault.kind.split()[0])
            yield from _pause(fault.seconds)
        sent = machine.count(SENT)
        machine.start()
        deadline = time.monotonic() + BACK_SECONDS
        while machine.count(SENT) == sent and time.monotonic() < deadline:
            yield from _pause(RESTART_SECONDS)
            machine.tend()
        absence.end = len(self.message_log())

    def _until_round(self, number: int) -> Iterator[None]:
        while self._round() < number:
            yield

    def _kill_server(self, number: int, delay: float) -> Iterator[None]:
        yield from self._until_round(number)
        yield from _pause(delay)
        if server := self._machines.server():
            server.kill()
            # It is no child of ours, and its parent may leave it a zombie.
            with suppress(psutil.NoSuchProcess):
                while server.status() != psutil.STATUS_ZOMBIE:
                    yield
            if self.status() == "running":
                self._machines.submit(resume=str(self._machines.folder))


def _pause(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield


def one(seed: int) -> list[dict[str, Any]]:
    """What one schedule was, and what came of it: a cell."""
    plan = draw(seed)
    given: dict[str, Scalar] = {
        "seed": seed,
        "name": f"processes-{seed}",
        "rounds": ROUNDS,
        "timeout": DEADLINE,
    }
    config = {**SMALL, **given, "min-clients": 1, "piggyback": plan.piggyback}
    with Workspace([]) as workspace:
        machines = Machines(workspace, config, CLIENTS)
        play = Play(machines, plan)
        play()
        run = read_run(machines.folder)
        cell = {
            "seed": seed,
            "piggyback": plan.piggyback,
            "faults": [asdict(fault) for fault in plan.faults],
            "server killed": list(plan.kill) if plan.kill[0] else None,
            "messages": sum(line.sent_bytes > 0 for line in run.messages),
            "failed": [[x.round, x.phase, x.client, x.error] for x in run.failures if x.error],
            "events": dict(sorted(Counter(event.event for event in run.events).items())),
            "lapses": lapses(machines.folder, CLIENTS, play.absences),
        }
        return [cell]


def scheduled(schedules: int) -> Counter[str]:
    """How often what was to go wrong."""
    plans = [draw(seed) for seed in range(schedules)]
    counts = Counter(fault.kind for plan in plans for fault in plan.faults)
    counts["server killed"] = sum(plan.kill[0] > 0 for plan in plans)
    return counts


@harness.experiment("processes.json", draw=publish)
def main(
    schedules: Annotated[int, typer.Option(help="Number of schedules.")] = 10,
) -> harness.Study:
    """Run the schedules and write what came of them."""
    ensure(["builtin:server", "builtin:gpt2", "builtin:llama", "builtin:opt"])
    return harness.Study(
        cells={("processes", seed): partial(one, seed) for seed in range(schedules)},
        folder="faults",
        summarize=lambda cells: summarize(cells, [scheduled(len(cells))]),
        parallel=AT_ONCE,
    )
