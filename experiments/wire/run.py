"""What a lean wire costs the student: ``python -m experiments.wire.run``.

One round of the quickstart's way up with everything fixed but the wire: per seed, the four clients
train once, and the same knowledge reaches the same server, with the same batches, in different
forms: 32-bit floats as in memory, both codecs, with all of the k entries or fewer; and the mass
outside the k entries either as a class of its own or left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.harness import model_of
from experiments import harness
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.distillation.targets import Teacher
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import new_aligner
from fedfuse.fusion.fuser import KnowledgeFuser
from fedfuse.fusion.rules import dual_min_ce
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim
from fedfuse.tokenizers.tokenizer import TextTokenizer

TOP_PS = (1.0, 0.99, 0.95)
SMALL_K = (1, 4, 16)
FLOAT32 = 32


@dataclass(frozen=True, slots=True)
class Encoding:
    """How knowledge travels.

    With ``tail`` the mass outside the k entries is a class of its own; without, it is left out and
    the rest is scaled to one.
    """

    logprob_bits: int  # of the codec, or 32 for knowledge as it is in memory
    top_p: float = 1.0  # see ``trim``
    k: int = 16  # entries of a row at most
    tail: bool = True

    @property
    def name(self) -> str:
        """As it is called in the results."""
        tail = "" if self.tail else " without tail"
        return f"{self.logprob_bits} bits, top-p {self.top_p:g}, k {self.k}{tail}"

    def travel(self, knowledge: Knowledge) -> tuple[Knowledge, int]:
        """What arrives, and the bytes that it took."""
        sent = trim(knowledge, self.top_p)
        if self.logprob_bits == FLOAT32:
            # 32-bit ids, floats, two more a row
            return sent, 8 * sent.indices.size + 8 * sent.num_rows
        message = encode(sent, self.logprob_bits)
        return decode(message), len(message)


REFERENCE = Encoding(FLOAT32)
VARIANTS = (
    REFERENCE,
    *(Encoding(bits, top_p) for bits in (16, 8) for top_p in TOP_PS),
    *(Encoding(FLOAT32, k=k, tail=tail) for k in SMALL_K for tail in (True, False)),
)


def measure(seed: int, orders: int) -> list[dict[str, Any]]:
    """All variants with one seed, each with several orders of the batches."""
    config = RunConfig(seed=seed)
    clients = train_clients(config)
    server = untrained(config, None)
    cells = []
    for variant in dict.fromkeys(VARIANTS):
        teacher, size = deliver(config, server, clients, variant)
        for order in range(orders):
            about = {"seed": seed, "order": order, "variant": variant.name, "bytes_per_row": size}
            cells.append(about | distil(config, server, teacher, order))
    return cells


def untrained(config: RunConfig, partition: int | None) -> LocalModel:
    """The model of a client, or of the server, with a fresh adapter."""
    loaded = model_of(config, partition)
    loaded.reset()
    return loaded


KnowledgeByK = dict[int, tuple[Knowledge, TextTokenizer]]


def train_clients(config: RunConfig) -> list[KnowledgeByK]:
    """Each client after its local phase: what it knows, for any k."""
    clients = []
    private = load_splits(config.data, config.seed, config.data.domains).private
    for partition, samples in enumerate(private):
        client = untrained(config, partition)
        seed = derive_seed(config, "local", partition, 1)
        client.learn(client.encode(samples), config.local, seed=seed)
        clients.append({k: (client.knowledge(k), client.tokenizer) for k in SMALL_K})
    return clients


def deliver(
    config: RunConfig, server: LocalModel, clients: list[KnowledgeByK], variant: Encoding
) -> tuple[Teacher, float]:
    """What the untrained server should learn, and the bytes a label row that it took to tell."""
    server.reset()
    aligner = new_aligner(server, config.knowledge)
    fuser = KnowledgeFuser(aligner, server.knowledge(variant.k))
    arrived, size, rows = [], 0, 0
    for client in clients:
        knowledge, tokenizer = client[variant.k]
        received, taken = variant.travel(knowledge)
        arrived.append(fuser.align_teacher(received, tokenizer))
        size, rows = size + taken, rows + knowledge.num_rows
    fused_targets = fuser.fuse(arrived, dual_min_ce, variant.k, tail=variant.tail)
    return fused_targets.teacher, round(size / rows, 2)


def distil(config: RunConfig, server: LocalModel, teacher: Teacher, order: int) -> dict[str, float]:
    """The server's test loss and accuracy after one phase, with batches in some order."""
    server.reset()
    seed = derive_seed(config, "server", "distill", order)
    server.learn(server.public, config.server_distill, seed=seed, teacher=teacher)
    scores = server.score().values()
    return {
        "loss": round(mean(score.loss for score in scores), 6),
        "accuracy": round(mean(score.accuracy or 0.0 for score in scores), 4),
    }


def summarize(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Per variant, over seeds: losses, and how they differ from the 32-bit wire's.

    A difference is that of the same order of batches, and a mean over orders: one order more or
    less moves a loss by ``chance``, relative to it.
    """
    variants = harness.grouped(cells, "variant")
    reference = {(c["seed"], c["order"]): c["loss"] for c in variants[REFERENCE.name]}
    summary = {}
    for name, mine in variants.items():
        worse, chances = [], []
        for seed, orders in sorted(harness.grouped(mine, "seed").items()):
            losses = [c["loss"] for c in orders]
            worse.append(mean(c["loss"] / reference[seed, c["order"]] - 1 for c in orders))
            chances.append(round(harness.spread(losses), 5) / mean(losses))
        summary[name] = {
            "loss": harness.mean_of(mine, "loss", 5),
            "accuracy": harness.mean_of(mine, "accuracy"),
            "bytes_per_row": harness.mean_of(mine, "bytes_per_row", 1),
            **harness.mean_and_std("loss_over_float32", worse, 5),
            "chance": round(mean(chances), 5),
        }
    return summary


def table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: how one round's knowledge travelled, and what the server learned from it."""
    columns = {
        "told as": "{name}",
        "bytes a label row": "{bytes_per_row:.1f}",
        "test loss, nats/byte": "{loss:.4f}",
        "against 32-bit floats": "{loss_over_float32:+.1%} ± {loss_over_float32_std:.1%}",
        "chance": "{chance:.1%}",
    }
    return harness.formatted(columns, [{"name": n, **found} for n, found in summary.items()])


@harness.experiment("results.json", "wire.md", {"one round": table})
def main(
    seeds: harness.Seeds = "0,1,2",
    orders: Annotated[int, typer.Option(min=1, help="Orders of the batches per seed.")] = 4,
) -> harness.Study:
    """Measure every variant and write results.json beside this file."""
    return harness.Study(
        cells={(seed,): partial(measure, seed, orders) for seed in harness.numbers(seeds)},
        folder=f"wire-{orders}",
        summarize=summarize,
    )
