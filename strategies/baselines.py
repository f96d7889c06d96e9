"""What the models would be without the federation, measured in the same run."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message

from fedfuse.flower import messages
from fedfuse.tracking.run import SERVER
from strategies.server_state import ServerState, all_private


def server_baselines(server: ServerState) -> None:
    """Public-only and centralized training of the server's model; leaves it untrained."""
    config = server.config
    server.restart()
    for server_round in range(1, config.rounds + 1):
        server.fit("distill", server.public, config.server_distill, server_round)
        server.run.scores("public-only", server_round, SERVER, server.local_model.score())
    server.restart()
    # As many steps as a client and the server take together, on everybody's private data.
    everything = server.local_model.encode([*all_private(config), *server.public.samples])
    settings = replace(
        config.server_distill,
        steps=config.local.steps + config.server_distill.steps,
        batch_size=config.local.batch_size,
    )
    for server_round in range(1, config.rounds + 1):
        server.fit("centralized", everything, settings, server_round)
    server.run.scores("centralized", config.rounds, SERVER, server.local_model.score())
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
