"""The report of a run: one self-contained HTML file, without scripts and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedfuse.files import atomic_write
from fedfuse.report import feddtpt as prompts
from fedfuse.report import incidents, message_plots, plots, regressions, tables
from fedfuse.report.html_template import BODY
from fedfuse.report.page import render_page
from fedfuse.report.style import STAGE_LINES
from fedfuse.report.summary import summary
from fedfuse.tracking.json_fields import clean
from fedfuse.tracking.run import RunFolder, read_run

PLOTS = {
    "headline": plots.headline_svg,
    "curves": plots.curves,
    "heat_map": plots.heat_map,
    "teachers_up": message_plots.teachers_up,
    "teachers_down": message_plots.teachers_down,
    "gates": regressions.gates,
    "traffic": message_plots.traffic,
    "accuracy_by_queries": prompts.accuracy_by_queries,
    "token_clusters": prompts.token_clusters,
}


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The file appears whole or not at all, so a reader never meets half a page.

    Raises:
        FedfuseError: for a folder that holds no run, or a malformed one.
    """
    run = read_run(folder)
    path = run.folder / "report.html"
    with atomic_write(path) as scratch:
        scratch.write_text(render(run), encoding="utf-8")
    return path


def render(run: RunFolder) -> str:
    """The page as text."""
    return render_page(
        BODY,
        f"{run.title} | fedfuse report",
        run=run,
        summary=summary(run),
        baselines=STAGE_LINES.keys() & set(run.stages),
        plots={name: Markup(draw(run)) for name, draw in PLOTS.items()},
        results=tables.result_rows(run),
        with_accuracy=any(metric.accuracy is not None for metric in run.metrics),
        gain_title=tables.gain_title(run),
        gain_note=tables.gain_note(run),
        floor=tables.cell(run.floor),
        late=tables.late_models(run),
        domain_rows=tables.domain_rows(run),
        costs=tables.costs(run),
        efforts=tables.effort_rows(run),
        in_all=tables.cost_in_all(run),
        regressions=regressions.regressions_text(run),
        worse=regressions.worse_rows(run),
        taken_back=regressions.taken_back_rows(run),
        events=incidents.event_rows(run),
        absences=incidents.absence_rows(run),
        prompts=prompts.prompts_text(run),
        prompt_rows=prompts.prompt_rows(run),
        failures=tables.failure_rows(run),
        settings=_settings(run),
    )


def _settings(run: RunFolder) -> list[tuple[str, dict[str, str]]]:
    """Headed groups of keys and values: origin, models, versions and config of the run."""
    origin = {"seed": run.seed, "commit": run.commit or "unknown", "folder": run.folder.name}
    groups: list[tuple[str, dict[str, Any]]] = [
        ("Run", origin),
        ("Models", {run.name(model): base for model, base in run.models.items()}),
        ("Adapters", {run.name(model): text for model, text in run.adapters.items()}),
        ("Versions", dict(run.versions)),
        ("Configuration", dict(run.config)),
    ]
    return [
        (heading, {clean(str(key)): clean(str(value)) for key, value in group.items()})
        for heading, group in groups
        if group
    ]
