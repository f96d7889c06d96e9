"""The studies of transfer on real texts measure what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.transfer import digits, realtext, texts
from experiments.transfer.trial import aligned
from experiments.transfer.tuned import Tuned, best_rates
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.events import EventDistribution
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

CALCULATION = "4 + 48 = <<4+48=52>>52 cups\n"


def tokenizer(number_digits: int) -> TextTokenizer:
    made = digits.number_tokenizer(number_digits, [CALCULATION] * 50)
    return TextTokenizer.from_pretrained(made)


def certain(data: TokenizedDataset) -> Knowledge:
    """Of a teacher that expects what the text says."""
    rows = len(data.rows.token)
    return Knowledge(
        offsets=data.rows.offsets,
        indices=data.rows.token[:, None],
        logprobs=np.zeros((rows, 1), dtype=np.float32),
        tail_logprob=np.full(rows, -np.inf, dtype=np.float32),
        label_logprob=np.zeros(rows, dtype=np.float32),
        label_bytes=data.label_bytes,
        tokenizer=data.tokenizer.fingerprint,
        public=data.fingerprint,
    )


def test_a_tokenizer_has_a_token_for_each_number_of_so_many_digits() -> None:
    for number_digits, expected in ((1, 10), (3, 1110)):
        made = tokenizer(number_digits)
        numbers = [piece for piece in made.token_bytes if piece.isdigit()]
        assert len(numbers) == expected
        assert max(map(len, numbers)) == number_digits
        assert [made.token_bytes[i] for i in made.encode_ids(["7 1234"])[0]] == (
            [b"7", b" ", b"1", b"2", b"3", b"4"]
            if number_digits == 1
            else [b"7", b" ", b"123", b"4"]
        )


def test_calculations_are_found_and_written_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "gsm8k"
    folder.mkdir(parents=True)
    record = {"question": "?", "target": f"She has {CALCULATION}It is 1+1 = $<<1+1=2>>2.\n#### 2"}
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
    assert sorted(digits.calculations(tmp_path)) == ["1+1 = $<<1+1=2>>2.\n", CALCULATION]
    assert digits.otherwise(CALCULATION) == "4 + 48 = 52 cups <<4+48=52>>\n"


def test_a_certain_teacher_is_right_and_uses_what_the_student_uses() -> None:
    samples = [texts.sample_of(CALCULATION)]
    single, multi = (TokenizedDataset(tokenizer(n), samples, 128) for n in (1, 3))
    for teacher, student in ((single, multi), (multi, single)):
        found = aligned(
            KnowledgeConfig(), certain(teacher), teacher.tokenizer, student, texts.MAX_LENGTH
        )
        measures = digits.target_measures(student, found)
        assert measures == {
            "taught_numbers": 1,
            "taught_rest": 1,
            "right": pytest.approx(1),
            "never_used": 0,
        }
    # Unaligned, the teacher's 4 of 48 is the student's 4.
    unaligned = KnowledgeConfig(alignment="exact-boundary")
    found = aligned(unaligned, certain(single), single.tokenizer, multi, texts.MAX_LENGTH)
    measures = digits.target_measures(multi, found)
    # The numbers behind "4 +" are 48, 4, 48, 52, 52.
    assert measures["taught_numbers"] == 1
    assert measures["right"] == pytest.approx(1 / 5)
    assert measures["never_used"] == pytest.approx(4 / 5)


def test_what_only_the_rest_is_taught_is_told_apart() -> None:
    data = TokenizedDataset(tokenizer(1), [Sample("", "4 cups\n")], 128)
    found = SparseDistribution.empty(len(data.rows.token), 1, tail_logprob=0.0)
    assert digits.in_numbers(data).tolist() == [True] + [False] * (len(data.rows.token) - 1)
    found.weight[1:] = 1
    measures = digits.target_measures(data, found)
    assert measures == {"taught_numbers": 0, "taught_rest": 1}


def test_a_chunk_teaches_all_of_its_rows() -> None:
    found = EventDistribution.empty(np.zeros((1, 4), dtype=np.int32), 5, 0)
    found.weight[1], found.chunk_rows[1] = 1, 3
    assert texts.taught_rows(found).tolist() == [False, True, True, True, False]


def test_the_first_words_are_given() -> None:
    assert texts.sample_of("What is a cat ?\n") == Sample("What is", " a cat ?\n")
    assert texts.answer_of("What is a dog ?\nWho", "What is") == " a dog ?\n"
    assert texts.answer_of("What is a do", "What is") == " a do"


def test_texts_of_all_purposes_differ() -> None:
    every = [f"{number} a b\n" for number in range(40)]
    one, again, other = (texts.split_texts(every, 20, 10, 10, seed) for seed in (0, 0, 1))
    assert one == again
    assert one.private != other.private
    found = [*one.private[0], *one.public, *one.test]
    assert {sample.text for sample in found} == set(every)
    assert [len(part) for part in (one.private[0], one.public, one.test)] == [20, 10, 10]


def test_share_closed_by_hand() -> None:
    rows = [{"seed": 0, "before": 3.0, "after": 2.0}, {"seed": 1, "before": 3.0, "after": 3.5}]
    reference = [{"seed": 1, "after": 2.0}, {"seed": 0, "after": 1.0}]
    assert texts.closed(rows, reference) == [0.5, -0.5]


def test_every_method_has_the_rate_that_serves_it_best_on_other_seeds(tmp_path: Path) -> None:
    ran = []

    def trial(pair: str, method: str, rate: float, seed: int) -> list[dict[str, Any]]:
        ran.append((pair, method, rate, seed))
        after = abs(rate - {"a": 0.1, "b": 0.2}[method])
        return [{"pair": pair, "method": method, "rate": rate, "seed": seed, "after": after}]

    study = Tuned(
        trial=trial,
        pairs=("x",),
        methods=("a", "b"),
        rates=(0.1, 0.2),
        tuning_seeds=(100,),
        seeds=(0, 1),
        folder="made",
        summarize=lambda rows: {"rows": len(rows)},
    )
    found = study.run(tmp_path)
    assert found["rates"] == {"x": {"a": 0.1, "b": 0.2}}
    assert found["summary"] == {"rows": 4}
    assert {(method, rate) for _, method, rate, seed in ran if seed < 100} == {
        ("a", 0.1),
        ("b", 0.2),
    }
    before = len(ran)
    assert study.run(tmp_path) == found
    assert len(ran) == before


def test_no_seed_is_both_tuned_on_and_reported(tmp_path: Path) -> None:
    def trial(*_: Any) -> list[dict[str, Any]]:
        raise AssertionError("expected no trial")

    study = Tuned(
        trial=trial,
        pairs=("x",),
        methods=("a",),
        rates=(0.1,),
        tuning_seeds=(1, 100),
        seeds=(0, 1),
        folder="made",
        summarize=dict,
    )
    with pytest.raises(FedfuseError, match=r"tuning seeds: expected none that is reported.*\[1\]"):
        study.run(tmp_path)


def test_rates_are_compared_by_their_means() -> None:
    rows = [
        {"pair": "x", "method": "a", "rate": rate, "after": after}
        for rate, after in ((0.1, 1.0), (0.1, 3.0), (0.2, 1.9), (0.2, 1.9))
    ]
    assert best_rates(rows) == {"x": {"a": 0.2}}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> texts.Task:
    """Two tiny models of numbers, and few steps."""
    folder = tmp_path_factory.mktemp("models")
    every = [f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b} cups\n" for a in range(40) for b in (3, 15)]
    few = TrainingConfig(steps=3, batch_size=4, learning_rate=3e-3)
    bases = [
        texts.pretrained(
            folder / name, lambda n=n: digits.number_tokenizer(n, every), every[:20], few
        )
        for name, n in digits.DIGITS.items()
    ]
    return texts.Task(
        lambda seed: texts.split_texts(every, 30, 10, 10, seed),
        {"single_multi": (bases[0], bases[1])},
        few,
        few,
        digits.losses,
        digits.target_measures,
    )


@pytest.mark.parametrize("method", texts.METHODS)
def test_every_method_teaches(task: texts.Task, method: str) -> None:
    [row] = texts.run_trial(task, "single_multi", method, 3e-3, seed=0)
    assert row["after"] != row["before"]
    assert min(row["after"], row["before"], row["teacher"]) > 0
    assert (row["pair"], row["method"], row["seed"]) == ("single_multi", method, 0)
    assert {"before_numbers", "after_rest", "teacher_numbers"} <= row.keys()
    assert ("taught_numbers" in row) == (method in texts.PROJECTED)
    if method.startswith("fedmkt"):
        # What is only a label is not the teacher's.
        assert row["taught_numbers"] < 1


def test_drawn_texts_go_on_behind_their_prompts(task: texts.Task) -> None:
    taught = texts.teaching(task, "single_multi", 0)
    drawn = texts.drawn_texts(taught, 2, 0)
    prompts = [sample.prompt for sample in taught.splits.public]
    assert sorted(sample.prompt for sample in drawn) == sorted(prompts * 2)
    assert texts.drawn_texts.__wrapped__(taught, 2, 0) == drawn
    assert any(sample.answer for sample in drawn)


def row(pair: str, method: str, seed: int, **found: float) -> dict[str, Any]:
    return {"pair": pair, "method": method, "seed": seed, **found}


def test_tables_by_hand() -> None:
    rows = [
        row(pair, method, seed, before=3.0, teacher=1.0, after=1.0 if method == "private" else 2.0)
        | ({"taught": 0.5} if method in texts.PROJECTED else {})
        for pair in realtext.PAIRS
        for method in texts.METHODS
        for seed in (0, 1)
    ]
    lines = realtext.table(realtext.summarize(rows)).splitlines()
    assert lines[2] == "| untrained | 3.000 |  |  | 3.000 |  |  |"
    assert lines[3] == "| events | 2.000 | 50% ± 0% | 50% | 2.000 | 50% ± 0% | 50% |"
    assert lines[-2] == "| private | 1.000 | 100% ± 0% |  | 1.000 | 100% ± 0% |  |"
    parts = [
        row(pair, method, 0)
        | dict.fromkeys(("before_numbers", "before_rest"), 3.0)
        | dict.fromkeys(("teacher_numbers", "teacher_rest"), 1.0)
        | dict.fromkeys(("after_numbers", "after_rest"), 1.0 if method == "private" else 2.5)
        | (dict.fromkeys(digits.MEASURES, 0.25) if method in texts.PROJECTED else {})
        for pair in digits.PAIRS
        for method in texts.METHODS
    ]
    lines = digits.table(digits.summarize(parts)).splitlines()
    assert lines[2] == (
        "| multi -> single | events | 25.0% | 25.0% | 25.0% | 25% ± 0% | 25% ± 0% |"
    )
    assert len(lines) == 2 + len(digits.PAIRS) * len(texts.METHODS)
