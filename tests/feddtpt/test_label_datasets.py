"""Label tasks from data sets on disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fedfuse.config.feddtpt import ExampleCounts
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.label_datasets import own_examples, read_task

SIZE = ExampleCounts(private=4, public=6, validation=8, test=10)


def write(folder: Path, name: str, count: int, options: tuple[str, ...] = ("no", "yes")) -> Path:
    """Records of which two thirds have the second label."""
    folder.mkdir(exist_ok=True)
    records = [
        {"text": f"{name} number {n}", "options": list(options), "label": int(n % 3 > 0)}
        for n in range(count)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def source(tmp_path: Path) -> str:
    write(tmp_path / "mood", "train", 90)
    write(tmp_path / "mood", "test", 30)
    return str(tmp_path / "mood")


def test_splits_are_disjoint_and_balanced(source: str) -> None:
    task, splits = read_task(source, "{text}", SIZE, 3, "iid", 1.0, 5)
    assert (task.name, task.labels) == ("mood", ("no", "yes"))
    private = [example for part in splits.private for example in part]
    everything = [*private, *splits.public, *splits.validation, *splits.test]
    assert len({example.text for example in everything}) == len(everything) == 12 + 6 + 8 + 10
    assert [len(part) for part in splits.private] == [4, 4, 4]
    for part in (splits.public, splits.validation):
        assert len(set(Counter(example.label for example in part).values())) == 1
    assert all(example.text.startswith("test") for example in splits.test)
    again = read_task(source, "{text}", SIZE, 3, "iid", 1.0, 5)[1]
    assert again == splits
    more = read_task(source, "{text}", SIZE, 6, "dirichlet-equal", 0.1, 5)[1]
    assert (more.public, more.validation, more.test) == (
        splits.public,
        splits.validation,
        splits.test,
    )


def test_too_little(source: str) -> None:
    with pytest.raises(FedfuseError, match=r"more training examples than the 50 public .* got 90"):
        read_task(source, "{text}", ExampleCounts(4, 50, 50, 10), 3, "iid", 1.0, 5)


def test_own_data(source: str, tmp_path: Path) -> None:
    task, splits = read_task(source, "{text}", SIZE, 1, "iid", 1.0, 5)
    own = own_examples(task, source, "{text}", splits.public)
    assert len(own) == 90 - 6
    assert not set(own) & set(splits.public)
    other = write(tmp_path, "other", 5, ("no", "maybe"))
    with pytest.raises(FedfuseError, match=r"expected the labels of task 'mood', .* got maybe"):
        own_examples(task, str(other), "{text}", [])
    with pytest.raises(FedfuseError, match="at least one text that is not in the public"):
        own_examples(task, source, "{text}", own_examples(task, source, "{text}", []))
