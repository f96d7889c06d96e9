"""A Ray cluster that runs already: its machines, and the environment that its workers need.

Flower's simulation calls ``ray.init`` without an address, so Ray connects to the cluster that the
environment variable ``RAY_ADDRESS`` names (flwr 1.41, ``RayBackend.init_ray``; ray 2.55,
``ray.init``). Its workers inherit the environment of the cluster and not of the run: variables of
the run are put into the job's runtime environment, in the form of ``ray job submit``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass

from fedfuse.errors import FedfuseError, check

_SECONDS = 5.0  # for a port to answer
_JOIN_SECONDS = 60.0  # for a cluster to answer
# Of this process's variables, those that decide where clients find their models.
_INHERITED = ("FEDFUSE_CACHE", "HF_HOME", "HF_HUB_OFFLINE")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a Ray cluster.

    Attributes:
        address: its IP address.
        cpus: cores that Ray gives away there.
        gpus: GPUs that Ray gives away there.
        here: whether it is this machine.
    """

    address: str
    cpus: float
    gpus: float
    here: bool

    def clients(self, cpus_per_client: int, gpus_per_client: float) -> int:
        """Number of clients that Flower lets run there at once."""
        clients = int(self.cpus / cpus_per_client)
        return min(clients, int(self.gpus / gpus_per_client)) if gpus_per_client else clients


def find_nodes(address: str) -> list[Node]:
    """The machines of a cluster.

    Args:
        address: ``HOST:PORT``, as ``ray start --head`` says it.

    Raises:
        FedfuseError: when no cluster of this Ray version answers there, or this machine is no node
            of it.
    """
    host, _, port = address.rpartition(":")
    expected = (
        "Ray address: expected HOST:PORT of a Ray cluster that this machine is a node of "
        f"(`ray start`), got {address!r}"
    )
    if "://" in address or not host or not port.isdigit():
        raise FedfuseError(expected)
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise FedfuseError(f"{expected}, which does not answer ({error})") from error
    # In a process of its own: where it cannot connect, Ray may end the process or wait for minutes.
    command = [sys.executable, "-m", __name__, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_JOIN_SECONDS)
        return [Node(**node) for node in json.loads(done.stdout.splitlines()[-1])]
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        reason = f"no answer in {_JOIN_SECONDS:g} s"
        if not isinstance(error, subprocess.TimeoutExpired):
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FedfuseError(f"{expected}: {reason}") from error


def check_room(nodes: list[Node], cpus_per_client: int, gpus_per_client: float) -> None:
    """Refuse a cluster on which no client has room.

    Raises:
        FedfuseError: naming the CPUs and GPUs of each machine.
    """
    found = ", ".join(f"{n.address}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes)
    expected = f"a machine with {cpus_per_client} CPUs and {gpus_per_client:g} GPUs for a client"
    good = any(node.clients(cpus_per_client, gpus_per_client) for node in nodes)
    check("Ray cluster", found, expected, good)


def cluster_environment(address: str) -> dict[str, str]:
    """Environment variables by which the run's processes use a cluster."""
    variables = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
    return {
        "RAY_ADDRESS": address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": variables}}),
    }


def _ask(address: str) -> list[Node]:
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        here = ray.get_runtime_context().get_node_id()
        return [
            Node(
                address=node["NodeManagerAddress"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                here=node["NodeID"] == here,
            )
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
    finally:
        ray.shutdown()


if __name__ == "__main__":
    print(json.dumps([asdict(node) for node in _ask(sys.argv[1])]))
