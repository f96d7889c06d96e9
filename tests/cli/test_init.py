"""``fedfuse init``: a run config that fits a user's models and data, and is true."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from fedfuse.builtin.models import MAX_LENGTH
from fedfuse.cli import main as cli
from fedfuse.config.preset import flat_keys
from fedfuse.config.run_config import parse
from fedfuse.data.splits import build_splits
from fedfuse.errors import FedfuseError
from fedfuse.simulation import data_fit
from fedfuse.simulation.first_look import FEWEST, lengths, run_seconds, sizes
from tests.federations import tiny_builtin as tiny_builtin

WORDS = "river stone cloud winter garden lamp paper window".split()


def write(path: Path, count: int, long: int = 0, times: int = 3) -> Path:
    """Records of which the last ``long`` are some times as long."""
    records = []
    for i in range(count):
        text = " ".join(WORDS[(i * 7 + j) % 8] for j in range(4)) + f" {i}"
        text = " ".join([text] * (times if i >= count - long else 1))
        record = {"question": text, "options": ["yes", "no"], "label": i % 2}
        records.append(json.dumps(record))
    path.write_text("\n".join(records))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedfuse", "init", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_half_of_the_smallest_domain_stays_private(tmp_path: Path) -> None:
    write(tmp_path / "small.jsonl", 60)
    write(tmp_path / "large.jsonl", 2000)
    source = f"{tmp_path}/small.jsonl+{tmp_path}/large.jsonl"
    base = parse({"preset": "pretrained"}).data
    found = sizes(source, 0, base)
    assert set(found) == {"public", "holdout", "blind", "test"}
    assert 25 <= sum(found.values()) <= 30 + 4  # four at least of each
    assert min(found.values()) == 4
    config = parse({"data.source": source, **{f"data.{k}": v for k, v in found.items()}})
    splits = build_splits(config.data, 2, 0)
    assert min(map(len, splits.private)) >= 26
    assert len(splits.blind) == 2 * found["blind"]
    # What is enough is not made smaller, and a test split of its own takes nothing from the rest.
    assert sizes(f"{tmp_path}/large.jsonl", 0, base)["test"] == base.test
    folder = tmp_path / "apart"
    folder.mkdir()
    write(folder / "train.jsonl", 600)
    (folder / "test.jsonl").write_text('{"question": "a", "options": ["b", "c"], "label": 0}')
    assert sizes(str(folder), 0, base) == {
        "public": base.public, "holdout": base.holdout, "blind": base.blind, "test": 1
    }  # fmt: skip


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "few.jsonl", FEWEST - 1)
    expected = f"expected at least {FEWEST} distinct records to train on, got {FEWEST - 1}"
    with pytest.raises(FedfuseError, match=expected):
        sizes(str(file), 0, parse({}).data)


def test_writes_a_config_that_fits(
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.jsonl", 300, long=30)
    options = ("--data=mine.jsonl", f"--server={tiny_builtin['server']}")
    clients = f"--clients={tiny_builtin['gpt2']},builtin:llama"
    assert call(monkeypatch, *options, clients, "--output=my.toml") == 0
    assert "fedfuse simulate --config my.toml --clients 2" in capsys.readouterr().err
    text = (tmp_path / "my.toml").read_text()
    config = parse(flat_keys(tomllib.loads(text)))
    assert config.preset == "pretrained"
    assert config.data.source == str(tmp_path / "mine.jsonl")
    # A tenth is longer: 99 in 100 texts fit as they are, and hence all.
    assert all(not of.fit.prompts_cut for of in data_fit.fits(config, 2))
    found = lengths(config, 2)
    assert config.data.max_length - 32 < max(of.most for of in found.values())
    assert max(of.most for of in found.values()) <= config.data.max_length
    assert found[config.server.model].shared == 1.0
    assert 0 < found["builtin:llama"].shared < 1
    assert f"99 %: {found['builtin:llama'].most}" in text
    assert "A run takes about" in text
    # What is there is not overwritten.
    assert call(monkeypatch, *options, clients, "--output=my.toml") == 1
    assert "--output: expected a file that is not there yet" in capsys.readouterr().err
    assert (tmp_path / "my.toml").read_text() == text


def test_texts_longer_than_a_model_takes_are_cut(
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, output = write(tmp_path / "long.jsonl", 300, long=30, times=20), tmp_path / "my.toml"
    clients = f"--clients={tiny_builtin['gpt2']}"
    server = f"--server={tiny_builtin['server']}"
    assert call(monkeypatch, f"--data={file}", server, clients, f"--output={output}") == 0
    text = output.read_text()
    config = parse(flat_keys(tomllib.loads(text)))
    assert config.data.max_length == MAX_LENGTH
    assert f"takes {MAX_LENGTH} tokens at most: longer prompts lose their beginning" in text
    assert sum(of.fit.prompts_cut for of in data_fit.fits(config, 2)) > 0
    capsys.readouterr()


def test_what_a_model_cannot_take_is_refused_and_nothing_written(
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(tmp_path / "none.jsonl", 10)
    output = tmp_path / "my.toml"
    server = f"--server={tiny_builtin['server']}"
    options = (f"--data={file}", server, "--clients=builtin:gpt2", f"--output={output}")
    assert call(monkeypatch, *options) == 1
    assert "distinct records to train on, got 10" in capsys.readouterr().err
    assert call(monkeypatch, *options, "--clients=nowhere/at/all") == 1
    assert "nowhere/at/all" in capsys.readouterr().err
    assert not output.exists()


def test_the_guess_of_the_time_by_hand() -> None:
    given = {
        "rounds": 2, "baselines": False, "data.domains": 1, "data.test": 1, "data.questions": 0,
        "data.public": 1, "local.steps": 10, "local.batch-size": 1_000_000,
        "client-distill.steps": 5, "server-distill.steps": 7,
    }  # fmt: skip
    steps = {"builtin:server": 3.0, "builtin:gpt2": 1.0, "builtin:llama": 2.0}
    # Two rounds of 10 steps and 5 with replay, of two clients on two cores; of the server three
    # times 7, labels first. Scoring is next to nothing with such batches.
    expected = 2 * (10 + 2 * 5) * (1 + 2) / 2 + 3 * 7 * 3
    assert run_seconds(parse(given), 2, 2, steps) == pytest.approx(expected, rel=0.01)
    more = run_seconds(parse(given | {"baselines": True}), 2, 2, steps) - expected
    assert more == pytest.approx(2 * 2 * 20 * 3 / 2 + 2 * 7 * 3, rel=0.01)
