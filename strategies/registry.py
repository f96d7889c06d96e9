"""Strategies by name, the built-in ones and the user's own."""

from __future__ import annotations

import importlib

from fedfuse.errors import FedfuseError
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
    if name in STRATEGIES:
        return STRATEGIES[name]
    allowed = f"{', '.join(STRATEGIES)}, or module:Class with a subclass of PhasedStrategy"
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise FedfuseError(f"strategy = {name!r}: allowed: {allowed}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise FedfuseError(f"strategy = {name!r}: {error}; allowed: {allowed}") from error
    if not (isinstance(found, type) and issubclass(found, BaseStrategy)):
        raise FedfuseError(f"strategy = {name!r} is {found!r}; allowed: {allowed}")
    return found
