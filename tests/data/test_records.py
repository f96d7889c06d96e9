"""Records from files, folders and the hub's formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedfuse.data.records import available_splits, load_records, local_path, source_name
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError

MATERIAL = Path(__file__).parents[3] / "shared" / "material" / "datasets"


def write(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return path


def test_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    assert load_records(str(path), "train") == [
        (f"{path}:1", {"text": "a"}),
        (f"{path}:2", {"text": "b"}),
    ]
    assert available_splits(str(path)) == []


def test_only_newlines_end_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a\u2028b\u0085c"}\r\n\n  \n{"text": "d"}'.encode())
    assert load_records(str(path), "") == [
        (f"{path}:1", {"text": "a\u2028b\u0085c"}),
        (f"{path}:4", {"text": "d"}),
    ]


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert load_records(str(path), "")[0][1] == {"text": "a"}


def test_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": "a"}])
    write(tmp_path / "dev.jsonl", [{"text": "b"}])
    assert available_splits(str(tmp_path)) == ["dev", "train"]
    assert load_records(str(tmp_path), "dev")[0][1] == {"text": "b"}
    with pytest.raises(FedfuseError, match="no split 'test'; it has: dev, train"):
        load_records(str(tmp_path), "test")


@pytest.mark.parametrize("split", ["../secret", "*"])
def test_a_split_is_a_name_and_no_path(tmp_path: Path, split: str) -> None:
    write(tmp_path / "secret.jsonl", [{"text": "a"}])
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", [{"text": "a"}])
    with pytest.raises(FedfuseError, match="no split"):
        load_records(str(folder), split)


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b'{"text": "\xff"}'])
def test_bad_lines_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line)
    with pytest.raises(FedfuseError) as caught:
        load_records(str(path), "train")
    assert f"{path}:2" in str(caught.value)


@pytest.mark.parametrize("source", ["./no", "/no/such", "~/no-such-folder", "no.jsonl", "a/b/c"])
def test_paths_that_do_not_exist_are_not_looked_up(source: str) -> None:
    with pytest.raises(FedfuseError, match="does not exist"):
        load_records(source, "train")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", [{"text": "a"}])
    assert local_path("~/a.jsonl") == tmp_path / "a.jsonl"
    assert local_path("owner/name") is None


def test_names() -> None:
    assert source_name("a/b/sst2/") == "sst2"
    assert source_name("./notes.jsonl") == "notes"
    assert source_name("nyu-mll/glue:rte") == "rte"


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's format, with a column of class labels, and a cache of our own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    folder = tmp_path / "films"
    (folder / "data").mkdir(parents=True)
    for split, labels in {"train": [0, 1, 1], "validation": [0]}.items():
        rows = {"text": [f"{split} {n}" for n in range(len(labels))], "label": labels}
        part = datasets.Dataset.from_dict(rows, features=features)
        part.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def test_hub_format(hub_folder: Path) -> None:
    assert available_splits(str(hub_folder)) == ["train", "validation"]
    records = load_records(str(hub_folder), "train")
    assert records[2] == (
        f"{hub_folder}[train]:2",
        {"options": ["bad", "good"], "text": "train 2", "label": 1},
    )
    assert to_samples(records, domain="films")[2].answer == " good"
    with pytest.raises(FedfuseError, match="no split 'test'; it has: train, validation"):
        load_records(str(hub_folder), "test")


def test_hub_errors_name_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(name: str, config: str | None) -> list[str]:
        raise ConnectionError(f"cannot reach {name}, {config}")

    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    with pytest.raises(
        FedfuseError, match=r"'a/b:c' cannot .*ConnectionError.*cannot reach a/b, c"
    ):
        load_records("a/b:c", "train")
    monkeypatch.undo()
    with pytest.raises(FedfuseError, match="Hugging Face data set"):
        available_splits(str(tmp_path))  # an empty folder


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="../shared/material is not here")
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("sst2", "test", 1821),
        ("trec", "train", 5452),
        ("rte", "dev", 277),
        ("gsm8k", "test", 1319),
        ("arc_easy", "train", 2251),
        ("arc_challenge", "test", 1172),
        ("commonsenseqa", "dev", 1221),
        ("boolq_questions", "test", 3270),
        ("rotten_tomatoes", "dev", 1066),
    ],
)
def test_real_data_sets(name: str, split: str, count: int) -> None:
    samples = to_samples(load_records(str(MATERIAL / name), split), domain=name)
    assert len(samples) == count
    assert all(s.prompt.endswith(":") and s.answer.startswith(" ") for s in samples)
    assert {s.domain for s in samples} == {name}
