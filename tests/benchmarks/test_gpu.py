"""The GPU's benchmark rehearsed on a CPU: same code, tiny sizes, every part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.clock import Cost
from benchmarks.gpu.losses import QUICK, Steps, measure
from fedfuse.distillation.event_targets import EventClasses

ROOT = Path(__file__).resolve().parents[2]


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = ["sh", str(ROOT / "benchmarks/gpu/run.sh"), "--quick", "--device", "cpu", "--no-ray"]
    command += ["--repeats", "2", "--json", str(file)]
    environment = os.environ | {"PYTHON": sys.executable, "WHEELS": str(tmp_path / "none")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    results = found["results"]
    assert not [key for key in results if key.endswith("_failed")]
    assert results["device"] == "cpu"
    for shape in QUICK:
        assert results[f"{shape}_best_of"] == "plain"
        assert results[f"{shape}_8_teachers_time"] > 0
    assert results["training_kept_tokens_per_second"] > 0
    assert results["extraction_kept_over_not_time"] > 0
    assert results["back_off"] == "no card whose memory can be taken"
    assert found["raw"]["federation"]["in_process"]["planned_bytes"] > 0
    assert set(found["raw"]) == {"losses", "passes", "back_off", "federation"}


def test_a_part_that_fails_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import run

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(run.passes, "measure", fail)
    monkeypatch.setattr(run.federation, "measure", lambda *_, **__: iter([({"seen": 1}, {})]))
    file = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="1"):
        run.main(file, "cpu", 1, False, True)
    results = json.loads(file.read_text())["results"]
    assert results["passes_failed"] == "RuntimeError: no kernel image"
    assert results["seen"] == 1


@pytest.mark.parametrize("teachers", [1, 4])
def test_the_loss_that_is_measured_is_right(teachers: int) -> None:
    """By dense sums over the events of every teacher."""
    steps = Steps(QUICK["128k"], torch.device("cpu"), seed=1)
    targets = steps.teachers(teachers)
    assert isinstance(targets, EventClasses)
    found = float(steps.fused(targets))
    logits = (steps.hidden @ steps.weight.T).detach().double().log_softmax(1)
    label = torch.nn.functional.nll_loss(logits, steps.label)
    total = 0.0
    for row, order, start, stop, probs, weight in zip(
        *(targets.row, targets.order, targets.start, targets.stop, targets.probs, targets.weight),
        strict=True,
    ):
        ids = targets.orders[order].long() if order >= 0 else torch.arange(logits.shape[1])
        own = logits[row].exp()
        classes = torch.stack([own[ids[a:b]].sum() for a, b in zip(start, stop, strict=True)])
        rest = (1 - classes.sum()).clamp_min(1e-12)
        total -= float(weight * (probs * torch.cat([classes, rest[None]]).log()).sum())
    right = 0.3 * float(label) + 0.7 * total / len(logits)
    np.testing.assert_allclose(found, right, rtol=1e-4)


def test_rivals_are_the_fastest_and_the_most_frugal() -> None:
    from benchmarks.gpu.losses import over

    rivals = [Cost([2.0, 4.0, 3.0], 100), Cost([5.0], 60)]
    assert over("x", Cost([6.0], 120), rivals) == {"x_time": 2.0, "x_memory": 2.0}
    assert over("x", Cost([6.0], None), rivals) == {"x_time": 2.0}


def test_losses_are_measured_in_turns() -> None:
    results, raw = measure(torch.device("cpu"), repeats=2, quick=True)
    assert len(raw["128k"]["4 teachers"]["seconds"]) == 2
    assert results["256k_1_teachers_time"] > 0
