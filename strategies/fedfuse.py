"""FedFuse: this project's own combination, of what did best in its experiments.

The server trusts whoever answered blind questions like a sample best: rule ``nearest-neighbours``,
which nobody has to train; ``docs/selection.md`` compares it with gates. A client, whose evidence is
the labels of the public set, learns when the server is to be trusted
(``fedfuse.fusion.gating.learned_gate``).
"""

from __future__ import annotations

from strategies.fedmkt import FedMKT


class FedFuse(FedMKT):
    """The server goes by the record on similar samples; clients learn whom to trust."""

    server_rule = "nearest-neighbours"
    client_rule = "learned-gate"
