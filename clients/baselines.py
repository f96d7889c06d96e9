"""What the same client would be without the federation: the baselines that results are compared
with.

Each starts from an untrained adapter and leaves the client's own state untouched.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.flower.messages import scores_to_metrics
from fedfuse.tokenizers.dataset import TokenizedDataset


def train_baselines(
    config: RunConfig, local_model: LocalModel, private: TokenizedDataset, partition: int
) -> RecordDict:
    """Standalone (private labels only), then public-only (the same model, on public labels as
    well).

    Both get as many steps as the federation gives: ``rounds`` local phases, and as many phases on
    the public set.
    """
    local_model.reset()
    state = None
    for _ in range(config.rounds):
        _, state = local_model.learn(
            private,
            config.local,
            seed=derive_seed(config, "local", partition),
            state=state,
        )
    scores = {"standalone": local_model.score()}
    state = None
    public = config.client_distill
    for _ in range(config.rounds):
        _, state = local_model.learn(
            local_model.public,
            public,
            seed=derive_seed(config, "distill", partition),
            replay=private if public.replay else None,
            state=state,
        )
    scores["public-only"] = local_model.score()
    reply = RecordDict({"info": ConfigRecord({"stages": sorted(scores)})})
    for stage, score in scores.items():
        reply[stage] = MetricRecord(scores_to_metrics(score))
    return reply
