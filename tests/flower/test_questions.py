"""Blind questions in messages: nothing that tells, and nothing that is believed."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import arrays_to_record
from fedfuse.flower.questions import (
    pack_options,
    pack_questions,
    unpack_options,
    unpack_questions,
)

QUESTIONS = [
    Sample("The smith sold", " one", "town", (" one", " two", " three"), 0),
    Sample("The clerk sold", " two", "town", (" one", " two", " three"), 1),
    Sample("It is", " wet", "weather", (" dry", " wet"), 1),
]


def test_questions_are_sent_without_answers_and_domains() -> None:
    content = RecordDict({})
    pack_questions(content, QUESTIONS)

    found = unpack_questions(content)

    assert [(q.prompt, q.options) for q in found] == [(q.prompt, q.options) for q in QUESTIONS]
    assert {(q.answer, q.label, q.domain) for q in found} == {("", -1, "")}
    sent = str(content["questions"])
    assert "town" not in sent
    assert sent.count(" two") == 1  # once for all that have it as an option
    assert unpack_questions(RecordDict({})) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["ab"]]', '[[["a"], 3]]'])
def test_malformed_questions_are_refused(text: str) -> None:
    content = RecordDict({"questions": ConfigRecord({"json": text})})
    with pytest.raises(FedfuseError, match="questions: expected prompts with options"):
        unpack_questions(content)


def test_answers_add_to_one_at_most_whatever_is_claimed() -> None:
    content = RecordDict({})
    claims = np.array([[0, 0, 0], [-9, -1, -9], [0, -3, -np.inf]], dtype=np.float32)
    pack_options(content, claims)

    found = np.exp(unpack_options(content, QUESTIONS))

    np.testing.assert_allclose(found[0], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.exp(claims[1]), rtol=1e-6)
    np.testing.assert_allclose(found[2, :2].sum(), 1, rtol=1e-6)
    assert found[2, 2] == 0


@pytest.mark.parametrize(
    "sent",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((3, 3), np.float64),
        np.array([[0, 0, np.nan]] * 3, np.float32),
        np.array([[0, 0, -np.inf]] * 3, np.float32),
        np.array([[np.inf, 0, 0]] * 3, np.float32),
    ],
)
def test_answers_of_another_form_are_refused(sent: np.ndarray) -> None:
    content = RecordDict({"questions": arrays_to_record({"logprobs": sent})})
    with pytest.raises(FedfuseError, match="options: expected"):
        unpack_options(content, QUESTIONS)


def test_missing_answers_are_refused() -> None:
    with pytest.raises(FedfuseError, match="expected answers to questions"):
        unpack_options(RecordDict({}), QUESTIONS)
