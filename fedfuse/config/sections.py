"""The sections of the run config: one frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, inline, one_of, text
from fedfuse.config.training import AUTOCAST, Objective, TrainingConfig

# The data source that is made on the spot.
BUILTIN_DATA = "builtin"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What the federation learns from.

    Attributes:
        source: ``builtin``, or data sets joined by ``+``: a .jsonl file, a folder of them, a hub
            id; each becomes a domain.
        domains: number of domains of the built-in world.
        partition: how the private samples are dealt to the clients.
        alpha: concentration of the Dirichlet partition; small is skewed.
        private: private samples per domain.
        public: public samples per domain; the labelled set that everyone holds.
        holdout: held-out samples per domain for the acceptance test.
        test: test samples per domain (built-in: repeats per entity).
        questions: multiple-choice questions per domain.
        template: prompt template of real records, such as ``{question} Answer:``; empty for the
            default of the record's fields.
        max_length: tokens per sample; what is beyond is cut off.
    """

    source: str = text(BUILTIN_DATA)
    domains: int = between(4, 1, 4)
    partition: str = one_of("domain", "domain", "iid", "dirichlet", "dirichlet-equal")
    alpha: float = between(0.5, 0, above=True)
    private: int = between(4000, 1)
    public: int = between(120, 0)
    holdout: int = between(60, 0)
    test: int = between(10, 1)
    questions: int = between(120, 0)
    template: str = text("", empty=True)
    max_length: int = between(128, 2)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A base model and its adapter.

    Attributes:
        model: ``builtin:NAME``, a hub id or a local folder. For clients also a cycle ``a, b, c`` or
            a mapping ``0=a, 3=b, *=c`` from partition to model.
        dtype: of the frozen weights.
        autocast: what products are computed in while training, extracting and scoring; the adapter
            stays float32, and float16 trains with a loss scale.
        device: ``auto`` takes a GPU where there is one.
        quantization: of the frozen weights; needs bitsandbytes and a GPU.
        gradient_checkpointing: trade time for memory.
        lora_rank: rank r of the adapter.
        lora_alpha: its scale is alpha / r.
        lora_dropout: on the adapter's input.
        lora_targets: module names joined by commas, or ``all-linear``.
    """

    model: str = text("builtin:server")
    dtype: str = one_of("float32", "float32", "bfloat16", "float16")
    autocast: str = one_of("none", *AUTOCAST)
    device: str = text("auto")
    quantization: str = one_of("none", "none", "4bit", "8bit")
    gradient_checkpointing: bool = False
    lora_rank: int = between(16, 1)
    lora_alpha: float = between(16.0, 0, above=True)
    lora_dropout: float = between(0.0, 0, 1)
    lora_targets: str = text("all-linear")


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
