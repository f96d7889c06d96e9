"""Records become samples, and bad ones are named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.data.sample import Sample
from fedfuse.data.templates import parse_template, to_samples
from fedfuse.errors import FedfuseError


def one(record: dict[str, Any], template: str = "") -> Sample:
    return to_samples([("f.jsonl:7", record)], domain="set", template=template)[0]


def test_classification_with_a_template() -> None:
    record = {"text": "good film", "options": ["negative", "positive"], "label": 1}
    assert one(record, "Review: {text}\nSentiment:") == Sample(
        "Review: good film\nSentiment:", " positive", "set", (" negative", " positive"), 1
    )


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"text": "a"}, "a\nLabel:"),
        ({"question": "a"}, "Question: a\nAnswer:"),
        ({"premise": "a", "hypothesis": "b"}, "a\nHypothesis: b\nEntailment:"),
        # The more specific template wins.
        ({"text": "x", "question": "a"}, "Question: a\nAnswer:"),
    ],
)
def test_default_templates(record: dict[str, Any], prompt: str) -> None:
    assert one({**record, "options": ["x", "y"], "label": 0}).prompt == prompt


def test_target_is_stripped_and_gets_one_space() -> None:
    assert one({"question": "1+1?", "target": "  2\n"}) == Sample(
        "Question: 1+1?\nAnswer:", " 2", "set"
    )


def test_numbers_as_options_and_target() -> None:
    assert one({"question": "q", "options": [1, 2.5], "label": 1}).answer == " 2.5"
    assert one({"question": "q", "target": 42}).answer == " 42"


def test_text_alone_is_plain_text_as_it_stands() -> None:
    assert one({"text": " Once upon a time.\n", "url": "x"}) == Sample(
        "", " Once upon a time.\n", "set"
    )


def test_domain_of_the_record_overrides() -> None:
    assert one({"text": "a", "domain": "law"}).domain == "law"


def test_lists_in_a_template_are_joined() -> None:
    record = {"question": "q", "options": ["x", "y"], "label": 0}
    assert one(record, "{question} ({options}) {{sic}}").prompt == "q (x, y) {sic}"


@pytest.mark.parametrize(
    ("record", "template", "words"),
    [
        ({"text": "a", "options": ["x", "y"], "label": 2}, "", ["label", "2", "0 to 1", "'x'"]),
        ({"text": "a", "options": ["x", "y"], "label": -1}, "", ["label", "-1", "0 to 1"]),
        ({"text": "a", "options": ["x", "y"], "label": "x"}, "", ["label", "'x'", "0 to 1"]),
        ({"text": "a", "options": ["x", "y"], "label": True}, "", ["label", "True"]),
        ({"text": "a", "options": ["x"], "label": 0}, "", ["options", "two"]),
        ({"text": "a", "options": "xy", "label": 0}, "", ["options", "'xy'"]),
        ({"text": "a", "options": ["x", " "], "label": 0}, "", ["options", "empty"]),
        ({"text": "a", "options": ["x", None], "label": 0}, "", ["options", "None"]),
        ({"text": "a", "label": 0}, "", ["'options' is missing", "text, label"]),
        ({"text": "a", "options": ["x", "y"]}, "", ["'label' is missing", "text, options"]),
        ({"text": "a", "target": ""}, "", ["target", "empty"]),
        ({"text": ""}, "", ["text", "empty"]),
        ({"text": None}, "", ["text", "None"]),
        ({"text": "a"}, "{text}\nKind:", ["no answer", "it has: text"]),
        ({"sentence": "a"}, "", ["no answer", "sentence"]),
        ({}, "", ["no answer", "none"]),
        ({"sentence": "a", "target": "b"}, "", ["no default template", "sentence, target"]),
        ({"text": "a", "target": "b"}, "{question}:", ["'question'", "it has: text, target"]),
        ({"text": {}, "target": "b"}, "{text}:", ["'text'", "{}"]),
        ({"text": "a", "domain": 3}, "", ["domain", "3"]),
        ({"text": "half \ud800"}, "", ["surrogate"]),
    ],
)
def test_bad_records_are_named(record: dict[str, Any], template: str, words: list[str]) -> None:
    with pytest.raises(FedfuseError) as caught:
        one(record, template)
    for word in ["f.jsonl:7", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{text", "}", "{}", "{0}", "{text.upper}", "{a[0]}", "{text!r}", "{text:>9}"]
)
def test_bad_templates_are_named(template: str) -> None:
    with pytest.raises(FedfuseError) as caught:
        parse_template(template)
    assert repr(template) in str(caught.value)
    assert "expected" in str(caught.value)


def test_no_records() -> None:
    with pytest.raises(FedfuseError, match="'set' is empty"):
        to_samples([], domain="set")


texts = st.text(st.characters(codec="utf-8"))
words = texts.filter(str.strip)


@given(question=texts, options=st.lists(words, min_size=2), data=st.data())
def test_rendering_equals_str_format(
    question: str, options: list[str], data: st.DataObject
) -> None:
    label = data.draw(st.integers(0, len(options) - 1))
    literal = data.draw(texts).replace("{", "{{").replace("}", "}}")
    template = literal + "{question}" + literal
    sample = one({"question": question, "options": options, "label": label}, template)
    assert sample.prompt == template.format(question=question)
    assert sample.answer == sample.options[label] == " " + options[label].strip()
