"""Fusion-X: FedMKT's phases, with a gate that learns which client to trust on which sample.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844.

Differs from the paper: see ``fedfuse.fusion.gating.learned_gate``; the paper's network, loss,
threshold and feedback can be chosen in the run config.
"""

from __future__ import annotations

from strategies.fedmkt import FedMKT


class FusionX(FedMKT):
    """The server learns from round to round whose knowledge helps on which sample."""

    server_rule = "learned-gate"
