"""Report of a run that tunes prompts: rows, text and plots.

Plots take a run and return an SVG, "" where the run has nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfuse.report.formatting import percent, shorten
from fedfuse.report.style import (
    MUTED,
    PALETTE,
    STAGE_COLOURS,
    STAGE_LINES,
    STAGE_MARKERS,
    WIDTH,
    new_figure,
    plot,
)
from fedfuse.tracking.feddtpt_records import AggregationLine, PromptLine
from fedfuse.tracking.run import SERVER, RunFolder

AGGREGATED = "aggregated"  # name of the aggregated prompt among the candidates
NOISE = -1


@dataclass(frozen=True, slots=True)
class PromptRow:
    """The global prompt after a round, or a baseline's at the end, as text.

    ``tokens`` are the text of each token and the clients it comes from, "" where the prompt was not
    aggregated; ``test`` and ``private`` accuracies; ``chosen`` the candidate that was selected.
    """

    name: str
    tokens: tuple[tuple[str, str], ...]
    test: str
    private: str
    queries: str
    chosen: str

    @property
    def text(self) -> str:
        """Text of the tokens, joined by spaces."""
        return " ".join(word for word, _ in self.tokens)


def global_lines(run: RunFolder) -> list[PromptLine]:
    """Lines of the global prompt by round, the manual one first."""
    of_server = (line for line in run.prompts if line.model == SERVER)
    lines = {line.round: line for line in of_server if line.stage in ("zero-shot", "federated")}
    return [lines[number] for number in sorted(lines)]


def at_the_end(run: RunFolder, stage: str) -> list[PromptLine]:
    """Prompts of one stage with a test accuracy, of the last round that has any.

    For ``federated`` these are the clients' own.
    """
    found = [line for line in run.prompts if line.stage == stage and line.test is not None]
    if stage == "federated":
        found = [line for line in found if line.model != SERVER]
    last = max((line.round for line in found), default=0)
    return list({line.model: line for line in found if line.round == last}.values())


def mean_test(lines: Sequence[PromptLine]) -> float | None:
    """Mean accuracy on the test set."""
    known = [line.test for line in lines if line.test is not None]
    return fmean(known) if known else None


def prompt_rows(run: RunFolder) -> list[PromptRow]:
    """One row a round, then one for each baseline."""
    made = {line.round: line for line in run.aggregations}
    rows = [
        _row("manual" if line.stage == "zero-shot" else str(line.round), line, made.get(line.round))
        for line in global_lines(run)
    ]
    for stage, name in (
        ("federated", "clients' own, best"),
        ("standalone", "search alone, best"),
        ("centralized", "centralized"),
    ):
        if lines := at_the_end(run, stage):
            rows.append(_row(name, max(lines, key=lambda line: line.test or 0.0), None))
    return rows


def _row(name: str, line: PromptLine, made: AggregationLine | None) -> PromptRow:
    kept = made.kept if made and made.chosen == AGGREGATED else []
    origins = [", ".join(token.clients) for token in kept]
    if [token.token for token in kept] != line.tokens:
        # A prompt whose text is tokenized otherwise than it was put together has no origins.
        origins = [""] * len(line.tokens)
    tokens = tuple(zip(line.tokens, origins, strict=True))
    accuracies = percent(line.test), percent(line.private)
    return PromptRow(name, tokens, *accuracies, f"{line.queries:,}", made.chosen if made else "")


def prompts_text(run: RunFolder) -> str:
    """Accuracy and cost in sentences; empty where no prompt was tuned."""
    lines = global_lines(run)
    if not lines:
        return ""
    first, last = lines[0], lines[-1]
    text = (
        f"Accuracy of the global prompt on the test set went from {percent(first.test)} to "
        f"{percent(last.test)} with {last.queries:,} paid queries."
    )
    for stage, name in (
        ("federated", "The clients' own prompts reached"),
        ("standalone", "Search alone reached"),
    ):
        if ends := at_the_end(run, stage):
            best = max(line.test or 0.0 for line in ends)
            text += f" {name} {percent(mean_test(ends))} in the mean, {percent(best)} at best."
    if ends := at_the_end(run, "centralized"):
        text += f" One search with everybody's data reached {percent(mean_test(ends))}."
    if size := bytes_per_client_round(run):
        text += f" A search took {size:,.0f} bytes a client and round, both ways."
    return text


def bytes_per_client_round(run: RunFolder) -> float | None:
    """Mean bytes of a request to search and its reply."""
    sizes = [
        line.sent_bytes + line.received_bytes
        for line in run.messages
        if line.phase in ("train.local", "train.joint") and line.error is None
    ]
    return fmean(sizes) if sizes and run.prompts else None


def accuracy_figure(run: RunFolder) -> Figure | None:
    """Accuracy on the test set against queries, of the global prompt and the baselines."""
    lines = [line for line in global_lines(run) if line.test is not None]
    if not lines:
        return None
    figure = new_figure(WIDTH * 0.7, 3.2)
    axes = figure.subplots()
    axes.plot(
        [line.queries for line in lines],
        [line.test or 0.0 for line in lines],
        color=STAGE_COLOURS["federated"],
        marker=STAGE_MARKERS["federated"],
        label="global prompt",
    )
    _reference(axes, "standalone", "search alone, mean of clients", run)
    _reference(axes, "centralized", "one search, everybody's data", run)
    axes.axhline(
        lines[0].test or 0.0, color=MUTED, linestyle=(0, (1, 2)), linewidth=1, label="manual prompt"
    )
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("accuracy, test set")
    axes.set_xlabel("queries paid for, all clients and validation")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _reference(axes: Axes, stage: str, label: str, run: RunFolder) -> None:
    accuracy = mean_test(at_the_end(run, stage))
    if accuracy is not None:
        colour, line = STAGE_COLOURS[stage], STAGE_LINES[stage]
        axes.axhline(accuracy, color=colour, linestyle=line, linewidth=1.2, label=label)


accuracy_by_queries = plot(accuracy_figure)


@plot
def token_clusters(run: RunFolder) -> Figure | None:
    """Uploaded tokens of the last aggregation in a plane; kept ones are ringed."""
    made = next((line for line in reversed(run.aggregations) if line.uploaded), None)
    if made is None:
        return None
    figure = new_figure(WIDTH, 4.6)
    axes = figure.subplots()
    kept = {(token.token, token.cluster) for token in made.kept}
    labelled: set[tuple[str, int]] = set()
    for cluster in sorted({point.cluster for point in made.uploaded}):
        points = [point for point in made.uploaded if point.cluster == cluster]
        colour = MUTED if cluster == NOISE else PALETTE[cluster % len(PALETTE)]
        marker = "x" if cluster == NOISE else "o"
        xs, ys = [point.x for point in points], [point.y for point in points]
        axes.scatter(xs, ys, s=22, color=colour, marker=marker, alpha=0.8)
        for point in points:
            mark = (point.token, cluster)
            if mark in labelled:
                continue
            labelled.add(mark)
            place, text = (point.x, point.y), shorten(point.token, 14)
            if mark in kept:
                axes.scatter(*place, s=80, facecolors="none", edgecolors=colour)
            axes.annotate(text, place, (4, 3), textcoords="offset points", fontsize=7.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"round {made.round}")
    return figure
