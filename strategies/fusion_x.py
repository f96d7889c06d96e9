"""Fusion-X: FedMKT's phases, with a selector that learns whom to trust.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844.

Differs from the paper: see ``fedfuse.fusion.gating.learned_gate``; the paper's network, signal,
threshold and feedback can be chosen in the run config.
"""

from __future__ import annotations

from collections.abc import Mapping

from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.factory.models import derive_seed
from fedfuse.fusion.fuser import FusedTargets
from fedfuse.fusion.gating.learned_gate import LearnedGate
from fedfuse.fusion.row_rules import RowWeights
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.tracking.checkpoints import strip_prefix
from strategies.fedmkt import FedMKT
from strategies.server_state import SERVER, ServerState


class FusionX(FedMKT):
    """The server learns from round to round whose knowledge helps on which sample.

    Raises:
        FedfuseError: with a ``knowledge.public-share`` below 1: what the selector may look at is
            settled sample by sample, once for all rounds.
    """

    reads_contexts = True

    def __init__(self, session: ServerState) -> None:
        super().__init__(session)
        share = self.config.knowledge.public_share
        if share < 1:
            raise FedfuseError(
                f"knowledge.public-share = {share}: allowed: 1 with strategy = "
                f"{self.config.strategy!r}, whose selector needs the same samples in every round"
            )
        seed = derive_seed(self.config, SERVER, "selector")
        self.selector = LearnedGate(self.config.selector.settings(), seed)

    def weigh(self, stats: StackedStats) -> RowWeights:
        """Learn from the round's evidence, then weigh."""
        return self.selector(stats)

    def learn(self, server_round: int, fused_targets: FusedTargets) -> None:
        """Step 6, after a note on the selector."""
        if fit := self.selector.last:
            self.session.run.selector(server_round, SERVER, fit.before, fit.after)
        super().learn(server_round, fused_targets)

    def state(self) -> dict[str, ndarray]:
        """The selector's networks and optimizers, besides what each side was told."""
        selector = {f"selector/{name}": value for name, value in self.selector.state().items()}
        return super().state() | selector

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""
        super().load(state)
        self.selector.load(strip_prefix(state, "selector/"))
