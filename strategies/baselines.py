"""What the models would be without the federation, measured in the same run."""

from __future__ import annotations

import time
from dataclasses import replace
from math import ceil

from flwr.app import Message

from fedfuse.algorithms.baseline import LabelPhase, train_baseline
from fedfuse.config.run_config import derive_seed
from fedfuse.config.training import TrainingConfig
from fedfuse.flower import messages
from fedfuse.flower.baseline_messages import unpack_effort
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tracking.run import SERVER
from strategies.server_state import ServerState, all_private, log_progress

# Share of a distilling phase's steps that the server first has on labels: what it lacks it hears.
FIRST_LABELS = 0.5


def learn_labels_first(server: ServerState) -> None:
    """Train the server on the public labels as public-only begins, before it hears any teacher.

    Who stands at its base trusts whoever says anything better, though labels may tell more.
    """
    phase, started = server.config.server_distill, time.monotonic()
    phase = replace(phase, steps=ceil(FIRST_LABELS * phase.steps))
    one = LabelPhase(
        server.public,
        phase,
        derive_seed(server.config, SERVER, "public-only"),
        public=True,
        on_step=log_progress("round 1: labels first", phase.steps),
    )
    effort = train_baseline(server.local_model, [one], 1, server.local_model.holdout)
    server.run.training("federated", 1, SERVER, "labels", effort)
    seconds = time.monotonic() - started
    server.run.message(1, "server.labels", SERVER, seconds=seconds)


def server_baselines(server: ServerState, client_steps: int, rounds: int) -> None:
    """Public-only training of the server's model, and centralized where the run config asks for it.

    Public-only has the server's steps on labels alone. Centralized has the steps of all clients and
    of the server together, on everybody's private data and the public set. Held-out samples judge
    both. They leave the model untrained.

    Args:
        server: with its model.
        client_steps: optimizer steps of all clients together in a round.
        rounds: phases on the public set that the server has had in the federation.
    """
    config = server.config
    server.restart()
    phase = config.server_distill
    _train(server, "public-only", server.public, phase, rounds)
    if config.centralized:
        everything = server.local_model.encode([*all_private(config), *server.public.samples])
        steps = client_steps + phase.steps
        settings = replace(phase, steps=steps, batch_size=config.local.batch_size)
        # Public samples are few among them.
        _train(server, "centralized", everything, settings, config.rounds)


def _train(
    server: ServerState, stage: str, data: TokenizedDataset, settings: TrainingConfig, rounds: int
) -> None:
    """Train the untrained server on labels for so many phases, and score it; undo it."""
    model, last = server.local_model, server.config.rounds
    phase = LabelPhase(
        data,
        settings,
        derive_seed(server.config, SERVER, stage),
        public=data is server.public,
        on_step=log_progress(stage, settings.steps),
    )
    effort = train_baseline(model, [phase], rounds, model.holdout)
    server.run.scores(stage, last, SERVER, model.score())
    server.run.training(stage, last, SERVER, "all", effort)
    server.restart()


def client_baselines(server: ServerState, client: str, reply: Message) -> None:
    """Write down what a client measured.

    Raises:
        FedfuseError: for scores that are out of range.
    """
    records = reply.content.metric_records
    found = {stage: messages.metrics_to_scores(metrics) for stage, metrics in records.items()}
    for stage, scores in found.items():
        server.run.scores(stage, server.config.rounds, client, scores)
        effort = unpack_effort(reply.content, stage)
        server.run.training(stage, server.config.rounds, client, "all", effort)
