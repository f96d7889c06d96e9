"""The ServerApp: read the config, open the session, run the strategy, write the report."""

from __future__ import annotations

import logging
import sys

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedfuse.flower.config import parse
from fedfuse.flower.messages import arrays_to_record
from fedfuse.report.html import write_report
from fedfuse.report.reading import read_run
from fedfuse.report.table import print_table
from strategies.registry import find_strategy
from strategies.session import open_session

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run config names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = parse(context.run_config)
    strategy_class = find_strategy(config.strategy)
    session = open_session(config)
    run = session.run
    strategy = strategy_class(session)
    try:
        initial: ArrayRecord = arrays_to_record(session.participant.adapter)
        strategy.start(grid, initial, num_rounds=config.rounds, timeout=config.timeout)
    except BaseException:
        run.describe(status="failed")
        raise
    run.describe(status="finished")
    report = write_report(run.folder)
    print_table(read_run(run.folder))
    print(f"report: {report}", flush=True)
