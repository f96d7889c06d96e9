"""What an endpoint says of a model is what the model itself knows; what cannot be is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedfuse.config.model import EndpointConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.http_service import Retry, ServiceError
from fedfuse.knowledge.archive import KnowledgeArchive
from fedfuse.knowledge.endpoint import EndpointSource
from fedfuse.knowledge.extract import extract_with_contexts
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny
from tests.logprob_server import LogprobServer, serve

Make = Callable[[str], Tiny]
KEY, VARIABLE = "sk-a1b2c3d4e5f6", "FEDFUSE_TEST_KEY"
K = 6
MODELS = ["gpt2", "llama", "gpt_neox"]  # of three tokenizers


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def model(tiny: Make, request: pytest.FixtureRequest) -> Tiny:
    return tiny(getattr(request, "param", "gpt2"))


@pytest.fixture
def server(model: Tiny) -> Iterator[LogprobServer]:
    with serve(model.model, model.tokenizer) as running:
        yield running


@pytest.fixture
def data(model: Tiny, public: list[Sample]) -> TokenizedDataset:
    return model.encode(public)


def source(server: LogprobServer, file: Path, tokenizer: Any = None, **options: Any) -> Any:
    archive = KnowledgeArchive(file, server.name(), tokenizer or server.tokenizer)
    config = EndpointConfig(**{"key_variable": VARIABLE, "timeout": 5.0} | options)
    return EndpointSource(server.name(), config, archive, retry=Retry(2, first=0.0))


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_knowledge_is_that_of_the_model_itself(
    model: Tiny, data: TokenizedDataset, server: LogprobServer, tmp_path: Path
) -> None:
    local, contexts = extract_with_contexts(model, data, K)
    found, losses = source(server, tmp_path / "a").knowledge(data, K)
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    assert {request["model"] for request in server.requests} == {"tiny"}
    np.testing.assert_array_equal(found.indices, local.indices)
    np.testing.assert_allclose(found.logprobs, local.logprobs, atol=1e-4)
    np.testing.assert_allclose(found.label_logprob, local.label_logprob, atol=1e-4)
    np.testing.assert_allclose(found.tail_logprob, local.tail_logprob, atol=1e-3)
    np.testing.assert_allclose(losses, contexts, atol=1e-4)
    for name in ("tokenizer", "public"):
        assert getattr(found, name) == getattr(local, name)
    np.testing.assert_array_equal(found.offsets, local.offsets)
    np.testing.assert_array_equal(found.label_bytes, local.label_bytes)


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("form", ["echo", "text"])
def test_tokens_as_text_give_the_same_labels_and_no_mass_too_much(
    model: Tiny, data: TokenizedDataset, tmp_path: Path, form: str
) -> None:
    """What a text does not tell apart goes to the tail; everything else is where it was."""
    local, _ = extract_with_contexts(model, data, K)
    with serve(model.model, model.tokenizer, form) as server:
        found, _ = source(server, tmp_path / "a").knowledge(data, K)
        assert isinstance(server.requests[-1]["prompt"], str) == (form == "text")
    np.testing.assert_allclose(found.label_logprob, local.label_logprob, atol=1e-4)
    np.testing.assert_allclose(found.loss, local.loss, rtol=1e-4)
    dense = [
        dict(zip(*row, strict=True)) for row in zip(local.indices, local.logprobs, strict=True)
    ]
    same = 0
    for row, (indices, logprobs) in enumerate(zip(found.indices, found.logprobs, strict=True)):
        for token, logprob in zip(indices, logprobs, strict=True):
            if np.isfinite(logprob) and token in dense[row]:
                assert logprob == pytest.approx(dense[row][token], abs=1e-4)
                same += 1
    assert same > 0.7 * local.indices.size


def test_nothing_is_asked_twice_and_what_was_stopped_goes_on(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    server.fail = {3: (401, "no such key")}
    with pytest.raises(ServiceError, match="401"):
        source(server, tmp_path / "a", concurrency=1).knowledge(data, K)
    before = len(server.requests)
    server.fail = {}
    asking = source(server, tmp_path / "a", concurrency=1)
    asking.knowledge(data, K)
    # One of the three that were kept is asked again, to see whether the model is still the same.
    assert len(server.requests) == before + 1 + len(data) - 3
    asking.knowledge(data, K - 2)
    assert len(server.requests) == before + 1 + len(data) - 3
    asking.knowledge(data, K + 2)  # more of each row than was asked for before
    assert len(server.requests) == before + 1 + 2 * len(data) - 3


def test_fewer_entries_are_the_same_with_the_others_in_the_tail(
    model: Tiny, server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    asking = source(server, tmp_path / "a")
    asking.knowledge(data, K)
    found, local = asking.knowledge(data, 3)[0], extract_with_contexts(model, data, 3)[0]
    np.testing.assert_array_equal(found.indices, local.indices)
    np.testing.assert_allclose(found.tail_logprob, local.tail_logprob, atol=1e-3)


def test_another_model_under_the_name_is_noticed(
    data: TokenizedDataset,
    server: LogprobServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = source(server, tmp_path / "a").knowledge(data, K)[0]
    model = server.model
    server.model = lambda input_ids: SimpleNamespace(logits=3 * model(input_ids=input_ids).logits)
    with caplog.at_level(logging.WARNING):
        after = source(server, tmp_path / "a").knowledge(data, K)[0]
    assert "has changed" in caplog.text
    assert not np.allclose(before.label_logprob, after.label_logprob, atol=0.1)


def test_another_tokenizer_is_refused(
    tiny: Make, server: LogprobServer, public: list[Sample], tmp_path: Path
) -> None:
    """The ids are sent as those of a llama: the service knows tokens of other names by them."""
    other = tiny("llama")
    with pytest.raises(
        FedfuseError, match=r"another tokenizer .* expected token \d+ to be '"
    ) as caught:
        source(server, tmp_path / "a", other.tokenizer).knowledge(other.encode(public), K)
    assert server.url in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("form", ["echo", "text"])
def test_another_tokenizer_is_refused_where_tokens_are_text(
    tiny: Make, public: list[Sample], tmp_path: Path, form: str
) -> None:
    own, other = tiny("gpt2"), tiny("llama")
    with serve(own.model, own.tokenizer, form) as server:
        asking = source(server, tmp_path / "a", other.tokenizer)
        with pytest.raises(FedfuseError, match="another tokenizer"):
            asking.knowledge(other.encode(public), K)


def test_a_service_that_adds_tokens_is_refused(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    server.change = lambda reply: reply["choices"][0]["prompt_logprobs"].insert(1, {})
    with pytest.raises(FedfuseError, match=r"another tokenizer .* expected \d+ tokens of an input"):
        source(server, tmp_path / "a").knowledge(data, K)


def _first(reply: dict[str, Any]) -> dict[str, dict[str, Any]]:
    row: dict[str, dict[str, Any]] = reply["choices"][0]["prompt_logprobs"][1]
    return row


def _all_likely(reply: dict[str, Any]) -> None:
    for entry in _first(reply).values():
        entry["logprob"] = -0.1


def _set(value: float) -> Callable[[dict[str, Any]], None]:
    return lambda reply: next(iter(_first(reply).values())).update(logprob=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_all_likely, "probabilities: expected at most 1, got a sum of"),
        (_set(0.5), "log-probabilities: expected numbers that are at most 0"),
        (_set(float("nan")), "log-probabilities: expected numbers that are at most 0"),
        (_set(float("-inf")), "finite for the text"),
        (lambda reply: _first(reply).pop(next(iter(_first(reply)))), "got none of token"),
        (lambda reply: reply["choices"][0]["prompt_logprobs"].__setitem__(2, None), "prefix-cach"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    server: LogprobServer,
    data: TokenizedDataset,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    server.change = change
    asking = source(server, tmp_path / "a")
    with pytest.raises(FedfuseError, match=f"model 'tiny' at {server.url} .*{message}"):
        asking.knowledge(data, K)
    assert len(asking._archive) == 0


def test_too_many_entries_are_refused_with_what_to_do(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    with pytest.raises(FedfuseError, match=r"--max-logprobs 21, or lower knowledge.k"):
        source(server, tmp_path / "a").knowledge(data, 21)
    assert len(server.requests) == 1  # neither again nor in another way


def test_a_service_without_logprobs_of_prompts_is_refused_with_what_to_do(
    model: Tiny, data: TokenizedDataset, tmp_path: Path
) -> None:
    with serve(model.model, model.tokenizer, "llama.cpp") as server:
        with pytest.raises(FedfuseError, match=r"expected vLLM.*--logits_all true") as caught:
            source(server, tmp_path / "a").knowledge(data, K)
        assert "Only no echo is supported" in str(caught.value)
        assert len(server.requests) == 3


def test_a_service_that_is_late_is_given_up(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    server.delay = 0.5
    with pytest.raises(ServiceError, match=r"did not answer .*gave up after 2 attempts"):
        source(server, tmp_path / "a", timeout=0.1).knowledge(data, K)


def test_a_service_that_was_busy_is_asked_again(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    server.fail = {0: (503, "busy"), 4: (200, "no JSON")}
    source(server, tmp_path / "a").knowledge(data, K)
    assert len(server.requests) == len(data) + 2


def test_the_key_is_sent_and_not_said(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    server.fail = dict.fromkeys(range(9), (401, f"no such key: {KEY}"))
    with pytest.raises(ServiceError, match=r"no such key: \*\*\*") as caught:
        source(server, tmp_path / "a").knowledge(data, K)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in str(caught.value)
    assert KEY.encode() not in (tmp_path / "a").read_bytes()


def test_text_without_a_prompt_needs_a_service_that_knows_its_first_token(
    tiny: Make, tmp_path: Path
) -> None:
    model = tiny("gpt2")
    plain = model.encode([Sample("", "for gout zinc.")])
    with serve(model.model, model.tokenizer, "text") as server:
        asking = source(server, tmp_path / "a")
        with pytest.raises(FedfuseError, match="first token: give samples with a prompt"):
            asking.knowledge(plain, K)
    with serve(model.model, model.tokenizer) as server:
        found, context = source(server, tmp_path / "b").knowledge(plain, K)
    np.testing.assert_allclose(
        found.loss, extract_with_contexts(model, plain, K)[0].loss, rtol=1e-4
    )
    assert np.isnan(context).all()


def test_a_text_that_is_too_long_is_said_in_the_words_of_the_service(
    server: LogprobServer, data: TokenizedDataset, tmp_path: Path
) -> None:
    server.fail = {0: (400, "This model's maximum context length is 8 tokens")}
    with pytest.raises(ServiceError, match=r"answered 400: .*maximum context length is 8"):
        source(server, tmp_path / "a").knowledge(data, K)
    assert len(server.requests) == 1


def test_what_text_cannot_spell_is_not_asked_as_text(
    model: Tiny, public: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat in the model's own template has tokens that no text spells; a cut prompt has text."""
    first = public[0]
    chat = model.encode([Sample(first.prompt, first.answer, turns=(("user", first.prompt),))])
    room = int(chat.lengths[0]) - 2
    cut = model.encode([first], max_length=room)
    assert cut.rows.begin[0] > 0
    with serve(model.model, model.tokenizer, "text") as server:
        found, _ = source(server, tmp_path / "a").knowledge(cut, K)
        assert first.text.endswith(server.requests[-1]["prompt"])
        local, _ = extract_with_contexts(model, cut, K)
        np.testing.assert_allclose(found.loss, local.loss, rtol=1e-4)
        asking = source(server, tmp_path / "b")
        monkeypatch.setattr(chat.tokenizer, "chat", object())
        with pytest.raises(FedfuseError, match="echo of the text: a chat in a template"):
            asking.knowledge(chat, K)
