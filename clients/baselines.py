"""What the same client would be without the federation: the baselines that results are compared
with.

Each starts from an untrained adapter and leaves the client's own state untouched.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.config.training import TrainingConfig
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.flower.messages import scores_to_metrics
from fedfuse.tokenizers.dataset import TokenizedDataset


def train_baselines(
    config: RunConfig, local_model: LocalModel, private: TokenizedDataset, partition: int
) -> RecordDict:
    """Standalone (private labels only), then public-only (the same model, on public labels as
    well).

    Both get as many steps as the federation gives: ``rounds`` local phases, and as many phases on
    the public set, which end before the one that would harm held-out samples.
    """
    local_model.reset()
    learn = _phases(local_model, private, config.local, derive_seed(config, "local", partition))
    for _ in range(config.rounds):
        learn()
    scores = {"standalone": local_model.score()}
    public, seed = config.client_distill, derive_seed(config, "distill", partition)
    replay = private if public.replay else None
    learn = _phases(local_model, local_model.public, public, seed, replay)
    local_model.learn_while_better(learn, config.rounds)
    scores["public-only"] = local_model.score()
    reply = RecordDict({"info": ConfigRecord({"stages": sorted(scores)})})
    for stage, score in scores.items():
        reply[stage] = MetricRecord(scores_to_metrics(score))
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
