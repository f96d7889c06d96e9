"""What the same client would be without the federation: the baselines that results are compared
with.

Each starts from an untrained adapter, takes as many steps on private samples as the federation
does, and leaves the client's own state untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedfuse.algorithms.effort import Effort
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.flower.baseline_messages import pack_effort
from fedfuse.flower.messages import scores_to_metrics
from fedfuse.tokenizers.dataset import TokenizedDataset


def train_baselines(
    config: RunConfig,
    local_model: LocalModel,
    private: TokenizedDataset,
    partition: int,
    *,
    steps: int,
    held_out: Sequence[Sample],
) -> RecordDict:
    """Standalone (private labels only), then public-only (the federation without its teachers).

    Standalone takes all steps of a round on private samples. Public-only takes the local phase, and
    the phase on the public set with labels alone. Both end before a round that did harm: to
    private validation samples, or, where public samples of all domains are learned from, to
    held-out samples of all domains.

    Args:
        config: run config, for the phases and the number of rounds.
        local_model: the client's; its holdout validates.
        private: what it learns from.
        partition: of the client, for its seeds.
        steps: optimizer steps that the federation has a client take in a round.
        held_out: the server's held-out samples, sent now that nothing is learned from them.
    """
    local_seed, seed = (derive_seed(config, name, partition) for name in ("local", "distill"))
    reply, info = RecordDict({}), ConfigRecord({"stages": ["public-only", "standalone"]})

    def measure(
        stage: str, learn: Callable[[], object], judges: TokenizedDataset | None, effort: Effort
    ) -> None:
        rounds = local_model.learn_while_better(learn, config.rounds, judges)
        reply[stage] = MetricRecord(scores_to_metrics(local_model.score()))
        pack_effort(info, stage, effort * rounds)

    local_model.reset()
    alone = replace(config.local, steps=steps)
    learn = _phases(local_model, private, alone, local_seed)
    measure("standalone", learn, local_model.holdout, Effort.of(alone, private=True))

    local_model.reset()
    public = config.client_distill
    replay = private if public.replay else None
    phases = [
        _phases(local_model, private, config.local, local_seed),
        _phases(local_model, local_model.public, public, seed, replay),
    ]
    effort = Effort.of(config.local, private=True)
    effort += Effort.of(public, private=public.replay, public=True)
    judges = local_model.encode(held_out) if held_out else None
    measure("public-only", lambda: [phase() for phase in phases], judges, effort)
    reply["info"] = info
    return reply


def _phases(
    local_model: LocalModel,
    data: TokenizedDataset,
    settings: TrainingConfig,
    seed: int,
    replay: TokenizedDataset | None = None,
) -> Callable[[], None]:
    """A function that trains for a phase, and goes on with the next when it is called again."""
    state: TrainingState | None = None

    def learn() -> None:
        nonlocal state
        _, state = local_model.learn(data, settings, seed=seed, replay=replay, state=state)

    return learn
