"""Federations on a GPU against the memory plan: in one process, and with fractional GPUs on Ray."""

from __future__ import annotations

import importlib.util
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import models
from fedfuse.config.run_config import RunConfig, parse
from fedfuse.models.devices import peak_memory, release_cache, reset_peak
from fedfuse.simulation.memory_plan import CUDA_CONTEXT, on_gpu
from fedfuse.simulation.run_memory import client_needs, server_needs
from fedfuse.simulation.simulate import simulate
from fedfuse.tracking.run import read_run

CLIENTS = 4
SHARE = 0.2  # of the GPU, for a client
SAMPLED_SECONDS = 0.2
KEYS: dict[str, Any] = {
    "strategy": "fedmkt",
    "preset": "pretrained",
    "rounds": 1,
    "baselines": False,
    "min-clients": CLIENTS,
    "data.private": 400,
    "data.public": 100,
    "data.test": 20,
    "data.questions": 10,
    "data.max-length": 128,
    "local.steps": 20,
    "local.batch-size": 32,
    "server-distill.steps": 20,
    "server-distill.batch-size": 32,
    "client-distill.steps": 20,
    "client-distill.batch-size": 32,
}
QUICK: dict[str, Any] = {
    "data.private": 20,
    "data.public": 6,
    "data.test": 1,
    "data.questions": 2,
    "data.blind": 4,
    "local.steps": 2,
    "local.batch-size": 4,
    "server-distill.steps": 2,
    "server-distill.batch-size": 4,
    "client-distill.steps": 2,
    "client-distill.batch-size": 4,
}


def measure(
    device: torch.device, folder: Path, *, ray: bool, quick: bool
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Peak memory over the plan's, in process and on Ray; and what it was computed from."""
    small, large = (
        (models.QUICK_SMALL, models.QUICK_LARGE) if quick else (models.SMALL, models.LARGE)
    )
    server = models.make(folder / "server", large, seed=0)
    client = models.make(folder / "client", small, seed=1)
    half = "float32" if device.type == "cpu" else "bfloat16"
    keys = KEYS | (QUICK if quick else {}) | {"output": str(folder / "runs")}
    for side, model in (("server", server), ("clients", client)):
        keys |= {f"{side}.model": str(model), f"{side}.dtype": half, f"{side}.device": device.type}
    config = parse(keys)
    planned = plan(config)

    release_cache(device)
    reset_peak(device)
    run = simulate(clients=CLIENTS, config=keys, name="in-process")
    peak = peak_memory(device)
    raw = {"planned_bytes": planned, "peak_bytes": peak, "seconds": _seconds(run.folder)}
    yield ({"plan_over_peak_in_process": planned / peak} if peak else {}), {"in_process": raw}

    if not ray or not importlib.util.find_spec("ray"):
        yield {"ray": "not measured"}, {}
        return
    share = SHARE if device.type == "cuda" else 0.0
    with watched(device) as used:
        run = simulate(
            clients=CLIENTS, config=keys, name="ray", in_process=False, gpus_per_client=share
        )
    each = on_gpu(client_needs(config, CLIENTS, config.clients.model))
    whole = on_gpu(server_needs(config, CLIENTS)[0]) + CLIENTS * each
    raw = {"planned_bytes": whole, "peak_bytes": max(used, default=None)}
    raw["seconds"] = _seconds(run.folder)
    results = {"plan_over_peak_ray": whole / max(used)} if used else {}
    yield results, {"ray": raw}


def plan(config: RunConfig) -> int:
    """Bytes of tensors on one GPU where one process plays server and clients in turn."""
    needs = [server_needs(config, CLIENTS)[0], client_needs(config, CLIENTS, config.clients.model)]
    steps = [max(each.step, each.scoring) for each in needs]
    weights = (on_gpu(e) - CUDA_CONTEXT - step for e, step in zip(needs, steps, strict=True))
    return sum(weights) + max(steps)


@contextmanager
def watched(device: torch.device) -> Iterator[list[int]]:
    """Bytes of the GPU that all processes together have taken beyond those before, as time goes."""
    used: list[int] = []
    over = threading.Event()
    before = _used() if device.type == "cuda" else 0

    def look() -> None:
        while not over.wait(SAMPLED_SECONDS):
            used.append(_used() - before)

    watcher = threading.Thread(target=look, daemon=True)
    if device.type == "cuda":
        watcher.start()
    try:
        yield used
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()


def _used() -> int:
    """Bytes of the first GPU that are taken, as its driver says."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) << 20


def _seconds(folder: Path) -> dict[str, float]:
    """Seconds by phase of a run."""
    found: dict[str, float] = {}
    for line in read_run(folder).messages:
        found[line.phase] = max(found.get(line.phase, 0.0), round(line.seconds, 3))
    return found
