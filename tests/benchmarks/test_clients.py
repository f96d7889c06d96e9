"""The benchmark of many clients: what it makes of simulations whose outcome is known."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients
from benchmarks.memory import Watch


def test_memory_and_time_against_the_fewest_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def known(number: int, keys: dict[str, Any]) -> dict[str, Any]:
        asked.append((number, keys["clients-per-round"]))
        size = 700 + number // 10
        return {
            "clients": number,
            "seconds": 60.0 + number,
            "registration_seconds": number / 10,
            "server_bytes": size * 10**6,
            "client_bytes": 4 * 10**8,
            "all_bytes": 2 * size * 10**6,
        }

    monkeypatch.setattr(clients, "measure", known)
    monkeypatch.setattr(clients, "ensure", lambda names: list(names))
    file, picture = tmp_path / "clients.json", tmp_path / "clients.svg"
    clients.main(file, clients="20,1000", picture=picture)
    found = json.loads(file.read_text())["results"]
    assert found["memory_1000_over_20"] == pytest.approx(800 / 702, abs=1e-3)
    assert found["registration_seconds_1000"] == 100
    assert asked == [(20, clients.PER_ROUND), (1000, clients.PER_ROUND)]
    assert "server and engine" in picture.read_text()


def test_a_simulation_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks of memory are those of its processes; registration ends with the last client."""

    def run(command: list[str], env: dict[str, str], **_: Any) -> None:
        options = dict(word.split("=") for word in command if "=" in word)
        folder = Path(options["output"]) / options["name"]
        folder.mkdir()
        lines = [("query.register", 1.0), ("query.register", 2.5), ("train.local", 9.0)]
        (folder / "messages.jsonl").write_text(
            "\n".join(json.dumps({"phase": phase, "seconds": s}) for phase, s in lines)
        )
        assert command[command.index("--clients") + 1] == "50"
        assert "FEDFUSE_CLIENTS_RUN" in env

    whole = Watch.__exit__

    def known(self: Watch, *given: object) -> None:
        whole(self, *given)
        self.largest.update(server=5, clients=3)
        self.peak["all"] = 8

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(Watch, "__exit__", known)
    found = clients.measure(50, clients.KEYS)
    assert found["registration_seconds"] == 2.5
    assert (found["server_bytes"], found["client_bytes"], found["all_bytes"]) == (5, 3, 8)
