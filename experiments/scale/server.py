"""The server alone, told what a run's clients said: ``python -m experiments.scale.server RUN``.

In a simulation the server shares its process with Flower's engine, which keeps what every client
keeps. Here clients are files, and the peak is that of listening, selecting and fusing; what the
server's own model needs has nothing to do with the number of clients and is left out.
"""

from __future__ import annotations

import json
import logging
import time
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
from fedfuse.builtin.models import build
from fedfuse.config.run_config import RunConfig, model_of_partition, parse
from fedfuse.flower.messages import (
    arrays_to_record,
    pack_knowledge,
    pack_round,
    pack_tokenizer,
    unpack_context,
)
from fedfuse.fusion.disk_buffer import DiskBuffer
from fedfuse.knowledge.payload import encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import load, save
from fedfuse.simulation.in_process import InProcessGrid
from fedfuse.tokenizers.load import load_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer
from strategies.fedmkt import FedMKT
from strategies.server_state import open_server_state

ROUNDS, KNOWLEDGE = "rounds.json", "knowledge"


class Recorded(FedMKT):
    """Writes ``rounds.json``, the seconds of each round, and ``knowledge/CLIENT.bin``, its last."""

    def summary(self) -> None:
        """Make the folder."""
        super().summary()
        self._seconds: list[float] = []
        (self.server.run.folder / KNOWLEDGE).mkdir()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A round begins."""
        self._started = time.monotonic()
        return super().configure_train(server_round, arrays, config, grid)

    def receive(self, reply: Message) -> Knowledge:
        """Keep what a client says."""
        knowledge = super().receive(reply)
        client = self.messenger.name(reply.metadata.src_node_id)
        save(self.server.run.folder / KNOWLEDGE / f"{client}.bin", knowledge)
        return knowledge

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """A round ends."""
        metrics = super().aggregate_evaluate(server_round, replies)
        if server_round:
            self._seconds.append(round(time.monotonic() - self._started, 2))
            (self.server.run.folder / ROUNDS).write_text(json.dumps(self._seconds))
        return metrics


class Measured(FedMKT):
    """The first half of a FedMKT round, and the memory that it takes."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Measure the memory that it takes."""
        found: list[Any] = []
        # What is there once, however many the clients are.
        own = self.server.local_model.knowledge(self.config.knowledge.k)
        for tokenizer in set(self.tokenizers.values()):
            self.server.aligner.pair(tokenizer)
        fuse = super().aggregate_train
        with patch.object(self.server.local_model, "knowledge", lambda *_: own):
            extra = peak_beyond(lambda: found.extend(fuse(server_round, replies)), trim=True)
        self.extra_mb = round(extra / 1e6, 2)
        return found[0], found[1]

    def configure_distill(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: there are no clients to learn, or to be scored."""
        return []

    configure_evaluate = configure_distill


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
    in_memory = patch.object(DiskBuffer, "put", lambda _, teacher: teacher)
    with in_memory if held else nullcontext():
        strategy.start(grid, arrays_to_record(strategy.server.local_model.adapter), num_rounds=1)
    print(json.dumps({"clients": clients, "extra_mb": strategy.extra_mb}))


if __name__ == "__main__":
    typer.run(main)
