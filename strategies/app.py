"""The ServerApp: read the config, open the run, start the strategy, write the report."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import torch
from filelock import FileLock, Timeout
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError
from fedfuse.models.allocator import keep_freed_memory
from fedfuse.report.html import write_report
from fedfuse.report.plots import save_headline
from fedfuse.tracking.logs import show
from fedfuse.tracking.prometheus import monitored
from fedfuse.tracking.run import read_run
from strategies.base import BaseStrategy
from strategies.registry import STRATEGIES, find_strategy

app = ServerApp()
log = logging.getLogger("strategies")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run config names."""
    config = parse(context.run_config)
    show(config.log_format)
    keep_freed_memory()
    # Half of the cores: on all of them, small models wait for each other's threads, and for the
    # clients'.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    strategy_class = find_strategy(config.strategy)
    needed = strategy_class.client_name()
    # Clients know the kind that a built-in strategy needs; any other one must be named to them.
    known = config.strategy in STRATEGIES or needed == BaseStrategy.client
    if not (config.client or known):
        raise FedfuseError(
            f"client: expected {needed!r} in the run config, which strategy {config.strategy!r} "
            "needs, got ''"
        )
    with monitored(config.metrics_port) as monitor:
        server = strategy_class.open(config)
        run = server.run
        run.listen(monitor)
        run.progress(run=run.folder.name)
        try:
            # Let go by the system when the process ends, however it ends.
            with FileLock(run.folder / "lock", timeout=0):
                try:
                    strategy = strategy_class(server)
                    initial = strategy.initial()
                    strategy.start(grid, initial, num_rounds=config.rounds, timeout=config.timeout)
                except BaseException:
                    with suppress(FedfuseError):  # The disk may be what failed.
                        run.describe(status="failed")
                    raise
                run.describe(status="finished")
        except Timeout:
            raise FedfuseError(f"{run.folder}: another server is at this run") from None
        save_headline(read_run(run.folder), run.folder / "headline")
        log.info("report: %s", write_report(run.folder))
