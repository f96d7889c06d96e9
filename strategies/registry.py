"""Strategies by name, the built-in ones and the user's own."""

from __future__ import annotations

from dataclasses import replace

from fedfuse.config.run_config import RunConfig
from fedfuse.plugins import load_class
from strategies.base import BaseStrategy
from strategies.fedavg_lora import FedAvgLoRA
from strategies.feddtpt import FedDTPT
from strategies.fedfuse import FedFuse
from strategies.fedmkt import FedMKT
from strategies.fusion_x import FusionX
from strategies.llm2slm import LLM2SLM

STRATEGIES: dict[str, type[BaseStrategy]] = {
    "fedfuse": FedFuse,
    "fusion-x": FusionX,
    "fedmkt": FedMKT,
    "fedavg-lora": FedAvgLoRA,
    "llm2slm": LLM2SLM,
    "feddtpt": FedDTPT,
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
