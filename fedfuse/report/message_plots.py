"""Plots of the traffic of a run: who taught whom, and bytes.

Each function takes a run and returns an SVG, "" where the run has nothing to show.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfuse.report.formatting import byte_unit, shorten
from fedfuse.report.style import (
    MUTED,
    WIDTH,
    Fill,
    category_fill,
    fill_legend,
    legend_height,
    new_figure,
    plot,
    stack,
    whole_rounds,
)
from fedfuse.tracking.records import TeacherShare
from fedfuse.tracking.run import SERVER, RunFolder

# Height of one learner's bars where the next learner's begin at 1.
STRIP = 0.82
# No model's id, so it can stand for the clients that have no colour of their own.
OTHERS = ""
FIXED_FILLS = {SERVER: Fill("#4f6d8f"), "none": Fill("#b8bec5"), OTHERS: Fill("#7b5b45")}


@plot
def teachers_up(run: RunFolder) -> Figure | None:
    """A panel per domain: whose knowledge the server took in each round."""
    return _teachers(run, "up")


@plot
def teachers_down(run: RunFolder) -> Figure | None:
    """A strip per client, a panel per domain: whose knowledge the client took in each round."""
    return _teachers(run, "down")


def _teachers(run: RunFolder, direction: str) -> Figure | None:
    panels: dict[tuple[str, str], list[TeacherShare]] = defaultdict(list)
    for share in run.teacher_shares:
        if share.direction == direction:
            panels[share.model, share.domain].append(share)
    learners = [m for m in (SERVER, *run.plotted) if m in {model for model, _ in panels}]
    if not learners:
        return None
    domains = [domain for domain in run.domains if domain in {domain for _, domain in panels}]
    seen = {_teacher(run, share) for shares in panels.values() for share in shares}
    teachers = [t for t in (SERVER, *run.plotted, OTHERS, "none") if t in seen]
    labels = {teacher: _teacher_label(run, teacher) for teacher in teachers}
    width = min(WIDTH, 2.2 + 1.9 * len(domains))
    height = 1.55 if len(learners) == 1 else 0.6 * len(learners)
    figure = new_figure(width, 0.9 + legend_height(list(labels.values()), width) + height)
    grid = figure.subplots(1, len(domains), sharex=True, sharey=True, squeeze=False)
    for axes, domain in zip(grid.flat, domains, strict=True):
        for place, fuser in enumerate(learners):
            shares = panels.get((fuser, domain), [])
            _teacher_strip(run, axes, len(learners) - 1.0 - place, shares, teachers)
        whole_rounds(axes)
        axes.set_title(shorten(domain, max(6, int(12 * (width - 2.2) / len(domains)))))
    _teacher_axis(run, grid[0][0], learners)
    figure.supxlabel("round", fontsize=9)
    fill_legend(figure, [(label, _teacher_fill(run, t)) for t, label in labels.items()])
    return figure


def _teacher_strip(
    run: RunFolder, axes: Axes, base: float, shares: Sequence[TeacherShare], teachers: Sequence[str]
) -> None:
    """One learner's bars on one domain, between two lines: nothing and all of the samples."""
    heights: dict[str, dict[int, float]] = {teacher: {} for teacher in teachers}
    # Of equal lines (a resumed run) the last counts.
    latest = {(share.round, share.teacher): share for share in shares}
    for share in latest.values():
        rounds = heights[_teacher(run, share)]
        rounds[share.round] = rounds.get(share.round, 0.0) + STRIP * share.share
    for line in (base, base + STRIP):
        axes.axhline(line, color=MUTED, linewidth=0.7, alpha=0.5, zorder=0.5)
    bottom = {share.round: base for share in latest.values()}
    for teacher, rounds in heights.items():
        stack(axes, bottom, rounds, _teacher_fill(run, teacher))


def _teacher_axis(run: RunFolder, axes: Axes, learners: Sequence[str]) -> None:
    """Percentages for one learner, names for several; all panels share this axis."""
    if len(learners) == 1:
        axes.set_yticks([0, STRIP / 2, STRIP], ["0", "50%", "100%"])
        axes.set_ylabel("share of public samples")
    else:
        middles = [len(learners) - 1 - place + STRIP / 2 for place in range(len(learners))]
        axes.set_yticks(middles, [shorten(run.name(fuser), 28) for fuser in learners])
    axes.set_ylim(-0.03, len(learners) - 1 + STRIP + 0.03)


def _teacher(run: RunFolder, share: TeacherShare) -> str:
    """The teacher as the legend knows it."""
    named = share.teacher in (SERVER, "none") or share.teacher in run.plotted
    return share.teacher if named else OTHERS


def _teacher_fill(run: RunFolder, teacher: str) -> Fill:
    """A model has one fill in both directions."""
    if teacher in FIXED_FILLS:
        return FIXED_FILLS[teacher]
    return category_fill(run.clients.index(teacher))


def _teacher_label(run: RunFolder, teacher: str) -> str:
    names = {"none": "nobody", OTHERS: "all other clients"}
    return names.get(teacher) or shorten(run.name(teacher), 26)


@plot
def traffic(run: RunFolder) -> Figure | None:
    """Bytes per round, stacked by phase: a panel for each direction on one scale."""
    totals: Counter[str] = Counter()
    for message in run.messages:
        totals[message.phase] += message.sent_bytes + message.received_bytes
    phases = [phase for phase, total in totals.items() if total]
    if not phases:
        return None
    labels = [shorten(phase, 26) for phase in phases]
    figure = new_figure(WIDTH, 2.4 + legend_height(labels))
    down, up = figure.subplots(1, 2, sharey=True, sharex=True)
    sent, received = (_round_bytes(run, side) for side in ("sent_bytes", "received_bytes"))
    divisor, unit = byte_unit(max(x.total() for side in (sent, received) for x in side.values()))
    for axes, title, rounds in (
        (down, "server to clients", sent),
        (up, "clients to server", received),
    ):
        bottom: dict[int, float] = {}
        for index, phase in enumerate(phases):
            heights = {number: found[phase] / divisor for number, found in rounds.items()}
            stack(axes, bottom, heights, category_fill(index))
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        whole_rounds(axes)
        axes.set_title(title)
        axes.set_xlabel("round")
    down.set_ylabel(f"{unit} per round")
    fill_legend(figure, [(label, category_fill(i)) for i, label in enumerate(labels)])
    return figure


def _round_bytes(run: RunFolder, side: str) -> dict[int, Counter[str]]:
    """``[round][phase]`` bytes of one direction."""
    rounds: dict[int, Counter[str]] = defaultdict(Counter)
    for message in run.messages:
        rounds[message.round][message.phase] += getattr(message, side)
    return rounds
