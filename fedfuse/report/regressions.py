"""Losses that the federation made worse, phases that were taken back, and gates' losses."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

from fedfuse.evaluation.interference import Interference, LossChange, measure_interference
from fedfuse.report.formatting import change_text, count, loss_text, percent, shorten
from fedfuse.report.style import (
    WIDTH,
    category_fill,
    fill_legend,
    legend_height,
    new_figure,
    plot,
    whole_rounds,
)
from fedfuse.tracking.run import SERVER, RunFolder


class WorseRow(NamedTuple):
    """A model and a domain whose loss rose beyond noise, as text, nats/byte."""

    name: str
    domain: str
    before: str
    after: str
    change: str


class TakenBackRow(NamedTuple):
    """A phase whose result was not kept, and the domains that it made worse."""

    name: str
    round: int
    changes: str


def cells(run: RunFolder) -> list[LossChange]:
    """Every model on every domain, untouched and after the last round; see ``LossChange``."""
    found = []
    for model in run.measured:
        before = run.by_domain(model, "zero-shot")
        for domain, after in run.by_domain(model, "federated").items():
            noise = run.noise(model, domain)
            if domain in before and noise is not None:
                losses = before[domain].loss, after.loss
                found.append(LossChange(run.seed, model, domain, *losses, noise))
    return found


def interference(run: RunFolder) -> Interference | None:
    """Its rate and depth over all cells; None where there is none to compare."""
    found = cells(run)
    return measure_interference(found) if found else None


def regressions_text(run: RunFolder) -> str:
    """Rate and depth as a sentence; empty where there is nothing to compare."""
    found = interference(run)
    if found is None:
        return ""
    pairs = f"Of {count(len(cells(run)), 'pair')} of model and domain"
    if not found.rate:
        return f"{pairs} none got worse beyond noise."
    depth = loss_text(found.depth)
    return (
        f"{pairs} {percent(found.rate)} got worse beyond noise, by {depth} nats/byte in the mean."
    )


def worse_rows(run: RunFolder) -> list[WorseRow]:
    """The cells that got worse, the worst first."""
    worse = sorted((c for c in cells(run) if c.worse), key=lambda c: c.before - c.after)
    return [
        WorseRow(
            run.name(c.model),
            c.domain or "(no name)",
            loss_text(c.before),
            loss_text(c.after),
            change_text(c.after - c.before),
        )
        for c in worse
    ]


def taken_back_rows(run: RunFolder) -> list[TakenBackRow]:
    """The phases that an acceptance test took back."""
    rows = []
    for acceptance in run.acceptances:
        if not acceptance.keep:
            rises = sorted(acceptance.changes.items(), key=lambda item: -item[1])
            text = ", ".join(f"{domain or 'all'} {change_text(rise)}" for domain, rise in rises)
            rows.append(TakenBackRow(run.name(acceptance.model), acceptance.round, text))
    return rows


@plot
def gates(run: RunFolder) -> Figure | None:
    """Loss of each learned gate, before and after each round's learning."""
    learned = {loss.model for loss in run.gate_losses}
    models = [model for model in (SERVER, *run.plotted) if model in learned]
    if not models:
        return None
    labels = [shorten(run.name(model), 26) for model in models]
    width = WIDTH * 0.6
    figure = new_figure(width, 2.6 + legend_height(labels, width))
    axes = figure.subplots()
    for number, model in enumerate(models):
        losses = sorted((f for f in run.gate_losses if f.model == model), key=lambda f: f.round)
        axes.plot(
            [loss.round + part for loss in losses for part in (-0.4, 0.4)],
            [value for loss in losses for value in (loss.before, loss.after)],
            color=category_fill(number).colour,
            marker="o",
            markersize=3.5,
        )
    axes.set_ylabel("nats/row")
    axes.set_xlabel("round")
    axes.grid(axis="y")
    whole_rounds(axes)
    fill_legend(figure, [(label, category_fill(i)) for i, label in enumerate(labels)])
    return figure
