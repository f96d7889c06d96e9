"""FedFuse: this project's own combination, of what did best in its experiments.

Fusion-X on the way up, and on the way down each client learns as well when the server is to be
trusted (``fedfuse.fusion.gating.learned_gate``) instead of going by the loss of single labels.
"""

from __future__ import annotations

from strategies.fusion_x import FusionX


class FedFuse(FusionX):
    """Both sides learn whom to trust."""

    client_rule = "learned-gate"
