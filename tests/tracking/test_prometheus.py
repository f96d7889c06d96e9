"""What Prometheus reads while a run goes on is what the run folder says."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from experiments.faults.fleet import Fleet, Schedule
from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import DISTILL, EVALUATE, LOCAL
from fedfuse.simulation import in_process as grid
from fedfuse.simulation.flwr_run import free_port
from fedfuse.tracking.prometheus import monitored, outcome
from strategies.server_state import ServerState
from tests.federations import federate, lines, tiny_builtin
from tests.strategies.test_faults import SHORT

__all__ = ["tiny_builtin"]

# Sample name and labels.
Key = tuple[str, frozenset[tuple[str, str]]]


def scrape(port: int) -> dict[Key, float]:
    """All samples."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def key(name: str, **labels: str) -> Key:
    return f"fedfuse_{name}", frozenset(labels.items())


@pytest.mark.usefixtures("tiny_builtin")
def test_the_figures_are_those_of_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {
        (1, LOCAL, 1): "memory",
        (1, DISTILL, 0): "raise",
        (1, EVALUATE, 2): "hang",
        (2, LOCAL, 2): "stale",
    }
    schedule = Schedule(faults, {0: frozenset({2})})
    monkeypatch.setattr(grid, "InProcessGrid", lambda *given: Fleet(schedule, *given))
    port, early = free_port(), []
    found: list[dict[Key, float]] = []
    monkeypatch.setattr("strategies.app.save_headline", lambda *_: found.append(scrape(port)))
    record_step = ServerState.record_step

    def look(self: ServerState, *arguments: Any) -> None:
        early.append(scrape(port)[key("round")])
        record_step(self, *arguments)

    monkeypatch.setattr(ServerState, "record_step", look)
    keys: dict[str, Any] = {
        **SHORT,
        "rounds": 2,
        "timeout": 0.2,
        "min_clients": 1,
        "metrics_port": port,
    }
    folder = federate(tmp_path, report=True, **keys)
    assert early == [1, 2]
    [metrics] = found
    message_log = lines(folder, "messages")

    replies: Counter[Key] = Counter()
    sent: Counter[Key] = Counter()
    received: Counter[Key] = Counter()
    phases: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for line in message_log:
        if line["error"] is None:
            phases[line["phase"]] += 1
            seconds[line["phase"]] += line["seconds"]
        if line["client"] != "server":
            about = {"client": line["client"], "phase": line["phase"]}
            replies[key("replies_total", **about, outcome=outcome(line["error"]))] += 1
            sent[key("sent_bytes_total", **about)] += line["sent_bytes"]
            received[key("received_bytes_total", **about)] += line["received_bytes"]
    outcomes = {dict(labels)["outcome"] for _, labels in replies}
    assert outcomes == {"ok", "failed", "late", "away", "refused"}
    for name, wanted in (
        ("replies_total", replies),
        ("sent_bytes_total", sent),
        ("received_bytes_total", received),
    ):
        assert {k: v for k, v in metrics.items() if k[0] == f"fedfuse_{name}"} == wanted
    for phase, times in phases.items():
        assert metrics[key("phase_seconds_count", phase=phase)] == times
        assert metrics[key("phase_seconds_sum", phase=phase)] == pytest.approx(seconds[phase])

    events = Counter((line["event"], line["client"]) for line in lines(folder, "events"))
    assert events == {("out-of-memory", "1"): 1}
    for (event, client), times in events.items():
        assert metrics[key("events_total", event=event, client=client)] == times
    losses = {
        line["domain"]: line["loss"]
        for line in lines(folder, "metrics")
        if line["model"] == "server" and line["round"] == 2
    }
    assert losses
    for domain, loss in losses.items():
        assert metrics[key("server_loss", domain=domain)] == loss
    assert metrics[key("round")] == metrics[key("checkpoint_round")] == 2
    assert metrics[key("checkpoints_total")] == 3
    assert metrics[key("clients")] == 2  # One is away.


def test_it_ends_with_the_run_and_is_seen_from_this_machine_alone() -> None:
    port = free_port()
    with monitored(port):
        assert scrape(port)[key("checkpoints_total")] == 0
        with socket.socket() as other:  # Nobody listens on any other address.
            other.bind(("127.0.0.2", port))
    with pytest.raises(httpx.ConnectError):
        scrape(port)


def test_a_port_that_is_taken_is_refused() -> None:
    port = free_port()
    with (
        monitored(port),
        pytest.raises(FedfuseError, match=f"metrics-port: .* got {port}: Address already in use"),
        monitored(port),
    ):
        pass
    with pytest.raises(FedfuseError, match="metrics-port: expected at least 0, at most"):
        parse({"metrics-port": 70000})
