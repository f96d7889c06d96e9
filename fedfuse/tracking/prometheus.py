"""A server's metrics for Prometheus, counted from the lines that it writes into its run folder.

https://prometheus.io/docs/instrumenting/writing_exporters
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fedfuse.errors import FedfuseError
from fedfuse.tracking.run import SERVER

# From another machine through a proxy or a tunnel, which authenticate the caller.
HOST = "127.0.0.1"
_SHOWN = ("zero-shot", "federated")  # the other stages are baselines
SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
# Outcomes by the beginning of an error in messages.jsonl.
OUTCOMES = {"refused: ": "refused", "no reply within": "late", "not connected": "away"}


class Monitor:
    """Metrics of one server in a registry; a listener for ``RunWriter.listen``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"fedfuse_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"fedfuse_{name}", text, labels, registry=registry)

        self._round = gauge("round", "Round that the server is at")
        self._clients = gauge("clients", "Clients that are connected, of those that are asked")
        self._loss = gauge("server_loss", "Server's loss on the test set, nats per byte", "domain")
        self._saved = gauge("checkpoint_round", "Round of the last checkpoint")
        self._checkpoints = counter("checkpoints", "Checkpoints written")
        self._replies = counter(
            "replies",
            "What came of messages to clients: ok, failed, late, away; refused ones were ok before",
            *("client", "phase", "outcome"),
        )
        self._sent = counter("sent_bytes", "Bytes to clients", "client", "phase")
        self._received = counter("received_bytes", "Bytes from clients", "client", "phase")
        self._events = counter("events", "Lines of events.jsonl", "event", "client")
        self._seconds = Histogram(
            "fedfuse_phase_seconds",
            "From a message to its good reply, and the server's own work",
            ["phase"],
            registry=registry,
            buckets=SECONDS,
        )

    def __call__(self, kind: str, line: Mapping[str, Any]) -> None:
        """Count one line of a file, or of ``progress``."""
        if kind == "progress":
            self._progress(line)
        elif kind == "messages.jsonl":
            self._message(line)
        elif kind == "events.jsonl":
            self._events.labels(line["event"], line["client"]).inc()
        elif kind == "metrics.jsonl" and line["model"] == SERVER and line["stage"] in _SHOWN:
            self._loss.labels(line["domain"]).set(line["loss"])

    def _progress(self, line: Mapping[str, Any]) -> None:
        if "round" in line:
            self._round.set(line["round"])
        if "clients" in line:
            self._clients.set(line["clients"])
        if "checkpoint" in line:
            self._saved.set(line["checkpoint"])
            self._checkpoints.inc()

    def _message(self, line: Mapping[str, Any]) -> None:
        client, phase, error = line["client"], line["phase"], line["error"]
        if not error:
            self._seconds.labels(phase).observe(line["seconds"])
        if client != SERVER:
            self._replies.labels(client, phase, outcome(error)).inc()
            self._sent.labels(client, phase).inc(line["sent_bytes"])
            self._received.labels(client, phase).inc(line["received_bytes"])


def outcome(error: str | None) -> str:
    """Outcome of a message in one word, by the error in its line of messages.jsonl."""
    if error is None:
        return "ok"
    return next((word for start, word in OUTCOMES.items() if error.startswith(start)), "failed")


@contextmanager
def monitored(port: int) -> Iterator[Monitor]:
    """Serve metrics over HTTP on this machine in the meantime, at ``/metrics``; port 0: do not.

    Raises:
        FedfuseError: when the port is taken.
    """
    registry = CollectorRegistry()
    monitor = Monitor(registry)
    if not port:
        yield monitor
        return
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise FedfuseError(
            f"metrics-port: expected a free port, or 0, got {port}: {error.strerror}"
        ) from None
    try:
        yield monitor
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
