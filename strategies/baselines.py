"""What the models would be without the federation, measured in the same run."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message

from fedfuse.config.training import TrainingConfig
from fedfuse.flower import messages
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tracking.run import SERVER
from strategies.server_state import ServerState, all_private


def server_baselines(server: ServerState) -> None:
    """Public-only and centralized training of the server's model; leaves it untrained.

    Both end before the phase that would harm held-out samples.
    """
    config = server.config
    server.restart()
    _train(server, "public-only", "distill", server.public, config.server_distill)
    # As many steps as a client and the server take together, on everybody's private data.
    everything = server.local_model.encode([*all_private(config), *server.public.samples])
    settings = replace(
        config.server_distill,
        steps=config.local.steps + config.server_distill.steps,
        batch_size=config.local.batch_size,
    )
    _train(server, "centralized", "centralized", everything, settings)


def _train(
    server: ServerState, stage: str, phase: str, data: TokenizedDataset, settings: TrainingConfig
) -> None:
    """Train the untrained server on labels, at most a phase a round, and score it; undo it."""
    numbers = iter(range(1, server.config.rounds + 1))
    server.local_model.learn_while_better(
        lambda: server.fit(phase, data, settings, next(numbers)), server.config.rounds
    )
    server.run.scores(stage, server.config.rounds, SERVER, server.local_model.score())
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
