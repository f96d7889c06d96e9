"""The command line: what it refuses before anything is built, and runs in their own processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedfuse.cli import main as cli
from fedfuse.cli.run_config import read_config
from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError
from fedfuse.factory import data as factory_data
from fedfuse.factory import models as factory_models
from fedfuse.simulation import simulate as module
from fedfuse.simulation.simulate import absolute_paths
from tests.federations import FAST, about
from tests.federations import tiny_builtin as tiny_builtin
from tests.report.folders import write_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Call ``fedfuse simulate``; returns its message, one that nothing was made before."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FEDFUSE_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(module, "build_models", lambda names: pytest.fail("models are built"))
    for cached in (factory_data.load_splits, factory_models.load_local_model):
        cached.cache_clear()

    def call(*arguments: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["fedfuse", "simulate", "--in-process", "--set", "output=out", *arguments]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert not (cache / "models").exists()
        assert not (tmp_path / "out").exists()
        return " ".join(err.split())

    return call


def sets(*options: str) -> list[str]:
    return [part for option in options for part in ("--set", option)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["server.model=./no/model"],
            "folder './no/model' does not exist",
        ),
        (
            ["server.model=builtin:gpt5"],
            "model: expected one of builtin:gpt2",
        ),
        (
            ["clients.model=0=builtin:gpt2"],
            "expected a model for partition 1 or *=MODEL",
        ),
        (["rounds=many"], "rounds: expected int, got 'many' of type str"),
        (["rounds=1.5"], "rounds: expected int, got 1.5 of type float"),
        (["rounds=0"], "rounds: expected at least 1, got 0"),
        (["baselines=1"], "baselines: expected bool, got 1 of type int"),
        (["local.step=5"], "local.step = '5': no such key; did you mean 'local.steps'?"),
        (
            ["knowledge.alignment=guess"],
            "knowledge.alignment: expected 'events', 'alm', 'events+alm', 'exact-boundary', 'dtw', "
            "got 'guess'",
        ),
        (
            ["strategy=fedsomething"],
            "strategy = 'fedsomething': expected fedfuse, fusion-x, fedmkt, fedavg-lora",
        ),
        (["data.public=0"], "the public set: expected at least one sample, got none"),
        (["min-clients=5"], "min-clients: expected at most the number of clients, 4, got 5"),
        (["name=a/b"], "name: expected a folder name without separators, got 'a/b'"),
        (["name=.."], "name: expected a folder name without separators, got '..'"),
        (["data.source=./none.jsonl"], "data source './none.jsonl' does not exist: expected"),
        (["data.private=1"], "partition"),
        (["rounds"], "--set: expected KEY=VALUE, got 'rounds'"),
        (["server.device=tpu"], "device: expected auto, cpu"),
        (["server.quantization=4bit"], "quantization"),
        (["seed=nan"], "seed: expected int, got nan of type float"),
        (["local.learning-rate=nan"], "local.learning-rate: expected above 0, got nan"),
        (["local.learning-rate=inf"], "local.learning-rate: expected above 0, got inf"),
        (["timeout=inf"], "timeout: expected above 0, got inf"),
    ],
)
def test_bad_keys_are_refused(refused: Any, options: list[str], message: str) -> None:
    extra = ["--clients", "9"] if options == ["data.private=1"] else []
    assert message in refused(*sets(*options), *extra)


def test_all_errors_are_told_at_once(refused: Any) -> None:
    message = refused(*sets("rounds=0", "seeed=1", "data.test=x"))
    assert "rounds: expected at least 1, got 0" in message
    assert "did you mean 'seed'?" in message
    assert "data.test: expected int, got 'x'" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rounds = ", "bad.toml: "),
        ("rounds = 'x'", "expected int, got 'x'"),
        (None, "No such file"),
    ],
)
def test_bad_files_are_refused(
    refused: Any, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "bad.toml").write_text(content)
    assert message in refused("--config", "bad.toml")


def records(path: Path, number: int, **changes: Any) -> Path:
    lines = [
        {"question": f"which is {i}", "options": ["red", "blue"], "label": i % 2} | changes
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (40, {"label": 7}, "data.jsonl:1: field 'label': expected 0 to 1"),
        (8, {}, "has 6 distinct train samples: expected more than the 6"),
        (11, {}, "partition"),
        (40, {"question": "the same"}, "4 partitions of 0 samples"),
    ],
)
def test_bad_data_is_refused(
    refused: Any, tmp_path: Path, number: int, changes: dict[str, Any], message: str
) -> None:
    records(tmp_path / "data.jsonl", number, **changes)
    sizes = ["data.public=4", "data.holdout=2", "data.blind=0", "data.test=2"]
    keys = [*sizes, "data.partition=iid", "fusion.evidence=open"]
    assert message in refused(*sets("data.source=./data.jsonl", *keys))


def test_overlapping_splits_are_refused(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = factory_data.World

    class Leaky(world):  # type: ignore[misc, valid-type]
        def splits(self, *arguments: Any) -> Any:
            splits = super().splits(*arguments)
            splits.test.append(splits.public[0])
            return splits

    monkeypatch.setattr(factory_data, "World", Leaky)
    message = refused(*sets("data.private=50"))
    assert "overlapping splits: expected no text in two, got 1 in public and test" in message


def test_a_tokenizer_without_a_fast_form_is_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "slow" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    message = refused(*sets("server.model=./slow"))
    assert "'./slow'" in message
    assert "fast" in message


def test_a_file_in_the_place_of_the_output_is_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "output: expected a folder" in refused(*sets("output=file"))


def test_help_and_report(tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    assert "simulate" in shown.output
    assert "report" in shown.output
    folder = write_folder(tmp_path / "made-up", rounds=2)
    shown = runner.invoke(cli.app, ["report", str(folder)])
    assert shown.exit_code == 0
    assert shown.output.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").stat().st_size > 1000
    with pytest.raises(FedfuseError, match="nowhere"):
        runner.invoke(cli.app, ["report", str(tmp_path / "nowhere")], catch_exceptions=False)


def test_options_win_over_the_file_and_keep_their_types(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("rounds = 2\n[local]\nsteps = 7\nlearning-rate = 1\n")
    given = read_config(file, ["rounds=5", "name=007", "data.template={question} a=b"])
    assert given == {
        "rounds": 5,
        "local.steps": 7,
        "local.learning-rate": 1,
        "name": "007",
        "data.template": "{question} a=b",
    }


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    records(tmp_path / "d.jsonl", 2)
    config = parse({"clients.model": "0=./a, *=builtin:opt", "data.source": "d.jsonl+hub/set"})
    found = absolute_paths(config)
    assert found.clients.model == f"0={tmp_path / 'a'},*=builtin:opt"
    assert found.data.source == f"{tmp_path / 'd.jsonl'}+hub/set"
    assert found.output == str(tmp_path / "runs")


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a hub id for the processes that work elsewhere; and what is built in stays so."""
    monkeypatch.chdir(tmp_path)
    for name in ("fed/mistral", "opt", "builtin", "goods-word"):
        (tmp_path / name).mkdir(parents=True)
    keys = {"server.model": "fed/mistral", "clients.model": "opt,fed/llama", "strategy": "feddtpt"}
    found = absolute_paths(parse(keys))
    assert found.server.model == str(tmp_path / "fed" / "mistral")
    assert found.clients.model == f"{tmp_path / 'opt'},fed/llama"
    assert found.data.source == "builtin"
    assert found.feddtpt.task == "goods-word"


def options(tiny: dict[str, Path], tmp_path: Path, **keys: Any) -> list[str]:
    """``--set`` options of a tiny federation on local folders, for a process of its own."""
    data = records(tmp_path / "colours.jsonl", 60)
    given = {
        **FAST,
        "server.model": tiny["server"],
        "clients.model": f"{tiny['gpt2']}, {tiny['llama']}",
        "data.source": data,
        "preset": "quickstart",  # the models are as small
        "data.test": 6,
        "data.partition": "iid",
        "baselines": "false",
        "labels-first": "false",
        "rounds": 1,
        "output": tmp_path / "runs",
        **keys,
    }
    return sets(*(f"{key}={value}" for key, value in given.items()))


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"FEDFUSE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fedfuse.cli", "simulate", "--clients", "2", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_killed_harms_no_later_one(
    tiny_builtin: dict[str, Path], tmp_path: Path
) -> None:
    first = tmp_path / "runs" / "killed"
    slow = {"name": "killed", "local.steps": 100000}
    with start(tmp_path, "--in-process", *options(tiny_builtin, tmp_path, **slow)) as run:
        deadline = time.monotonic() + 60
        metrics = first / "metrics.jsonl"
        while not (metrics.exists() and '"model": "1"' in metrics.read_text()):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # round 1 has begun
        run.send_signal(signal.SIGKILL)
        out, err = run.communicate()
    assert run.returncode == -signal.SIGKILL, err
    assert "round 1: clients train" in out
    assert about(first)["status"] == "running"
    run = start(tmp_path, "--in-process", *options(tiny_builtin, tmp_path, name="killed"))
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    second = tmp_path / "runs" / "killed-2"
    assert out.splitlines()[-1] == f"report: {second / 'report.html'}"
    assert about(second)["status"] == "finished"
    assert about(first)["status"] == "running"
    tables = list((tmp_path / "cache" / "tables").glob("*"))
    assert tables
    assert not [table for table in tables if table.name.startswith(".")]
