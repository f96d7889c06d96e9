"""What the same client would be without the federation: the baselines that results are compared
with.

Each starts from an untrained adapter, takes as many steps on private samples as the federation
does, and leaves the client's own state untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedfuse.algorithms.baseline import LabelPhase, train_baseline
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.data.sample import Sample
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
    rounds: int,
    held_out: Sequence[Sample],
) -> RecordDict:
    """Standalone (private labels only), then public-only (the federation without its teachers).

    Standalone has all steps of a round for private samples. Public-only has the local phase, and
    the phase on the public set with labels alone. Private validation samples judge the one, and
    held-out samples of all domains the other, which learns from public samples of all domains.

    Args:
        config: run config, for the phases.
        local_model: the client's; its holdout validates.
        private: what it learns from.
        partition: of the client, for its seeds.
        steps: optimizer steps that the federation has a client take in a round.
        rounds: rounds that the client took part in.
        held_out: the server's held-out samples, sent now that nothing is learned from them.
    """
    local_seed, seed = (derive_seed(config, name, partition) for name in ("local", "distill"))
    reply, info = RecordDict({}), ConfigRecord({"stages": ["public-only", "standalone"]})
    local, public = config.local, config.client_distill
    judges = local_model.encode(held_out) if held_out else None
    stages = {
        "standalone": (
            [LabelPhase(private, replace(local, steps=steps), local_seed)],
            local_model.holdout,
        ),
        "public-only": (
            [
                LabelPhase(private, local, local_seed),
                LabelPhase(
                    local_model.public, public, seed, private if public.replay else None, True
                ),
            ],
            judges,
        ),
    }
    for stage, (phases, judged_by) in stages.items():
        local_model.reset()
        effort = train_baseline(local_model, phases, rounds, judged_by)
        reply[stage] = MetricRecord(scores_to_metrics(local_model.score()))
        pack_effort(info, stage, effort)
    reply["info"] = info
    return reply
