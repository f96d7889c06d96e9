"""Run folders made up for the tests: shaped like real ones, numbers from a formula."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOMAINS = ("clinic", "bank", "court", "workshop")
FAMILIES = ("gpt2", "llama", "opt", "gpt-neox")
BASELINES = ("zero-shot", "standalone", "public-only", "federated", "centralized")
FLOORS = {"clinic": 0.205, "bank": 0.188, "court": 0.231, "workshop": 0.176}


def write_folder(
    folder: Path,
    *,
    clients: int = 4,
    rounds: int = 5,
    floor: bool = True,
    stages: Sequence[str] = BASELINES,
    accuracy: bool = True,
    names: Mapping[str, str] | None = None,
    domains: Sequence[str] = DOMAINS,
    failing: str | None = None,
    **overrides: Any,
) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [str(i) for i in range(clients)]
    own = {i: domains[int(i) % len(domains)] for i in ids}
    default = {i: f"{own[i]} / {FAMILIES[int(i) % 4]}" for i in ids}
    floors = {d: FLOORS.get(d, 0.2) for d in domains}
    config = {
        "config": {"name": "quickstart", "seed": 7, "rounds": rounds, "strategy": "fedmkt"},
        "seed": 7,
        "versions": {"fedfuse": "0.1.0", "torch": "2.8.0", "flwr": "1.41.0"},
        "commit": "6467a4c",
        "models": {"server": "builtin:server"}
        | {i: f"builtin:{FAMILIES[int(i) % 4]}" for i in ids},
        "domains": list(domains),
        "names": {"server": "server", **default, **(names or {})},
        "own_domain": own,
        "floor": {"loss": floors, "accuracy": dict.fromkeys(domains, 0.72)} if floor else None,
        "status": "finished",
    }
    (folder / "config.json").write_text(json.dumps(config | overrides), encoding="utf-8")
    metrics = _metrics(ids, own, floors, rounds, stages, accuracy)
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "training.jsonl", _training(ids, rounds, stages))
    write_lines(folder / "messages.jsonl", _message_log(ids, rounds, failing))
    write_lines(folder / "teacher_shares.jsonl", _teacher_shares(ids, own, rounds, domains))
    write_lines(folder / "gates.jsonl", _gate_losses(ids, rounds))
    return folder


def _training(ids: Sequence[str], rounds: int, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Two phases a client and round, and its baselines: 40 steps of 8 samples each."""

    def line(stage: str, r: int, model: str, phase: str, public: int, queries: int) -> Any:
        place = {"stage": stage, "round": r, "model": model, "phase": phase, "steps": 40}
        return place | {"private_samples": 320, "public_samples": public, "queries": queries}

    federated = [
        line("federated", r, client, *phase)
        for r in range(1, rounds + 1)
        for client in ids
        for phase in (("local", 0, 0), ("distill", 320, 1000))
    ]
    alone = [line("standalone", rounds, i, "all", 0, 0) for i in ids if "standalone" in stages]
    return federated + alone


def write_lines(path: Path, lines: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def excess(model: str, stage: str, rounds: int, mine: bool, wobble: float) -> float:
    """Nats/byte above the floor, one number per model, stage, round and kind of domain."""
    if stage == "zero-shot":
        return 0.25 + wobble
    if model == "server":
        return {
            "public-only": 0.121,
            "centralized": 0.022,
            "federated": 0.058 + 0.15 * 0.5**rounds,
        }[stage] + wobble
    value = {
        "standalone": 0.03 if mine else 0.30,
        "public-only": 0.145,
        "centralized": 0.031,
        "federated": (0.031 if mine else 0.082) + (0.02 if mine else 0.17) * 0.55**rounds,
    }[stage]
    return value + wobble


def _metrics(
    ids: Sequence[str],
    own: Mapping[str, str],
    floors: Mapping[str, float],
    rounds: int,
    stages: Sequence[str],
    accuracy: bool,
) -> list[dict[str, Any]]:
    lines = []
    for stage in stages:
        for model in ["server", *ids]:
            if model == "server" and stage == "standalone":
                continue
            for r in range(1, rounds + 1) if stage == "federated" else [0]:
                for n, (domain, floor) in enumerate(floors.items()):
                    wobble = 0.004 * ((n * 7 + len(model) * 3 + ord(model[-1])) % 5)
                    above = excess(model, stage, r, own.get(model) == domain, wobble)
                    right = round(0.72 - 1.8 * above, 4) if accuracy else None
                    lines.append(
                        {
                            "stage": stage,
                            "round": r,
                            "model": model,
                            "domain": domain,
                            "loss": floor + above,
                            "accuracy": None if right is None else max(right, 0.22),
                            "samples": 240,
                            **({"noise": 0.01} if stage == "federated" else {}),
                        }
                    )
    return lines


def _gate_losses(ids: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    return [
        {"round": r, "model": model, "before": 2 - 0.2 * r, "after": 1.9 - 0.2 * r}
        for r in range(1, rounds + 1)
        for model in ("server", *ids)
    ]


def _message_log(ids: Sequence[str], rounds: int, failing: str | None) -> list[dict[str, Any]]:
    lines = []

    def add(r: int, phase: str, client: str, sent: int, received: int, seconds: float) -> None:
        failed = client == failing and phase == "train.local" and r > 1
        error = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB" if failed else None
        line = {"round": r, "phase": phase, "client": client, "seconds": seconds, "error": error}
        lines.append(line | {"sent_bytes": sent, "received_bytes": 0 if failed else received})

    for client in ids:
        add(0, "query.register", client, 900, 212_000, 0.4)
    for r in range(1, rounds + 1):
        for client in ids:
            add(r, "train.local", client, 1_200, 412_000 + 1_000 * int(client), 6.1)
        add(r, "server.distill", "server", 0, 0, 14.2)
        for client in ids:
            add(r, "train.distill", client, 455_000, 1_100, 4.4)
            add(r, "evaluate", client, 700, 2_600, 1.2)
    return lines


def _teacher_shares(
    ids: Sequence[str], own: Mapping[str, str], rounds: int, domains: Sequence[str]
) -> list[dict[str, Any]]:
    lines = []
    for r in range(1, rounds + 1):
        for domain in domains:
            experts = [i for i in ids if own[i] == domain]
            others = [i for i in ids if own[i] != domain]
            shares = {i: (0.5 + 0.05 * min(r, 6)) / len(experts) for i in experts}
            shares |= {i: 0.1 / len(others) for i in others}
            shares["none"] = 1 - sum(shares.values())
            for teacher, share in shares.items():
                place = {"round": r, "direction": "up", "model": "server", "domain": domain}
                lines.append(place | {"teacher": teacher, "share": share})
            for client in ids:
                share = (
                    min(0.2 + 0.06 * r, 0.9) if own[client] == domain else min(0.7 + 0.04 * r, 1)
                )
                for teacher, part in (("server", share), ("none", 1 - share)):
                    place = {"round": r, "direction": "down", "model": client, "domain": domain}
                    lines.append(place | {"teacher": teacher, "share": part})
    return lines
