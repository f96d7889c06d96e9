"""How much memory a simulation will take at most, before it starts.

    total = ENGINE + SERVER + K * CLIENT                     processes without a model
          + base weights                                     once, or a copy in each process
          + N * STATE * adapter                              clients' states, with the server
          + (adapters + training + steps) per process        of the server and of K clients
          + knowledge                                        of the public set

Steps take HEAP times a training step, or a pass of scoring where that takes more: its few large
blocks are used again. K of N clients run at once, each in a process that may play any client, so it
holds an adapter of each distinct client model and trains the largest. That all are at their peak at
the same time is the worst case, and what happens where clients do the same work.

The constants are fitted to measurements: ``benchmarks/simulation_memory.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedfuse.errors import FedfuseError
from fedfuse.models.dry_run import ModelNeeds

MB = 1_000_000
# SuperLink, Flower's and Ray's processes without the following two.
ENGINE = 700 * MB
# The process of ServerApp and engine, and that of a client, with all libraries and no model.
SERVER = 590 * MB
CLIENT = 405 * MB
# Bytes of a client's state per byte of its adapter: the adapter and two moments for each of two
# phases are 5, which Flower and Ray hold up to three times while messages come and go.
STATE = 14
# Bytes that a process holds of its allocator per byte in use at the peak of a step: what was freed
# between blocks that are in use does not go back to the system.
HEAP = 2.4
# Weights as loaded and as first drawn; gradient and two moments. A client's state passes through
# its process: as received, unpacked, as sent, packed.
FRESH, TRAINING, PASSING = 2, 3, 4 * 5
# A row's knowledge: its own, as a message, translated, as a teacher.
KNOWLEDGE = 4
# What CUDA and its libraries take of a GPU per process, without any tensor.
CUDA_CONTEXT = 600 * MB


@dataclass(frozen=True, slots=True)
class Plan:
    """Predicted peak memory of a simulation, in bytes.

    Attributes:
        parts: by what they are for, in the order of the table.
        clients_at_once: that the parts are for.
    """

    parts: Mapping[str, int]
    clients_at_once: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())

    def check(self, available: int) -> None:
        """Refuse a simulation that does not fit.

        Args:
            available: bytes of memory that are free, or can be freed.

        Raises:
            FedfuseError: naming both figures, the largest part and what helps.
        """
        if self.total <= available:
            return
        largest = max(self.parts, key=lambda part: self.parts[part])
        raise FedfuseError(
            f"the simulation needs {self.total / 1e9:.1f} GB of memory at its peak with "
            f"{self.clients_at_once} clients at once, most of it for {largest}; available: "
            f"{available / 1e9:.1f} GB; allowed: fewer clients at once (a larger "
            "--cpus-per-client), smaller local.max-tokens, client-distill.max-tokens and "
            "server-distill.max-tokens, gradient-checkpointing, or smaller models"
        )


def plan_memory(
    server: ModelNeeds,
    clients: Mapping[str, ModelNeeds],
    *,
    server_name: str,
    number: int,
    at_once: int,
    knowledge: int,
) -> Plan:
    """Add up what a simulation takes.

    Args:
        server: the server's model.
        clients: the distinct models of the clients, by base model.
        server_name: base model of the server.
        number: of clients.
        at_once: of them.
        knowledge: bytes of a model's knowledge of the public set.
    """
    mapped = {name: needs.base for name, needs in clients.items() if needs.mapped}
    copies = at_once * sum(needs.base for needs in clients.values() if not needs.mapped)
    if server.mapped:
        mapped[server_name] = server.base
    else:
        copies += server.base
    own = max(needs.adapter for needs in clients.values())
    held = FRESH * sum(needs.adapter for needs in clients.values()) + (TRAINING + PASSING) * own
    steps = at_once * max(map(_steps, clients.values())) + _steps(server)
    return Plan(
        {
            "processes without a model": ENGINE + SERVER + at_once * CLIENT,
            "base weights, shared": sum(mapped.values()),
            "base weights, a copy in each process": copies,
            "adapters and optimizers": at_once * held + (FRESH + TRAINING) * server.adapter,
            "states of all clients": number * STATE * own,
            "training steps and scoring": steps,
            "knowledge of the public set": (at_once + 1) * KNOWLEDGE * knowledge,
        },
        at_once,
    )


def _steps(needs: ModelNeeds) -> int:
    return max(int(HEAP * needs.step), needs.scoring)


def check_gpu(name: str, needs: ModelNeeds, share: float, total: int) -> None:
    """Refuse a share of a GPU that a client does not fit into.

    Args:
        name: the client's base model.
        needs: of its model.
        share: of a GPU for each client, above 0.
        total: bytes of the GPU's memory.

    Raises:
        FedfuseError: naming the figures and what helps.
    """
    wanted = CUDA_CONTEXT + needs.base + (FRESH + TRAINING) * needs.adapter
    wanted += max(needs.step, needs.scoring)
    if wanted > share * total:
        enough = math.ceil(100 * wanted / total) / 100
        raise FedfuseError(
            f"a client with {name!r} needs {wanted / 1e9:.1f} GB of a GPU; with --gpus-per-client "
            f"{share:g} it has {share * total / 1e9:.1f} of {total / 1e9:.1f} GB; allowed: "
            f"--gpus-per-client {enough:g} or more, smaller max-tokens, "
            "gradient-checkpointing, or a smaller model"
        )
