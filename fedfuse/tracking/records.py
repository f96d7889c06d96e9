"""The lines of a run folder's JSON lines files, typed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fedfuse.tracking.json_fields import Fields

# A run went on after it was cut off; a checkpoint or a client's state was damaged; a client joined
# late, came back, or lost its state; a step did not fit into memory.
EVENTS = ("resumed", "damaged", "joined", "returned", "lost", "out-of-memory")
STAGES = ("zero-shot", "standalone", "public-only", "federated", "centralized")


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of metrics.jsonl: one model on one domain after one round; loss in nats/byte.

    ``noise`` is how much of a rise since the untouched model is no more than that, nats/byte.
    """

    stage: str
    round: int
    model: str
    domain: str
    loss: float
    accuracy: float | None
    samples: int
    noise: float | None = None


@dataclass(frozen=True, slots=True)
class MessageLine:
    """A line of messages.jsonl: one message, as the server sees it.

    ``sent_bytes`` went to the client, ``received_bytes`` came back; ``error`` is None when all went
    well.
    """

    round: int
    phase: str
    client: str
    sent_bytes: int
    received_bytes: int
    seconds: float
    error: str | None


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
    """A line of gates.jsonl: what a model's gate minimises before and after a round's learning, on
    samples that it did not learn from, nats per label row.
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


def read_metric(models: Collection[str], domains: Collection[str], line: Fields) -> Metric:
    """Check and type a line of metrics.jsonl."""
    no_accuracy, no_noise = (line.values.get(name) is None for name in ("accuracy", "noise"))
    return Metric(
        stage=line.one_of("stage", STAGES),
        round=line.integer("round"),
        model=line.one_of("model", models),
        domain=line.one_of("domain", domains),
        loss=line.number("loss"),
        accuracy=None if no_accuracy else line.number("accuracy", 0, 1),
        samples=line.integer("samples"),
        noise=None if no_noise else line.number("noise", low=0),
    )


def read_message(line: Fields) -> MessageLine:
    """Check and type a line of messages.jsonl.

    Any client is allowed: one that failed to register has no model in config.json.
    """
    return MessageLine(
        round=line.integer("round"),
        phase=line.text("phase"),
        client=line.text("client"),
        sent_bytes=line.integer("sent_bytes"),
        received_bytes=line.integer("received_bytes"),
        seconds=line.number("seconds", low=0),
        error=line.optional_text("error"),
    )


def read_teacher_share(
    models: Collection[str], domains: Collection[str], line: Fields
) -> TeacherShare:
    """Check and type a line of teacher_shares.jsonl."""
    return TeacherShare(
        round=line.integer("round"),
        direction=line.one_of("direction", ("up", "down")),
        model=line.one_of("model", models),
        domain=line.one_of("domain", domains),
        teacher=line.one_of("teacher", (*models, "none")),
        # Shares are counts divided by a count; allow for the rounding of their sums.
        share=line.number("share", 0, 1 + 1e-6),
    )


def read_gate_loss(models: Collection[str], line: Fields) -> GateLoss:
    """Check and type a line of gates.jsonl."""
    return GateLoss(
        round=line.integer("round"),
        model=line.one_of("model", models),
        before=line.number("before"),
        after=line.number("after"),
    )


def read_acceptance(models: Collection[str], line: Fields) -> AcceptanceLine:
    """Check and type a line of acceptance.jsonl."""
    changes = line.mapping("changes")
    return AcceptanceLine(
        round=line.integer("round"),
        model=line.one_of("model", models),
        keep=line.boolean("keep"),
        changes={domain: changes.number(domain) for domain in changes.values},
    )


def read_event(line: Fields) -> Event:
    """Check and type a line of events.jsonl."""
    return Event(
        round=line.integer("round"),
        event=line.one_of("event", EVENTS),
        client=line.text("client"),
        detail=line.text("detail"),
    )
