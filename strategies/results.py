"""Flower's result of a run, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result

METRICS = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)


def result_facts(result: Result) -> dict[str, dict[str, dict[str, Any]]]:
    """The metrics by round, as JSON holds them."""
    return {
        name: {str(number): dict(metrics) for number, metrics in getattr(result, name).items()}
        for name in METRICS
    }


def restore_result(arrays: ArrayRecord, facts: Mapping[str, Any]) -> Result:
    """The inverse of ``result_facts``, with the server's arrays."""
    result = Result(arrays=arrays)
    for name in METRICS:
        by_round = {int(number): MetricRecord(metrics) for number, metrics in facts[name].items()}
        getattr(result, name).update(by_round)
    return result
