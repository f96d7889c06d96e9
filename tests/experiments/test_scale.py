"""What the scale experiment measures, on little: memory, who took part, the server alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import Watch, peak_beyond
from experiments.scale import server
from experiments.scale.run import check_complete, summarize
from fedfuse.tracking.run import read_run
from tests.federations import federate, lines, tiny_builtin
from tests.report.folders import write_lines
from tests.strategies.test_faults import SHORT

__all__ = ["tiny_builtin"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_builtin: dict[str, Path]) -> Path:
    output = tmp_path_factory.mktemp("runs")
    return federate(output, strategy="experiments.scale.server:Recorded", **SHORT)


def test_the_server_hears_the_same_again(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streamed or held, the shares are those of the run."""
    [seconds] = json.loads((recorded / "rounds.json").read_text())
    assert seconds > 0
    up = [x for x in lines(recorded, "teacher_shares") if x["direction"] == "up"]
    for name, held in {"streamed": False, "held": True}.items():
        server.main(recorded, tmp_path / name, held)
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["clients"] == 3
        assert found["extra_mb"] > 0
        assert lines(tmp_path / name / "quickstart", "teacher_shares") == up


def test_a_run_that_lacks_a_client_is_no_result(recorded: Path, tmp_path: Path) -> None:
    check_complete(read_run(recorded), 3)
    with pytest.raises(SystemExit, match=r"train\.local of round 1 lacks \['3'\]"):
        check_complete(read_run(recorded), 4)
    message_log = lines(recorded, "messages")
    for line in message_log:
        if (line["phase"], line["client"]) == ("evaluate", "1"):
            line["error"] = "late"
    for name in ("config.json", "metrics.jsonl", "teacher_shares.jsonl"):
        (tmp_path / name).write_text((recorded / name).read_text())
    write_lines(tmp_path / "messages.jsonl", message_log)
    with pytest.raises(SystemExit, match=r"evaluate of round 1 lacks \['1'\]"):
        check_complete(read_run(tmp_path), 3)


def test_memory_beyond_what_was_there() -> None:
    before = np.ones(10**7)
    found = peak_beyond(lambda: np.ones(5 * 10**6).sum(), trim=True)  # 40 MB that are given back
    assert before.sum() == 10**7
    assert 35 < found / 1e6 < 60


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that starts another, which holds 50 MB."""
    code = "import time; x = bytearray(b'1') * 50_000_000; print('up', flush=True); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", start],
        env={**os.environ, "TEST_SCALE": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    yield process
    os.killpg(process.pid, 9)
    process.communicate()


def test_children_of_children_are_watched(program: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with Watch("TEST_SCALE", tmp_path, seconds=0.01) as watch:
        while not watch.peak:
            assert program.poll() is None
    assert 50e6 < watch.largest["engine"] <= watch.peak["all"] < 120e6
    assert "server" not in watch.largest


def test_the_cost_of_a_client_more() -> None:
    few = dict.fromkeys(
        ("server_extra_mb_streamed", "server_extra_mb_held", "server_mb", "simulation_mb"), 10.0
    )
    many = {key: 10.0 + 96 * n for n, key in enumerate(few)}
    found = summarize([{"clients": 4, **few}, {"clients": 100, **many}])
    assert found["server_extra_mb_streamed_per_client"] == 0
    assert found["simulation_mb_per_client"] == 3
    assert found["server_mb_100"] == 202
    assert "clients_100" not in found
