"""Chats become a sample for each answer; what is no chat is refused by its place."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import RecordDict

from fedfuse.data.blind import blind_questions
from fedfuse.data.sample import Sample, SharedSamples, fingerprint
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError
from fedfuse.flower.questions import pack_questions, unpack_questions
from fedfuse.flower.samples import pack_samples, unpack_samples


def said(*texts: str, system: str = "") -> list[dict[str, str]]:
    """A chat of user and assistant in turns."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def samples_of(*chats: Any, **fields: Any) -> list[Sample]:
    records = [(f"file:{i}", {"messages": chat, **fields}) for i, chat in enumerate(chats)]
    return to_samples(records, domain="talk")


def test_each_answer_is_a_sample_behind_the_turns_before_it() -> None:
    found = samples_of(said("Who?", " Me.\n", "Why?", "So."), said("Hi", "Ho", system="Be kind."))
    assert [sample.answer for sample in found] == ["Me.", "So.", "Ho"]
    assert [sample.prompt for sample in found] == [
        "User: Who?\nAssistant:\n",
        "User: Who?\nAssistant: Me.\nUser: Why?\nAssistant:\n",
        "System: Be kind.\nUser: Hi\nAssistant:\n",
    ]
    assert found[1].turns == (("user", "Who?"), ("assistant", "Me."), ("user", "Why?"))
    assert {sample.domain for sample in found} == {"talk"}
    assert samples_of(said("a", "b"), domain="other")[0].domain == "other"
    assert len({fingerprint([sample]) for sample in found}) == 3


def test_an_assistant_that_begins_answers_nothing() -> None:
    chat = [{"role": "assistant", "content": "Hello."}, *said("Who?", "Me.")]
    [sample] = samples_of(chat)
    assert sample.turns == (("assistant", "Hello."), ("user", "Who?"))


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("Hi", "field 'messages': expected a list of objects"),
        (["Hi"], "field 'messages': expected a list of objects"),
        ([], "expected an answer of the assistant, got none"),
        (said("Hi"), "expected an answer of the assistant, got none"),
        (said("Hi", ""), r"messages\[1\].content: expected text that is not empty"),
        ([{"role": "user", "content": None}], r"messages\[0\].content: expected text, got None"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"content: expected text, got \["),
        ([{"role": "human", "content": "a"}], r"messages\[0\].role: expected one of system, user"),
        ([{"content": "a"}], r"messages\[0\].role: expected one of"),
        (said("\ud800", "b"), "half a surrogate pair"),
    ],
)
def test_what_is_no_chat_is_refused_by_its_place(chat: Any, message: str) -> None:
    with pytest.raises(FedfuseError, match=f"^file:0: .*{message}|^file:0: {message}"):
        samples_of(chat)


def test_turns_travel_with_samples_and_questions() -> None:
    public = samples_of(said("Who?", "Me."), said("Who then?", "You."), said("And?", "So."))
    content = RecordDict({})
    pack_samples(content, SharedSamples(public, [Sample("a", " b")]))
    assert list(unpack_samples(content).public) == public

    blind = blind_questions(public, 0)
    assert {question.turns for question in blind.asked} == {sample.turns for sample in public}
    pack_questions(content, blind.asked)
    for got, question in zip(unpack_questions(content), blind.asked, strict=True):
        assert (got.prompt, got.turns, got.options, got.answer) == (
            question.prompt,
            question.turns,
            question.options,
            "",
        )
    assert blind.asked[0].answered("No.").turns == blind.asked[0].turns
