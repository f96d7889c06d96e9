"""The ServerApp: read the config, open the session, run the strategy, write the report."""

from __future__ import annotations

import logging
import os
import sys

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfuse.flower.config import parse
from fedfuse.report.html import write_report
from fedfuse.report.plots import save_headline
from fedfuse.report.reading import read_run
from strategies.registry import find_strategy

app = ServerApp()
log = logging.getLogger("strategies")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run config names."""
    show_progress()
    # Half of the cores: on all of them, small models wait for each other's threads, and for the
    # clients'.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    config = parse(context.run_config)
    strategy = find_strategy(config.strategy).open(config)
    run = strategy.session.run
    try:
        initial = strategy.initial()
        strategy.start(grid, initial, num_rounds=config.rounds, timeout=config.timeout)
    except BaseException:
        run.describe(status="failed")
        raise
    run.describe(status="finished")
    save_headline(read_run(run.folder), run.folder / "headline")
    log.info("report: %s", write_report(run.folder))


def show_progress() -> None:
    """Send fedfuse's own messages, and nobody else's, to the standard output."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
