"""Summary of a run in sentences; one is left out where its numbers are missing."""

from __future__ import annotations

import math
from statistics import fmean

from fedfuse.report.feddtpt import prompts_text
from fedfuse.report.formatting import bytes_text, count, loss_text, percent, seconds_text
from fedfuse.tracking.run import SERVER, Measure, RunFolder

# A client whose loss moved by less (nats/byte) neither gained nor lost.
UNCHANGED = 5e-4


def summary(run: RunFolder) -> list[str]:
    """Sentences about setting, server, baselines of the server, clients, and cost."""
    sentences = [
        _setting(run),
        *([prompts_text(run)] if run.prompts else []),
        *(_server(run), _baselines(run), _clients(run), _cost(run)),
    ]
    return [sentence for sentence in sentences if sentence]


def _setting(run: RunFolder) -> str:
    who = f"{count(len(run.clients), 'client')} and a server" if run.clients else "A server"
    rounds = count(run.rounds, "round")
    end = {
        "finished": f"{rounds} of federation",
        "running": f"{rounds} of federation so far; the run has not finished",
        "failed": f"{rounds} of federation before the run failed",
    }
    return f"{who}, {count(len(run.domains), 'domain')}, {end[run.status]}."


def _server(run: RunFolder) -> str:
    pair = run.before_after(SERVER)
    if pair is None:
        end = run.overall(SERVER, "federated")
        return f"The server's loss ended at {_loss(run, end.shown)}." if end else ""
    before, after = pair
    text = f"The server's loss {_moved(run, before.shown, after.shown)}{_share(run, SERVER)}"
    if before.accuracy is not None and after.accuracy is not None:
        text += f"; its accuracy went from {percent(before.accuracy)} to {percent(after.accuracy)}"
        if run.floor is not None and run.floor.accuracy is not None:
            text += f", where {percent(run.floor.accuracy)} is the best possible"
    return text + "."


def _baselines(run: RunFolder) -> str:
    found = {
        "the public set alone": run.overall(SERVER, "public-only"),
        "everyone's data in one place": run.overall(SERVER, "centralized"),
    }
    parts = [
        f"{loss_text(measure.shown)} when trained on {what}"
        for what, measure in found.items()
        if measure is not None
    ]
    return f"That loss would be {' and '.join(parts)}." if parts else ""


def _clients(run: RunFolder) -> str:
    pairs = {c: pair for c in run.clients if (pair := run.before_after(c)) is not None}
    finite = [pair for pair in pairs.values() if math.isfinite(pair[0].loss + pair[1].loss)]
    if not pairs:
        ends = [end.shown for c in run.clients if (end := run.overall(c, "federated")) is not None]
        return f"The clients' mean loss ended at {_loss(run, fmean(ends))}." if ends else ""
    if len(pairs) == 1:
        (client,) = pairs
        before, after = pairs[client]
        moved = _moved(run, before.shown, after.shown)
        return f"Against training alone, the client's loss {moved}{_share(run, client)}."
    if not finite:
        return f"Against training alone, {_gains(run, pairs)}."
    moved = _moved(run, fmean(p[0].shown for p in finite), fmean(p[1].shown for p in finite))
    return f"Against training alone, the clients' mean loss {moved}: {_gains(run, pairs)}."


def _gains(run: RunFolder, pairs: dict[str, tuple[Measure, Measure]]) -> str:
    changes = {client: after.loss - before.loss for client, (before, after) in pairs.items()}
    gained = sum(change < -UNCHANGED for change in changes.values())
    lost = [client for client, change in changes.items() if UNCHANGED < change < math.inf]
    diverged = [client for client, change in changes.items() if not math.isfinite(change)]
    text = (
        f"all {len(pairs)} gained" if gained == len(pairs) else f"{gained} of {len(pairs)} gained"
    )
    for members, what in ((lost, "lost"), (diverged, "diverged")):
        if members:
            text += f"; {', '.join(map(run.name, members))} {what}"
    return text


def _cost(run: RunFolder) -> str:
    if not run.messages:
        return ""
    sent = sum(message.sent_bytes for message in run.messages)
    received = sum(message.received_bytes for message in run.messages)
    seconds = sum(message.seconds for message in run.messages)
    text = (
        f"The exchange took {bytes_text(sent)} to the clients and {bytes_text(received)} back, "
        f"and {seconds_text(seconds)} summed over {count(len(run.messages), 'task')}"
    )
    return f"{text}; {len(run.failures):,} of them failed." if run.failures else f"{text}."


def _loss(run: RunFolder, loss: float) -> str:
    return f"{loss_text(loss)} nats/byte{' above the entropy floor' if run.has_floor else ''}"


def _moved(run: RunFolder, before: float, after: float) -> str:
    if not math.isfinite(before + after):
        return "diverged"
    if loss_text(before) == loss_text(after):
        return f"stayed at {_loss(run, after)}"
    return f"{'fell' if after < before else 'rose'} from {loss_text(before)} to {_loss(run, after)}"


def _share(run: RunFolder, model: str) -> str:
    share = run.share_removed(model)
    if share is None:
        return ""
    removed = f"{percent(share)} of the excess removed"
    return f" ({removed if share >= 0 else f'{percent(-share)} of it added'})"
