"""The sections of the run config: one frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, inline, one_of, text
from fedfuse.config.training import Objective, TrainingConfig


@dataclass(frozen=True, slots=True)
class ServerDistillConfig(TrainingConfig):
    """The server's phase on the public set (FedMKT Eq. 5)."""

    steps: int = between(200, 0)
    learning_rate: float = between(4e-3, 0, above=True)
    objective: Objective = inline(Objective(label_weight=0.05))  # noqa: RUF009
    ewc: float = between(10.0, 0)


@dataclass(frozen=True, slots=True)
class ClientDistillConfig(ServerDistillConfig):
    """A client's phase on the public set (FedMKT Eq. 6).

    Attributes:
        replay: add the label loss of a private batch at every step, so that learning from others
            does not cost what the client knew (not in the paper).
    """

    learning_rate: float = between(8e-3, 0, above=True)
    objective: Objective = inline(Objective(label_weight=0.03))  # noqa: RUF009
    ewc: float = between(0.0, 0)  # replay does it
    replay: bool = True


@dataclass(frozen=True, slots=True)
class KnowledgeConfig:
    """What is exchanged, and how it is translated.

    Attributes:
        k: entries kept per label row at most.
        top_p: probability that a row's sent entries have together at least; 1 sends all k.
        logprob_bits: bits that a log-probability is sent in, 16 or 8.
        public_share: share of the public samples that a round is about; each has its turn.
        delta_threshold: total variation, 0 to 1; a row that moved by less since it was last sent is
            not sent again; 0 sends every row. Needs a ``public-share`` of 1.
        alignment: which source row teaches a target row.
        duplicate_tokens: what happens to entries that reach one target token.
        unaligned_positions: what a row without a partner learns.
        tail: compare the mass outside the k entries too; the paper takes it as zero.
    """

    k: int = between(16, 1)
    top_p: float = between(0.99, 0, 1, above=True)
    logprob_bits: int = one_of(16, 16, 8)
    public_share: float = between(1.0, 0, 1, above=True)
    delta_threshold: float = between(0.0, 0, 1)
    alignment: str = one_of("chain-rule", "chain-rule", "exact-boundary", "dtw")
    duplicate_tokens: str = one_of("sum", "sum", "first")
    unaligned_positions: str = one_of("skip", "skip", "one-hot")
    tail: bool = True


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Rules by which each side chooses its teachers, in place of what the strategy stands for.

    A name that ``fedfuse.fusion.rules`` registers, or your own as ``module:function``; empty for
    the strategy's.

    Attributes:
        server_rule: how much the server trusts each client.
        client_rule: when a client trusts the server.
    """

    server_rule: str = text("", empty=True)
    client_rule: str = text("", empty=True)
