"""Prediction of the peak memory of a simulation, before it starts.

    total = ENGINE + SERVER + K * CLIENT                     processes without a model
          + base weights                                     once, or a copy in each process
          + N * STATE * adapter                              clients' states, with the server
          + (adapters + training + steps) per process        of the server and of K clients
          + knowledge                                        of the public set

Steps take HEAP times a training step, or a pass of scoring where that takes more: its few large
blocks are used again. K of N clients run at once, each in a process that may play any client, so it
has an adapter of each distinct client model and trains the largest. All may be at their peak at the
same time, and are where clients do the same work.

The constants are fitted to measurements: ``benchmarks/simulation_memory.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedfuse.errors import FedfuseError
from fedfuse.models.dry_run import ModelNeeds

MB = 1_000_000
# SuperLink, and the processes of Flower and Ray without the following two.
ENGINE = 700 * MB
# Process of ServerApp and engine, and process of a client, with all libraries and no model.
SERVER = 590 * MB
CLIENT = 405 * MB
# Bytes of a client's state per byte of its adapter: the adapter and two moments for each of two
# phases are 5, of which Flower and Ray have up to three copies while messages come and go.
STATE = 14
# Bytes of the allocator per byte in use at the peak of a step: memory that was freed between blocks
# in use does not go back to the system.
HEAP = 2.4
# Weights as loaded and as first drawn; gradient and two moments. A client's state passes through
# its process: as received, unpacked, as sent, packed.
FRESH, TRAINING, PASSING = 2, 3, 4 * 5
# Copies of a row's knowledge: the model's own, as a message, aligned, as a teacher.
KNOWLEDGE = 4
# Memory of CUDA and its libraries on a GPU per process, without any tensor.
CUDA_CONTEXT = 600 * MB


@dataclass(frozen=True, slots=True)
class Plan:
    """Predicted peak memory of a simulation.

    Attributes:
        parts: bytes by purpose, in the order of the table.
        clients_at_once: number of clients that run at the same time.
        on_disk: bytes of the hidden states that are kept of frozen layers. They are mapped, so the
            system takes their memory back where it is needed.
    """

    parts: Mapping[str, int]
    clients_at_once: int
    on_disk: int = 0

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def check(self, available: int) -> None:
        """Refuse a simulation that needs more than the available bytes of memory.

        Raises:
            FedfuseError: naming both figures, the largest part and what helps.
        """
        if self.total <= available:
            return
        largest = max(self.parts, key=lambda part: self.parts[part])
        raise FedfuseError(
            f"the simulation needs {self.total / 1e9:.1f} GB of memory at its peak with "
            f"{self.clients_at_once} clients at once, most of it for {largest}; available: "
            f"{available / 1e9:.1f} GB; run fewer clients at once (a larger --cpus-per-client), "
            "set smaller local.max-tokens, client-distill.max-tokens and "
            "server-distill.max-tokens, or gradient-checkpointing, or take smaller models"
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
    """Add up the memory of a simulation.

    Args:
        server: needs of the server's model.
        clients: needs of the clients' distinct models, by base model.
        server_name: base model of the server.
        number: number of clients.
        at_once: number of clients that run at the same time.
        knowledge: bytes of a model's knowledge of the public set.
    """
    mapped = {name: needs.base for name, needs in clients.items() if needs.mapped}
    copies = at_once * sum(needs.base for needs in clients.values() if not needs.mapped)
    if server.mapped:
        mapped[server_name] = server.base
    else:
        copies += server.base
    own = max(needs.adapter for needs in clients.values())
    adapters = FRESH * sum(needs.adapter for needs in clients.values()) + (TRAINING + PASSING) * own
    steps = at_once * max(map(_steps, clients.values())) + _steps(server)
    return Plan(
        {
            "processes without a model": ENGINE + SERVER + at_once * CLIENT,
            "base weights, shared": sum(mapped.values()),
            "base weights, a copy in each process": copies,
            "adapters and optimizers": at_once * adapters + (FRESH + TRAINING) * server.adapter,
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
        name: base model of the client.
        needs: needs of the model.
        share: share of a GPU for each client, above 0.
        total: bytes of the GPU's memory.

    Raises:
        FedfuseError: naming the figures and what helps.
    """
    wanted = on_gpu(needs)
    if wanted > share * total:
        enough = math.ceil(100 * wanted / total) / 100
        raise FedfuseError(
            f"a client with {name!r} needs {wanted / 1e9:.1f} GB of a GPU; with --gpus-per-client "
            f"{share:g} it has {share * total / 1e9:.1f} of {total / 1e9:.1f} GB; set "
            f"--gpus-per-client {enough:g} or more, smaller max-tokens or "
            "gradient-checkpointing, or take a smaller model"
        )


def check_server_gpu(name: str, needs: ModelNeeds, total: int) -> None:
    """Refuse a server's model that does not fit onto its GPU, or onto all that it is spread over.

    Args:
        name: the model.
        needs: needs of the model.
        total: bytes of that memory.

    Raises:
        FedfuseError: naming the figures and what helps.
    """
    wanted = on_gpu(needs)
    if wanted > total:
        raise FedfuseError(
            f"the server with {name!r} needs {wanted / 1e9:.1f} GB of a GPU; it has "
            f"{total / 1e9:.1f} GB; set server.device-map = auto with several GPUs, "
            "server.quantization, a smaller server-distill.max-tokens or "
            "server.gradient-checkpointing, or take a smaller model"
        )


def on_gpu(needs: ModelNeeds) -> int:
    """Bytes of a GPU that a process takes which trains a model there."""
    weights = needs.base + (FRESH + TRAINING) * needs.adapter
    return CUDA_CONTEXT + weights + max(needs.step, needs.scoring)
