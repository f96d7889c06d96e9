"""The server alone, told what a run's clients said: ``python -m experiments.scale.server RUN``.

In a simulation the server shares its process with Flower's engine, which keeps what every client
keeps. Here clients are files, and the peak is that of listening, selecting and fusing; what the
server's own model needs has nothing to do with the number of clients and is left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from benchmarks.memory import peak_beyond
from experiments.scale.recorded import KNOWLEDGE
from fedfuse.builtin.models import build
from fedfuse.config.run_config import RunConfig, model_of_partition, parse
from fedfuse.flower.messages import (
    arrays_to_record,
    pack_knowledge,
    pack_round,
    pack_tokenizer,
    unpack_context,
)
from fedfuse.fusion.fuser import AlignedTeacher
from fedfuse.knowledge.payload import encode_full
from fedfuse.knowledge.storage import load
from fedfuse.simulation.in_process import InProcessGrid
from fedfuse.tokenizers.load import load_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer
from strategies.fedmkt import FedMKT
from strategies.server_state import open_server_state


class Measured(FedMKT):
    """The first half of a FedMKT round, and the memory that it takes."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Measure the memory that it takes."""
        found: list[tuple[ArrayRecord | None, MetricRecord | None]] = []
        # What is there once, however many the clients are.
        own = self.server.local_model.knowledge(self.config.knowledge.k)
        for tokenizer in set(self.tokenizers.values()):
            self.server.aligner.pair(tokenizer)
        told = patch.object(self.server.local_model, "knowledge", lambda *_: own)
        fuse = super().aggregate_train
        with told:
            extra = peak_beyond(lambda: found.append(fuse(server_round, replies)), trim=True)
        self.extra_mb = round(extra / 1e6, 2)
        return found[0]

    def configure_distill(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: there are no clients to learn."""
        return []

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: there are no clients to score."""
        return []


class MemoryBuffer:
    """In place of the disk buffer: every teacher stays in memory."""

    def __init__(self, folder: Path) -> None: ...

    def __enter__(self) -> MemoryBuffer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def put(self, candidate: AlignedTeacher) -> AlignedTeacher:
        """Keep it as it is."""
        return candidate


def playback(folder: Path, config: RunConfig) -> ClientApp:
    """Clients that say what those of a run said."""
    app = ClientApp()

    @lru_cache
    def tokenizer(model: str) -> TextTokenizer:
        return load_tokenizer(str(build(model)))

    @app.query("register")
    def register(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        model = model_of_partition(config.clients.model, number)
        info = ConfigRecord({"partition": number, "model": model, "own-domain": ""})
        reply = RecordDict({"info": info})
        pack_tokenizer(reply, tokenizer(model))
        return Message(reply, reply_to=message)

    @app.train("local")
    def local(message: Message, context: Context) -> Message:
        reply = RecordDict({"metrics": MetricRecord({"loss": 1.0})})
        knowledge = load(folder / KNOWLEDGE / f"{context.node_config['partition-id']}.bin")
        pack_knowledge(reply, encode_full(knowledge, 16, 1.0))
        pack_round(reply, unpack_context(message.content).round)
        return Message(reply, reply_to=message)

    return app


def main(
    folder: Annotated[Path, typer.Argument(help="Run folder of a run with the strategy Recorded.")],
    output: Annotated[Path, typer.Option(help="Folder for the run folder.")] = Path("runs"),
    held: Annotated[bool, typer.Option("--held", help="Hold all candidates in memory.")] = False,
) -> None:
    """Print the peak as JSON."""
    logging.disable(logging.INFO)
    keys: dict[str, Any] = json.loads((folder / "config.json").read_text())["config"]
    config = parse({**keys, "output": str(output), "rounds": 1, "server-distill.steps": 0})
    clients = len(list((folder / KNOWLEDGE).glob("*.bin")))
    nodes = [{"partition-id": number, "num-partitions": clients} for number in range(clients)]
    grid = InProcessGrid(playback(folder, config), nodes, {})
    strategy = Measured(open_server_state(config))
    with patch("strategies.fedmkt.DiskBuffer", MemoryBuffer) if held else nullcontext():
        strategy.start(grid, arrays_to_record(strategy.server.local_model.adapter), num_rounds=1)
    print(json.dumps({"clients": clients, "extra_mb": strategy.extra_mb}))


if __name__ == "__main__":
    typer.run(main)
