"""``fedfuse eval``: the scores of a run again, from what it left in its folder."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedfuse.cli import main as cli
from fedfuse.data.splits import scored_data
from fedfuse.evaluation.losses import sample_nll
from fedfuse.evaluation.scoring import Evaluator
from fedfuse.tracking.run import read_run
from fedfuse.tracking.saved_model import load_saved_model
from tests.federations import federate, lines, tiny_builtin

__all__ = ["tiny_builtin"]

RECORDS = [
    {"question": "What has gout?", "options": ["the nurse", "a lamp of tin"], "label": 0},
    {"question": "What is zinc?", "options": ["tin", "a metal", "gout"], "label": 1},
    {"question": "Who sold copper?", "target": "the desk at dover"},
]


@pytest.fixture(scope="module")
def run(tiny_builtin: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federate(tmp_path_factory.mktemp("runs"), clients=2, baselines=False, data__test=2)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    left_out = shutil.ignore_patterns("eval")
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=left_out))


def call(monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedfuse", "eval", *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def result(run: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((run / "eval" / f"{name}.json").read_text()))


@pytest.mark.parametrize("model", ["server", "0", "1"])
def test_it_gives_the_last_scores_of_the_run(
    run: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, run, f"--model={model}") == 0
    found = result(run, model)
    last = [m for m in lines(run, "metrics") if m["model"] == model and m["round"] == 2]
    assert {m["domain"] for m in last} == set(found["domains"])
    for metric in last:
        domain = found["domains"][metric["domain"]]
        assert domain["loss"]["value"] == pytest.approx(metric["loss"], rel=1e-5)
        assert domain["accuracy"]["value"] == metric["accuracy"]
        assert domain["normalized_accuracy"]["value"] == metric["normalized_accuracy"]
        assert domain["samples"] == metric["samples"]
        assert domain["questions"] == 3
    # They are those of an adapter that has learned something.
    first = [m for m in lines(run, "metrics") if m["model"] == model and m["stage"] == "zero-shot"]
    assert first[0]["loss"] != pytest.approx(last[0]["loss"], rel=1e-3)
    overall = read_run(run).overall(model, "federated")
    assert overall is not None
    assert found["overall"]["loss"]["value"] == pytest.approx(overall.loss, rel=1e-5)
    assert found["overall"]["accuracy"]["value"] == pytest.approx(overall.accuracy)
    shown = capsys.readouterr().out
    assert f"{overall.loss:.4f}" in shown
    assert f"{found['overall']['brier']['value']:.4f}" in shown
    assert f"written: {(run / 'eval' / model).resolve()}.json" in shown


def test_a_client_is_found_by_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = read_run(run).name("1")
    assert call(monkeypatch, run, f"--model={name}") == 0
    assert result(run, "1")["name"] == name


def test_other_data_is_scored_as_a_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "metals.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert call(monkeypatch, run, f"--data={file}", "--premise=Answer:") == 0
    found = result(run, "server-metals")
    samples = scored_data(str(file), "")
    lm = load_saved_model(read_run(run), "server")
    evaluator = Evaluator(lm.tokenizer, samples, samples[:2], 128)
    expected = evaluator.evaluate(partial(sample_nll, lm))[0]["metals"]
    assert found["domains"]["metals"]["loss"]["value"] == pytest.approx(expected.loss, rel=1e-6)
    assert found["domains"]["metals"]["accuracy"]["value"] == expected.accuracy
    assert (found["overall"]["samples"], found["overall"]["questions"]) == (3, 2)
    assert found["premise"] == "Answer:"
    assert "the run itself" not in capsys.readouterr().out


def test_a_model_that_is_not_there_is_named_with_those_that_are(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, run, "--model=7") == 1
    assert "expected one of server (server), 0" in capsys.readouterr().err
    assert call(monkeypatch, run / "server") == 1
    assert "expected a run folder" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = copy / "server" / "adapter" / "base.json"
    about = json.loads(base.read_text())
    base.write_text(json.dumps(about | {"fingerprint": "0123456789abcdef"}))
    assert call(monkeypatch, copy) == 1
    error = capsys.readouterr().err
    assert f"expected fingerprint 0123456789abcdef, got {about['fingerprint']}" in error


@pytest.mark.parametrize("damage", ["missing", "broken", "other"])
def test_an_adapter_that_is_none_is_refused(
    damage: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "server" / "adapter" / "adapter_model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "broken":
        file.write_bytes(file.read_bytes()[:100])
    else:
        save_file({name: torch.zeros(1) for name in load_file(file)}, file)
    assert call(monkeypatch, copy) == 1
    expected = {"missing": "got none", "broken": "expected safetensors", "other": "expected shape"}
    assert expected[damage] in capsys.readouterr().err
    assert not (copy / "eval").exists()


def test_data_that_has_changed_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((copy / "config.json").read_text())
    about["content"]["questions"] = "0" * 64
    (copy / "config.json").write_text(json.dumps(about))
    assert call(monkeypatch, copy) == 1
    assert "got other questions" in capsys.readouterr().err
