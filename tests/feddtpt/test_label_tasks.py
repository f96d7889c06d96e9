"""What an answer says, what a question looks like, and tasks from data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfuse.data.records import load_records
from fedfuse.data.sample import Sample
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.label_tasks import LabelledExample, Task, label_task

MATERIAL = Path(__file__).parents[3] / "shared" / "material" / "datasets"
NLI = Task("nli", {"yes": ["yes", "entailment"], "no": ["no", "not entailment", "not_entailment"]})
SNAKE = Task("snake", {"very_good": ["very_good"], "__label__2": ["__label__2"]})
MOOD = Task("mood", {"positive": ["positive"], "negative": ["negative"]})
LETTERS = Task("letters", {"A": ["A"], "B": ["B"]})


@pytest.mark.parametrize(
    ("task", "answer", "label"),
    [
        (NLI, "yes", "yes"),
        (NLI, " Yes.\n", "yes"),
        (NLI, "The answer is: ENTAILMENT", "yes"),
        (NLI, "not entailment", "no"),
        (NLI, "Not  Entailment!", "no"),
        (NLI, "not_entailment", "no"),
        (NLI, "no, not_entailment", "no"),
        (NLI, "not _ entailment", "no"),
        (NLI, "not yes", None),
        (NLI, "It is not a Yes.", None),
        (NLI, "not no, but yes", "yes"),
        (NLI, "cannot say; yes", "yes"),
        (NLI, "it isn't yes", None),
        (NLI, "it isn\u2019t yes", None),
        (NLI, "", None),
        (NLI, "maybe", None),
        (NLI, "yes or no", None),
        (NLI, "entailment? not entailment?", None),
        (NLI, "nothing", None),
        (NLI, "yesterday", None),
        (NLI, "no_way", None),
        (LETTERS, "B", "B"),
        (LETTERS, "(A) a dog", "A"),
        (LETTERS, "a dog", None),
        (LETTERS, "b", None),
        (LETTERS, "A B", None),
        (LETTERS, "not A", None),
        (LETTERS, "not A B", "B"),
        *(
            (MOOD, answer, None)
            for answer in (
                "not really positive",
                "never positive",
                "cannot be positive",
                "can't be called positive",
                "non-positive",
                "no positive",
                "neither positive",
                "not at all that positive",
                "Hardly a very positive one",
                "without any positive words",
            )
        ),
        (MOOD, "never positive: negative", "negative"),
        (MOOD, "not really, positive", "positive"),
        (MOOD, "really positive", "positive"),
        (MOOD, "I cannot fault it; positive", "positive"),
        (SNAKE, "__label__2", "__label__2"),
        (SNAKE, "very good", "very_good"),
        (SNAKE, "Very _ Good", "very_good"),
    ],
)
def test_an_answer_names_one_label_or_none(task: Task, answer: str, label: str | None) -> None:
    assert task.read(answer) == label


def test_right_answers_are_counted() -> None:
    examples = [LabelledExample("x", "yes"), LabelledExample("y", "no"), LabelledExample("z", "no")]
    assert NLI.right(["yes", "yes", "no"], examples) == 2
    with pytest.raises(ValueError, match="zip"):
        NLI.right(["yes"], examples)


def test_braces_of_prompts_and_inputs_are_text() -> None:
    task = Task("t", {"a": ["x"], "b": ["y"]}, "{{{prompt}}} {input}!")
    assert task.question("{input}", "{prompt} {0}") == "{{input}} {prompt} {0}!"


@pytest.mark.parametrize(
    ("verbalizer", "template", "message"),
    [
        ({"a": ["x"]}, "{prompt}{input}", "expected two or more labels, got a"),
        ({"a": ["x"], "b": []}, "{prompt}{input}", r"label 'b' and none empty, got \[\]"),
        ({"a": ["x"], "b": [" "]}, "{prompt}{input}", "none empty"),
        ({"a": ["ex"], "b": ["Ex"]}, "{prompt}{input}", "got 'Ex' for 'a' and 'b'"),
        ({"a": ["x"], "b": ["y"]}, "{prompt}", "once each"),
        ({"a": ["x"], "b": ["y"]}, "{prompt}{input}{input}", "once each"),
        ({"a": ["x"], "b": ["y"]}, "{prompt", "not well formed"),
    ],
)
def test_tasks_that_cannot_be_are_refused(
    verbalizer: dict[str, list[str]], template: str, message: str
) -> None:
    with pytest.raises(FedfuseError, match=message):
        Task("t", verbalizer, template)


def test_letters_of_both_cases_may_be_different_labels() -> None:
    task = Task("t", {"upper": ["A"], "lower": ["a"]})
    assert (task.read("A"), task.read("a")) == ("upper", "lower")


def test_equal_options_are_labels() -> None:
    options = (" entailment", " not_entailment")
    samples = [Sample("p", options[i], options=options, label=i) for i in (1, 0)]
    task, examples = label_task("rte", samples)
    assert task.labels == ("entailment", "not_entailment")
    assert examples == [LabelledExample("p", "not_entailment"), LabelledExample("p", "entailment")]
    assert task.read("not entailment") == "not_entailment"
    task, _ = label_task("rte", samples, words={"entailment": ["yes"]})
    assert task.read("yes") == "entailment"
    assert task.read("entailment") is None


def test_different_options_are_listed_under_letters() -> None:
    samples = [
        Sample("Which?", " one", options=(" one", " two"), label=0),
        Sample("What?", " six", options=(" four", " five", " six"), label=2),
    ]
    task, examples = label_task("arc", samples)
    assert task.labels == ("A", "B", "C")
    assert examples == [
        LabelledExample("Which?\nA. one\nB. two", "A"),
        LabelledExample("What?\nA. four\nB. five\nC. six", "C"),
    ]


def test_samples_without_labels_are_refused() -> None:
    with pytest.raises(FedfuseError, match=r"'t': expected at least one sample, .* got 0 samples"):
        label_task("t", [])
    with pytest.raises(FedfuseError, match="each with 2 to 26 options"):
        label_task("t", [Sample("p", " a")])
    options = tuple(f" {i}" for i in range(27))
    with pytest.raises(FedfuseError, match=r"\[27\] options"):
        label_task("t", [Sample("p", " 0", options=options, label=0)])
    sample = Sample("p", " a", options=(" a", " b"), label=0)
    with pytest.raises(FedfuseError, match="words for its labels a, b, got some for c"):
        label_task("t", [sample], words={"c": ["x"]})


@pytest.mark.parametrize(
    ("name", "split", "template", "labels"),
    [
        ("sst2", "dev", "{text}", ("negative", "positive")),
        ("trec", "test", "{text}", ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")),
        ("rte", "dev", "{premise}\nHypothesis: {hypothesis}", ("entailment", "not_entailment")),
        ("arc_challenge", "test", "{question}", ("A", "B", "C", "D", "E")),
    ],
)
def test_data_sets_make_tasks(
    name: str, split: str, template: str, labels: tuple[str, ...]
) -> None:
    if not (MATERIAL / name).exists():
        pytest.skip(f"data set {name} is not here")
    records = load_records(str(MATERIAL / name), split)
    task, examples = label_task(name, to_samples(records, domain=name, template=template))
    assert set(task.labels) <= set(labels)
    assert len(examples) == len(records)
    for example, (_, record) in zip(examples, records, strict=True):
        assert task.labels.index(example.label) == record["label"]
        assert task.read(example.label) == example.label
