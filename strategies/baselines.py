"""What the models would be without the federation, measured in the same run."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message

from fedfuse.flower import messages
from strategies.server_state import SERVER, ServerState, all_private


def server_baselines(session: ServerState) -> None:
    """Public-only and centralized training of the server's model; leaves it untrained."""
    config = session.config
    session.restart()
    for server_round in range(1, config.rounds + 1):
        session.fit("distill", session.public, config.server_distill, server_round)
        session.run.scores("public-only", server_round, SERVER, session.local_model.score())
    session.restart()
    # As many steps as a client and the server take together, on everybody's private data.
    everything = session.local_model.encode([*all_private(config), *session.public.samples])
    settings = replace(
        config.server_distill,
        steps=config.local.steps + config.server_distill.steps,
        batch_size=config.local.batch_size,
    )
    for server_round in range(1, config.rounds + 1):
        session.fit("centralized", everything, settings, server_round)
    session.run.scores("centralized", config.rounds, SERVER, session.local_model.score())
    session.restart()


def client_baselines(session: ServerState, client: str, reply: Message) -> None:
    """Write down what a client measured.

    Raises:
        FedfuseError: for scores that are out of range.
    """
    records = reply.content.metric_records
    found = {stage: messages.metrics_to_scores(metrics) for stage, metrics in records.items()}
    for stage, scores in found.items():
        session.run.scores(stage, session.config.rounds, client, scores)
