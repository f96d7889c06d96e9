"""Federated knowledge exchange between different language models.

Run a federation:

- ``simulate(strategy, clients, rounds, ...)`` runs one on this machine and returns a ``Run``.
- ``Run`` is a finished run: ``table()``, ``metrics``, ``report()``; ``Run.read(folder)``.
- ``export(run, output, model=...)`` writes a model of it for transformers, vLLM and llama.cpp.
- ``RunConfig`` is the run config; ``fedfuse config`` lists its keys.

Work with models and tokenizers, without a federation:

- ``load_model(name)``, ``load_tokenizer(name)``: a folder or hub id; models also ``builtin:NAME``.
- ``align(source, target)`` compares two tokenizers; ``.explain(text)`` shows a text under both.
- ``distill(student, teachers, samples, rule=...)`` teaches across tokenizers.
- ``Sample`` is a prompt and its answer.

Decide whom to trust:

- ``rules`` are the registered rules by name, with their references.

Everything else is in the modules; ARCHITECTURE.md says where. A name is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfuse.algorithms.distill import distill
    from fedfuse.config.run_config import RunConfig
    from fedfuse.data.sample import Sample
    from fedfuse.exporting.export import export
    from fedfuse.factory.models import load_model
    from fedfuse.fusion.rules import RULES as rules
    from fedfuse.report.run import Run
    from fedfuse.report.tokenizer_alignment import align
    from fedfuse.simulation.simulate import simulate
    from fedfuse.tokenizers.load import load_tokenizer

__version__ = "0.1.0"
__all__ = [
    "Run",
    "RunConfig",
    "Sample",
    "__version__",
    "align",
    "distill",
    "export",
    "load_model",
    "load_tokenizer",
    "rules",
    "simulate",
]

# Where each name is defined; PyTorch and Flower, which take seconds, are imported at first use.
_DEFINED = {
    "Run": "fedfuse.report.run:Run",
    "RunConfig": "fedfuse.config.run_config:RunConfig",
    "Sample": "fedfuse.data.sample:Sample",
    "align": "fedfuse.report.tokenizer_alignment:align",
    "distill": "fedfuse.algorithms.distill:distill",
    "export": "fedfuse.exporting.export:export",
    "load_model": "fedfuse.factory.models:load_model",
    "load_tokenizer": "fedfuse.tokenizers.load:load_tokenizer",
    "rules": "fedfuse.fusion.rules:RULES",
    "simulate": "fedfuse.simulation.simulate:simulate",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _DEFINED:
        raise AttributeError(f"module 'fedfuse' has no attribute {name!r}")
    module, _, attribute = _DEFINED[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
