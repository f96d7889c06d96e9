"""Run folders are new, complete and never half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.evaluation.scoring import Score
from fedfuse.tracking.run_writer import RunWriter, commit, free_folder, versions


def test_a_free_folder_is_numbered(tmp_path: Path) -> None:
    assert free_folder(tmp_path, "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert free_folder(tmp_path, "run") == tmp_path / "run-2"
    (tmp_path / "run-2").write_text("a file takes a name, too")
    assert free_folder(tmp_path, "run") == tmp_path / "run-3"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", "a/"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FedfuseError, match="expected a folder name without separators"):
        free_folder(tmp_path, name)


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedfuseError, match=r"output: expected a folder, got .*file'"):
        RunWriter(tmp_path / "file", "run", {})


def test_writers_never_share_a_folder(tmp_path: Path) -> None:
    folders = {RunWriter(tmp_path / "deep" / "runs", "run", {}).folder.name for _ in range(3)}
    assert folders == {"run", "run-2", "run-3"}


def test_the_config_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunWriter(tmp_path, "run", {"seed": 4, "rounds": 2})
    file = run.folder / "config.json"
    first = json.loads(file.read_text())
    assert (first["status"], first["seed"], first["config"]["rounds"]) == ("running", 4, 2)
    assert first["versions"] == versions()
    run.describe(domains=["a"])
    run.describe(status="finished")
    after = json.loads(file.read_text())
    assert after == first | {"domains": ["a"], "status": "finished"}

    def full(self: Path, text: str) -> int:
        with self.open("w") as half:
            half.write(text[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FedfuseError, match=r"config.json' cannot be written: no space"):
        run.describe(status="failed")
    assert json.loads(file.read_text()) == after


def read(run: RunWriter, name: str) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (run.folder / f"{name}.jsonl").read_text().splitlines()]


def test_lines_are_whole_and_in_order(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", {})
    run.scores("federated", 1, "0", {"a": Score(0.5, None, 3), "b": Score(0.25, 1.0, 4)})
    run.scores("federated", 2, "0", {"a": Score(0.125, 0.5, 3)})
    found = read(run, "metrics")
    assert [(x["round"], x["domain"], x["loss"], x["accuracy"]) for x in found] == [
        (1, "a", 0.5, None),
        (1, "b", 0.25, 1.0),
        (2, "a", 0.125, 0.5),
    ]
    run.message(1, "train.local", "0", sent_bytes=3, error="late")
    [line] = read(run, "messages")
    assert (line["sent_bytes"], line["received_bytes"], line["error"]) == (3, 0, "late")
    run.teacher_shares(1, "up", "server", {("a", "none"): 1.0})
    [line] = read(run, "teacher_shares")
    assert (line["domain"], line["teacher"], line["share"]) == ("a", "none", 1.0)


def test_the_commit_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFUSE_COMMIT", "abc")
    assert commit() == "abc"


def test_an_invented_domain_or_share_is_refused(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", {"seed": 0})
    run.describe(domains=["bank"])
    with pytest.raises(FedfuseError, match="domain: expected one of bank, got 'moon'"):
        run.scores("federated", 1, "0", {"moon": Score(0.1, None, 3)})
    with pytest.raises(FedfuseError, match="got 'moon'"):
        run.teacher_shares(1, "down", "0", {("moon", "server"): 1.0})
    with pytest.raises(FedfuseError, match=r"share: expected 0 to 1, got 1\.5"):
        run.teacher_shares(1, "down", "0", {("bank", "server"): 1.5})
    assert not (run.folder / "metrics.jsonl").exists()
    assert not (run.folder / "teacher_shares.jsonl").exists()


def test_a_run_that_is_reopened_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    first = RunWriter(tmp_path, "run", {"seed": 0})
    first.describe(domains=["a"], models={"server": "m"})
    first.scores("federated", 1, "server", {"a": Score(1.0, None, 3)})
    first.message(1, "evaluate", "0")
    sizes = first.sizes()
    assert sizes.keys() == {"metrics.jsonl"}
    first.scores("federated", 2, "server", {"a": Score(2.0, None, 3)})
    first.teacher_shares(2, "up", "server", {("a", "none"): 1.0})
    first.message(2, "evaluate", "0")
    with (first.folder / "messages.jsonl").open("a") as file:
        file.write('{"round": 3, "pha')  # The power failed.
    again = RunWriter.reopen(first.folder)
    assert (again.id, again.config, again.models) == (first.id, {"seed": 0}, {"server": "m"})
    again.cut(sizes)
    metrics = (again.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in metrics] == [1]
    assert (again.folder / "teacher_shares.jsonl").read_text() == ""
    message_log = (again.folder / "messages.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in message_log] == [1, 2]
    again.add(models={"0": "n"}, names={"0": "zero"})
    about = json.loads((again.folder / "config.json").read_text())
    assert about["models"] == {"server": "m", "0": "n"}
    assert RunWriter(tmp_path, "run", {}).id != first.id


def test_a_run_of_an_older_version_is_not_reopened(tmp_path: Path) -> None:
    folder = RunWriter(tmp_path, "run", {}).folder
    about = json.loads((folder / "config.json").read_text())
    del about["id"]
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(FedfuseError, match="'id': expected text, got no such key"):
        RunWriter.reopen(folder)
