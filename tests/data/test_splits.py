"""Real data is cut into splits that share nothing."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from fedfuse.config.data import DataConfig
from fedfuse.data.sample import Sample, Splits
from fedfuse.data.splits import build_splits, check_splits, split_validation
from fedfuse.errors import FedfuseError
from tests.data.test_records import MATERIAL, write

CONFIG = DataConfig(alpha=1.0, public=4, test=5, holdout=3, blind=0, questions=2, private=6)


def build(source: str, *, num_partitions: int = 2, seed: int = 3, **changes: Any) -> Splits:
    return build_splits(replace(CONFIG, source=source, **changes), num_partitions, seed)


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{name} {n}", "options": ["x", "y"], "label": n % 2} for n in range(count)]


@pytest.fixture
def sources(tmp_path: Path) -> str:
    """Two data sets: one of questions with a test split, one of plain text with a dev split."""
    first, second = tmp_path / "films", tmp_path / "tales"
    first.mkdir()
    second.mkdir()
    write(first / "train.jsonl", rows("film", 30))
    write(first / "test.jsonl", rows("held film", 9))
    write(second / "train.jsonl", [{"text": f"tale {n}"} for n in range(30)])
    write(second / "dev.jsonl", [{"text": f"held tale {n}"} for n in range(9)])
    return f"{first}+{second}"


def by_domain(samples: list[Sample]) -> dict[str, int]:
    return {d: sum(s.domain == d for s in samples) for d in sorted({s.domain for s in samples})}


def test_sizes_are_per_domain(sources: str) -> None:
    splits = build(sources)
    assert [by_domain(part) for part in splits.private] == [{"films": 6}, {"tales": 6}]
    assert by_domain(splits.public) == {"films": 4, "tales": 4}
    assert by_domain(splits.holdout) == {"films": 3, "tales": 3}
    assert by_domain(splits.test) == {"films": 5, "tales": 5}
    assert by_domain(splits.questions) == {"films": 2}
    assert set(splits.questions) < set(splits.test)
    assert all(sample.text.startswith("held") for sample in splits.test)
    assert splits.floor is None
    assert splits.domains == ["films", "tales"]


def test_zero_takes_everything(sources: str) -> None:
    splits = build(sources, private=0, test=0, questions=0, holdout=0)
    assert [len(part) for part in splits.private] == [26, 26]
    assert (len(splits.test), splits.questions, splits.holdout) == (18, [], [])


def test_same_seed_same_splits(sources: str) -> None:
    assert build(sources) == build(sources)
    other = build(sources, seed=4)
    assert other.public != build(sources).public


def test_a_domain_does_not_depend_on_the_others(sources: str) -> None:
    alone = build(sources.split("+")[0], num_partitions=1)
    both = build(sources)
    assert alone.public == [s for s in both.public if s.domain == "films"]
    assert alone.private[0] == both.private[0]


def test_template_is_passed_on(sources: str) -> None:
    films = sources.split("+")[0]
    splits = build(films, template="T: {text} =", num_partitions=1)
    assert all(s.prompt.startswith("T: film") for s in splits.public)


def test_a_single_file_is_cut(tmp_path: Path) -> None:
    file = write(tmp_path / "notes.jsonl", [*rows("n", 40), *rows("n", 3)])
    splits = build(str(file), private=0)
    assert by_domain(splits.test) == {"notes": 5}
    assert sum(len(part) for part in splits.private) == 40 - 5 - 4 - 3
    with pytest.raises(FedfuseError, match=r"data\.test above 0"):
        build(str(file), test=0)


def test_duplicates_are_dropped_from_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    write(films / "train.jsonl", rows("film", 20) + rows("film", 2) + rows("held", 3))
    write(films / "test.jsonl", rows("held", 9))
    with caplog.at_level(logging.WARNING):
        splits = build(str(films), private=0)
    assert sum(len(part) for part in splits.private) == 20 - 4 - 3
    expected = "dropped 5 of 25 train samples: 3 with a text that is held out, 2 repeated"
    assert expected in caplog.text


def test_duplicates_between_sources(tmp_path: Path) -> None:
    for name, test in (("a", rows("t", 9)), ("b", rows("u", 9))):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", [*rows(name, 30), *rows("t", 9), *rows("u", 9)])
        write(tmp_path / name / "test.jsonl", test)
    splits = build(f"{tmp_path / 'a'}+{tmp_path / 'b'}", private=0)
    assert sum(len(part) for part in splits.private) == 2 * (30 - 4 - 3)


def test_blind_samples_are_set_apart(sources: str) -> None:
    plain, found = build(sources), build(sources, blind=3)

    assert [s.domain for s in found.blind] == ["films"] * 3 + ["tales"] * 3
    assert (found.public, found.holdout, found.test) == (plain.public, plain.holdout, plain.test)
    check_splits(found)
    with pytest.raises(FedfuseError, match=r"got 1 in blind and|got 1 in .* and blind"):
        check_splits(replace(found, public=[*found.public, found.blind[0]]))


def test_too_little_data(sources: str) -> None:
    with pytest.raises(FedfuseError, match=r"'films' has 30 distinct train samples: .* the 31 for"):
        build(sources, public=28)
    with pytest.raises(FedfuseError, match="13 partitions of 12 samples"):
        build(sources, num_partitions=13)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"public": 0}, "data.public: .*got 0"),
        (
            {"test": -1, "private": -2},
            "data.test: .*-1; data.private: .*-2",
        ),
    ],
)
def test_bad_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        build("./any", **sizes)


def test_bad_sources(sources: str) -> None:
    films = sources.split("+")[0]
    with pytest.raises(FedfuseError, match="empty part"):
        build(f"{films}+")
    with pytest.raises(FedfuseError, match="several parts named films"):
        build(f"{films}+{films}")


A, B, C, D = (Sample("", letter) for letter in "abcd")


def test_check_accepts_disjoint_splits() -> None:
    check_splits(Splits([[A, A]], [B], [C, C], [D], [C]))
    check_splits(Splits([[A]], [B], [C]))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (Splits([[A], [B]], [B], [C], [D]), "got 1 in private and public.*'b'"),
        (Splits([[A]], [B], [A], [D]), "private and test"),
        (Splits([[A]], [B], [C], [A]), "private and holdout"),
        (Splits([[A]], [C, B], [B, C], [D]), "got 2 in public and test.*'b'"),
        (Splits([[A]], [B], [C], [B]), "public and holdout"),
        (Splits([[A]], [B], [C], [C]), "test and holdout"),
        (Splits([[A]], [], [C]), "the public set: expected"),
        (Splits([[A]], [B], []), "the test set: expected"),
        (Splits([[A], []], [B], [C]), "partition 1 is empty"),
    ],
)
def test_check_refuses(splits: Splits, message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        check_splits(splits)


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="../shared/material is not here")
def test_real_data_sets_in_a_federation() -> None:
    names = ("sst2", "trec", "rte", "arc_easy", "rotten_tomatoes")
    source = "+".join(str(MATERIAL / name) for name in names)
    splits = build(source, public=100, holdout=50, private=500, num_partitions=5)
    assert splits.domains == sorted(names)
    assert [len(part) for part in splits.private] == [500] * 5
    assert len(splits.public) == 500


def test_validation_is_a_tenth_of_each_domain_at_most() -> None:
    samples = [Sample(f"{d} {i}", f" {i}", d) for i in range(50) for d in ("one", "two")]
    samples += [Sample(f"rare {i}", " r", "rare") for i in range(9)]
    train, validation = split_validation(samples, 4, seed=0)
    assert Counter(sample.domain for sample in validation) == {"one": 4, "two": 4}
    assert train == [sample for sample in samples if sample not in validation]
    assert split_validation(samples, 4, seed=0) == (train, validation)
    assert split_validation(samples, 4, seed=1) != (train, validation)
    assert Counter(s.domain for s in split_validation(samples, 99, seed=0)[1]) == {
        "one": 5,
        "two": 5,
    }
    assert split_validation(samples, 0, seed=0) == (samples, [])


def test_no_chat_is_in_two_splits(tmp_path: Path) -> None:
    """Or an answer that is tested would be in the turns of another that is learned."""
    path = tmp_path / "chats.jsonl"
    with path.open("w") as file:
        for i in range(60):
            turns = [
                {"role": role, "content": f"{role} {i} {j}"}
                for j in range(1 + i % 4)
                for role in ("user", "assistant")
            ]
            turns.insert(0, {"role": "assistant", "content": "Hello."})
            file.write(json.dumps({"messages": turns}) + "\n")
    sizes = {"public": 21, "holdout": 11, "blind": 7, "test": 25, "questions": 0, "private": 0}
    config = DataConfig(source=str(path), partition="iid", **sizes)

    for seed in range(5):
        splits = build_splits(config, 2, seed)
        private = [sample for part in splits.private for sample in part]
        train, validation = split_validation(private, 3, seed)
        parts = [splits.public, splits.holdout, splits.blind, splits.test, train, validation]
        assert [len(part) for part in parts[:4]] == [21, 11, 7, 25]
        chats = [{sample.turns[1] for sample in part} for part in parts]
        for one, other in combinations(chats, 2):
            assert not one & other
        assert len(train) > 50
