"""What travels in messages comes out as it went in, or is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfuse.errors import FedfuseError
from fedfuse.evaluation.scoring import Score
from fedfuse.flower import messages
from fedfuse.knowledge.payload import decode, encode_delta, encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.tokenizer import TextTokenizer


@pytest.fixture
def knowledge() -> Knowledge:
    return Knowledge(
        offsets=np.array([0, 2, 3]),
        indices=np.array([[4, 1], [300, 0], [2, 7]]),
        logprobs=np.log(np.array([[0.5, 0.25], [0.75, 0.125], [0.5, 0.5]], dtype=np.float32)),
        tail_logprob=np.log(np.array([0.25, 0.125, 1e-30], dtype=np.float32)),
        label_logprob=np.log(np.array([0.5, 0.125, 1e-31], dtype=np.float32)),
        label_bytes=np.array([5, 70000]),
        tokenizer="ab",
        public="cd",
    )


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 2e-3), (8, 0.05)])
def test_knowledge_comes_back(knowledge: Knowledge, bits: int, tolerance: float) -> None:
    content = RecordDict({})
    messages.pack_knowledge(content, encode_full(knowledge, bits, 1.0))
    found = decode(messages.unpack_knowledge(content), num_rows=3, k=2)
    assert (found.tokenizer, found.public) == ("ab", "cd")
    for name, values in knowledge.arrays().items():
        back = getattr(found, name)
        assert back.dtype == values.dtype
        if name == "indices":  # the last row's are equally likely
            np.testing.assert_array_equal(back, values)
        else:
            np.testing.assert_allclose(back, values, rtol=tolerance, atol=tolerance)


def test_only_so_much_mass_is_sent(knowledge: Knowledge) -> None:
    content = RecordDict({})
    messages.pack_knowledge(content, encode_full(knowledge, 16, 0.7))
    found = decode(messages.unpack_knowledge(content))
    assert np.isfinite(found.logprobs).sum(1).tolist() == [2, 1, 2]
    np.testing.assert_allclose(np.exp(found.tail_logprob), [0.25, 0.25, 0], atol=1e-3)


def test_what_changed_comes_back(knowledge: Knowledge) -> None:
    content = RecordDict({})
    letter = encode_delta(knowledge, knowledge, 0.1, 16, 1.0)
    messages.pack_knowledge(content, letter)
    assert messages.unpack_knowledge(content) == letter


def test_missing_knowledge_is_refused() -> None:
    content = RecordDict({})
    with pytest.raises(FedfuseError, match="expected knowledge"):
        messages.unpack_knowledge(content)
    some = np.zeros(3, dtype=np.uint8)
    for names in ({"other"}, {"message", "row_mask"}):
        content["knowledge"] = messages.arrays_to_record(dict.fromkeys(names, some))
        with pytest.raises(FedfuseError, match="expected knowledge"):
            messages.unpack_knowledge(content)


@pytest.mark.parametrize("array", [np.zeros((3, 3), np.uint8), np.zeros(9), np.zeros(9, np.int8)])
def test_another_form_of_knowledge_is_refused(array: Any) -> None:
    record = messages.arrays_to_record({"message": array})
    with pytest.raises(FedfuseError, match=r"knowledge\.message: expected 1-dimensional uint8"):
        messages.unpack_knowledge(RecordDict({"knowledge": record}))


def test_arrays_come_back() -> None:
    """Of any shape: what has no dimension keeps none."""
    arrays = {"none": np.array(3), "one": np.ones(1, np.float32), "two": np.eye(3)[:, ::2]}
    found = messages.record_to_arrays(messages.arrays_to_record(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name], array)


def test_a_tokenizer_comes_back(tiny_tokenizers: dict[str, TextTokenizer]) -> None:
    for tokenizer in tiny_tokenizers.values():
        content = RecordDict({})
        messages.pack_tokenizer(content, tokenizer)
        found = messages.unpack_tokenizer(content)
        assert found.fingerprint == tokenizer.fingerprint
        one, two = (t.encode(["a nurse gave aspirin"])[0].ids for t in (found, tokenizer))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "record", [None, ArrayRecord(), ConfigRecord({}), ConfigRecord({"json": 5})]
)
def test_no_tokenizer_is_refused(record: Any) -> None:
    content = RecordDict({} if record is None else {"tokenizer": record})
    with pytest.raises(FedfuseError, match="expected a tokenizer"):
        messages.unpack_tokenizer(content)


@pytest.mark.parametrize("json", ["", "[", "{}", '{"model": {"type": "BPE"}}', "null"])
def test_a_broken_tokenizer_is_refused(json: str) -> None:
    with pytest.raises(FedfuseError):
        messages.unpack_tokenizer(RecordDict({"tokenizer": ConfigRecord({"json": json})}))


def test_scores_come_back() -> None:
    whole = Score(1.25, 0.5, 12, noise=0.25, normalized_accuracy=0.75)
    scores = {"clinic": whole, "a/b": Score(0.75, None, 3)}
    record = MetricRecord({**messages.scores_to_metrics(scores), "seconds": 3.0})
    assert messages.unpack_scores(RecordDict({"metrics": record})) == scores


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"loss/a": math.nan, "samples/a": 3}, "loss/a"),
        ({"loss/a": -1.0, "samples/a": 3}, "loss/a"),
        ({"loss/a": [1.0], "samples/a": 3}, "loss/a"),
        ({"loss/a": 1.0, "samples/a": math.inf}, "samples/a"),
        ({"loss/a": 1.0}, "samples/a"),
        ({"loss/a": 1.0, "samples/a": 1, "accuracy/a": 1.5}, "accuracy/a"),
        ({"loss/a": 1.0, "samples/a": 1, "normalized_accuracy/a": 2}, "normalized_accuracy/a"),
        ({"loss/a": 1.0, "samples/a": 1, "noise/a": -1.0}, "noise/a"),
    ],
)
def test_bad_scores_are_refused(metrics: Any, name: str) -> None:
    with pytest.raises(FedfuseError, match=rf"metrics.{name}: expected a finite number"):
        messages.unpack_scores(RecordDict({"metrics": MetricRecord(metrics)}))


def test_missing_metrics_are_refused() -> None:
    with pytest.raises(FedfuseError, match="expected metrics"):
        messages.unpack_scores(RecordDict({}))
    with pytest.raises(FedfuseError, match="no loss"):
        messages.unpack_scores(RecordDict({"metrics": MetricRecord({})}))
    with pytest.raises(FedfuseError, match=r"metrics.loss: expected .* got None"):
        messages.unpack_number(RecordDict({"metrics": MetricRecord({})}), "loss")


def test_a_request_says_what_it_belongs_to() -> None:
    config = ConfigRecord({"reply": "knowledge"})
    request_context = messages.RequestContext("run", "5f", 3)
    messages.pack_context(config, request_context)
    assert messages.unpack_context(RecordDict({"config": config})) == request_context
    del config["run-id"]
    for content in (RecordDict({"config": config}), RecordDict({})):
        with pytest.raises(FedfuseError, match="run-id"):
            messages.unpack_context(content)


def test_a_reply_says_what_it_answers() -> None:
    reply = RecordDict({"info": ConfigRecord({"cache-digest": "x"})})
    messages.pack_round(reply, 2)
    assert reply["info"] == ConfigRecord({"cache-digest": "x", "round": 2})
    messages.check_round(reply, 2)
    with pytest.raises(FedfuseError, match="expected 3, got 2"):
        messages.check_round(reply, 3)
    with pytest.raises(FedfuseError, match="expected 3, got None"):
        messages.check_round(RecordDict({}), 3)
