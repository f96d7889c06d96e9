"""What the models would be without the federation, measured in the same run."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message

from fedfuse.algorithms.effort import Effort
from fedfuse.config.training import TrainingConfig
from fedfuse.flower import messages
from fedfuse.flower.baseline_messages import unpack_effort
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tracking.run import SERVER
from strategies.server_state import ServerState, all_private


def server_baselines(server: ServerState, client_steps: int) -> None:
    """Public-only training of the server's model, and centralized where the run config asks for it.

    Public-only takes the server's steps on labels alone. Centralized takes the steps of all clients
    and of the server together, on everybody's private data and the public set. Both end before the
    round that would harm held-out samples, and leave the model untrained.

    Args:
        server: with its model.
        client_steps: optimizer steps of all clients together in a round.
    """
    config = server.config
    server.restart()
    phase = config.server_distill
    _train(server, "public-only", "distill", server.public, phase, Effort.of(phase, public=True))
    if config.centralized:
        everything = server.local_model.encode([*all_private(config), *server.public.samples])
        steps = client_steps + phase.steps
        settings = replace(phase, steps=steps, batch_size=config.local.batch_size)
        # Public samples are few among them.
        effort = Effort.of(settings, private=True)
        _train(server, "centralized", "centralized", everything, settings, effort)


def _train(
    server: ServerState,
    stage: str,
    phase: str,
    data: TokenizedDataset,
    settings: TrainingConfig,
    effort: Effort,
) -> None:
    """Train the untrained server on labels, at most a phase a round, and score it; undo it."""
    numbers = iter(range(1, server.config.rounds + 1))
    model, rounds = server.local_model, server.config.rounds
    taken = model.learn_while_better(
        lambda: server.fit(phase, data, settings, next(numbers)), rounds, model.holdout
    )
    server.run.scores(stage, rounds, SERVER, model.score())
    server.run.training(stage, rounds, SERVER, "all", effort * taken)
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
