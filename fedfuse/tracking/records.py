"""Lines of a run folder's JSON lines files; ``line_files`` reads them."""

from __future__ import annotations

from dataclasses import dataclass

# A run went on after it was cut off; a checkpoint or a client's state was damaged; a client joined
# late, came back, or lost its state; a step did not fit into memory.
EVENTS = ("resumed", "damaged", "joined", "returned", "lost", "out-of-memory", "cut-answers")
STAGES = ("zero-shot", "standalone", "public-only", "federated", "centralized")


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of metrics.jsonl: one model on one domain after one round; loss in nats/byte.

    ``noise`` is the largest rise since the untouched model that is no more than noise, nats/byte.
    ``normalized_accuracy`` compares options by log-probability per byte.
    """

    stage: str
    round: int
    model: str
    domain: str
    loss: float
    accuracy: float | None
    samples: int
    noise: float | None = None
    normalized_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingLine:
    """A line of training.jsonl: what training took; see ``fedfuse.algorithms.effort.Effort``.

    ``phase`` is "local" or "distill" in the federation; for a baseline, which is one line, "all".
    """

    stage: str
    round: int
    model: str
    phase: str
    steps: int
    private_samples: int
    public_samples: int
    queries: int


@dataclass(frozen=True, slots=True)
class MessageLine:
    """A line of messages.jsonl: one message, as the server sees it.

    ``sent_bytes`` went to the client, ``received_bytes`` came back; ``error`` is None for success.
    """

    round: int
    phase: str
    client: str
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TeacherShare:
    """A line of teacher_shares.jsonl: share of a domain's public samples that one teacher taught.

    ``direction`` is "up" where the server learns, "down" where a client does; ``teacher`` may be
    "none".
    """

    round: int
    direction: str
    model: str
    domain: str
    teacher: str
    share: float


@dataclass(frozen=True, slots=True)
class GateLoss:
    """A line of gates.jsonl: loss of a model's gate before and after a round's learning, on samples
    that it did not learn from, nats per label row.
    """

    round: int
    model: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class AcceptanceLine:
    """A line of acceptance.jsonl: whether a model kept what a phase taught it.

    ``changes`` of the held-out loss by domain, nats/byte; the empty name is all of them together.
    """

    round: int
    model: str
    keep: bool
    changes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Event:
    """A line of events.jsonl: something out of the ordinary that is no failed message.

    ``client`` may be the server, or empty.
    """

    round: int
    event: str
    client: str
    detail: str
