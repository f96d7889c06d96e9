"""Strategies by name, the built-in ones and the user's own."""

from __future__ import annotations

from dataclasses import replace

from fedfuse.config.run_config import RunConfig
from fedfuse.plugins import load_class
from strategies.base import BaseStrategy

# Imported when they are named: some stand on libraries that others do not need.
STRATEGIES = {
    "fedfuse": "strategies.fedfuse:FedFuse",
    "fusion-x": "strategies.fusion_x:FusionX",
    "fedmkt": "strategies.fedmkt:FedMKT",
    "fedavg-lora": "strategies.fedavg_lora:FedAvgLoRA",
    "llm2slm": "strategies.llm2slm:LLM2SLM",
    "feddtpt": "strategies.feddtpt:FedDTPT",
}


def find_strategy(name: str) -> type[BaseStrategy]:
    """A built-in strategy, or your own class as ``module:Class``.

    Raises:
        FedfuseError: when there is none of that name, or it is no strategy of fedfuse's kind.
    """
    return load_class("strategy", name, STRATEGIES, BaseStrategy)


def with_client(config: RunConfig) -> RunConfig:
    """The run config, with the strategy's kind of client where it names none."""
    return replace(config, client=config.client or find_strategy(config.strategy).client_name())
