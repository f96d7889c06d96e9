"""An endpoint that works, that fails in every way there is, and a key that stays secret."""

from __future__ import annotations

import json
import logging
import pickle
import random
import socket
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from fedfuse.config.feddtpt import BlackBoxConfig
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.http_black_box import HttpBlackBox
from fedfuse.feddtpt.ledger import Budget, Ledger, Spent
from fedfuse.feddtpt.meter import Meter
from fedfuse.http_service import RateLimiter, Retry, ServiceError, TransientError
from tests.feddtpt.endpoint import Endpoint, Odd, completion, serve

KEY = "sk-a1b2c3d4e5f6"
VARIABLE = "FEDFUSE_TEST_KEY"
HASTE = Retry(first=0.0)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv(VARIABLE, KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(str.upper) as running:
        yield running


@pytest.fixture
def models() -> Iterator[list[HttpBlackBox]]:
    made: list[HttpBlackBox] = []
    yield made
    for model in made:
        model.close()


def settings(url: str, **options: Any) -> BlackBoxConfig:
    fixed = {"key_variable": VARIABLE, "timeout": 0.5, "max_tokens": 16}
    return BlackBoxConfig("tiny", url, **fixed | options)


@pytest.fixture
def model(endpoint: Endpoint, models: list[HttpBlackBox]) -> HttpBlackBox:
    models.append(HttpBlackBox(settings(endpoint.url)))
    return models[-1]


def test_a_text_is_a_chat(endpoint: Endpoint, model: HttpBlackBox) -> None:
    (reply,) = model.ask(["what?"])
    assert (reply.text, reply.tokens) == ("WHAT?", 5)
    assert endpoint.requests == [
        {
            "path": "/v1/chat/completions",
            "model": "tiny",
            "messages": [{"role": "user", "content": "what?"}],
            "max_tokens": 16,
            "temperature": 0,
        }
    ]
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert model.most_tokens("é") == 2 + 64 + 16


def test_no_key_is_sent_where_none_is_named(endpoint: Endpoint, models: list[HttpBlackBox]) -> None:
    models.append(HttpBlackBox(settings(endpoint.url + "/", key_variable="")))
    assert models[-1].ask(["a"])[0].text == "A"
    assert endpoint.keys == [""]
    assert endpoint.requests[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "odd",
    [
        Odd(408, "slow"),
        Odd(409, "conflict"),
        Odd(429, "too many"),
        Odd(500, "broken"),
        Odd(503, "away"),
        Odd(delay=0.8),
        Odd(body="{'choices'"),
        Odd(body=""),
        Odd(body="[]"),
        Odd(body="null"),
        Odd(body='{"choices": []}'),
        Odd(body='{"choices": [{"message": {}}]}'),
        Odd(body='{"choices": [{"message": {"content": 7}}]}'),
        Odd(body="[" * 100_000),
    ],
    ids=lambda odd: f"{odd.status} {(odd.body or 'late')[:20]}",
)
def test_what_may_pass_is_asked_again(endpoint: Endpoint, model: HttpBlackBox, odd: Odd) -> None:
    endpoint.misbehave([odd, odd])
    meter = Meter(model, Ledger(), Budget(queries=3), retry=HASTE)
    assert meter.answer(["a"]) == ["A"]
    assert len(endpoint.requests) == 3
    # Only what was refused for its rate is certainly not billed.
    assert meter.spent.queries == (1 if odd.status == 429 else 3)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 422])
def test_what_will_not_pass_is_not(endpoint: Endpoint, model: HttpBlackBox, status: int) -> None:
    endpoint.misbehave([Odd(status, '{"error": "no"}')])
    with pytest.raises(ServiceError, match=f"'tiny' at .* answered {status}: .*no") as caught:
        model.ask(["a"])
    assert not isinstance(caught.value, TransientError)
    assert not caught.value.billed


def test_what_a_service_does_not_take_is_learned_once(
    endpoint: Endpoint, models: list[HttpBlackBox], caplog: pytest.LogCaptureFixture
) -> None:
    models.append(HttpBlackBox(settings(endpoint.url, concurrency=1)))
    refusals = [
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "Unsupported value: 'temperature' does not support 0 with this model.",
    ]
    endpoint.misbehave([Odd(400, json.dumps({"error": {"message": text}})) for text in refusals])
    meter = Meter(models[0], Ledger(), Budget(queries=2), retry=HASTE)

    assert meter.answer(["a", "b"]) == ["A", "B"]

    assert meter.spent.queries == 2  # what was refused is not billed
    sent = [sorted(request) for request in endpoint.requests]
    common = ["messages", "model", "path"]
    assert sent == [
        sorted([*common, "max_tokens", "temperature"]),
        sorted([*common, "max_completion_tokens", "temperature"]),
        *[sorted([*common, "max_completion_tokens"])] * 2,
    ]
    assert endpoint.requests[-1]["max_completion_tokens"] == 16
    assert caplog.text.count("takes no temperature of 0") == 1


def test_a_refusal_that_cannot_be_helped_ends(endpoint: Endpoint, model: HttpBlackBox) -> None:
    text = json.dumps({"error": "max_completion_tokens and temperature are wrong"})
    endpoint.misbehave([Odd(400, text)] * 9)
    with pytest.raises(ServiceError, match="answered 400"):
        model.ask(["a"])
    assert len(endpoint.requests) == 3


def test_answers_that_were_cut_off_are_counted(
    endpoint: Endpoint, model: HttpBlackBox, caplog: pytest.LogCaptureFixture
) -> None:
    def ending(content: str | None, reason: str) -> Odd:
        choice = {"message": {"content": content}, "finish_reason": reason}
        return Odd(body=json.dumps({"choices": [choice], "usage": {"total_tokens": 5}}))

    endpoint.misbehave([ending("", "length"), ending(None, "length"), ending("good", "stop")])
    ledger = Ledger()
    meter = Meter(model, ledger, Budget(), "one", retry=HASTE)

    assert sorted(meter.answer(["a", "b", "c"])) == ["", "", "good"]  # they are asked at once

    assert (ledger.cut("one"), ledger.cut("other")) == (2, 0)
    assert caplog.text.count("cut off; raise black-box.max-tokens = 16") == 1


def test_nobody_there(models: list[HttpBlackBox]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models.append(HttpBlackBox(settings(f"http://127.0.0.1:{port}", key_variable="")))
    meter = Meter(models[-1], Ledger(), Budget(queries=1), retry=Retry(3, 0.0))
    with pytest.raises(ServiceError, match=r"cannot be reached .*gave up after 3 attempts"):
        meter.answer(["a"])
    assert meter.spent == Spent()


@pytest.mark.parametrize("usage", [None, -1, True, "5", 2.5])
def test_usage_that_is_none_costs_the_most(
    endpoint: Endpoint, model: HttpBlackBox, usage: object
) -> None:
    endpoint.misbehave([Odd(body=completion("x", usage)), Odd(body=completion(None))])
    assert model.ask(["abc"])[0].tokens == 3 + 64 + 16
    assert model.ask(["abc"])[0].text == ""
    body = json.dumps({**json.loads(completion("x")), "usage": [1]})
    endpoint.misbehave([Odd(body=body)])
    assert model.ask(["abc"])[0].tokens == 3 + 64 + 16


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("tomorrow", 86400.0),
    ],
)
def test_retry_after_is_read(
    endpoint: Endpoint, model: HttpBlackBox, header: str, seconds: float
) -> None:
    if header == "tomorrow":
        header = format_datetime(datetime.now(UTC) + timedelta(days=1))
    endpoint.misbehave([Odd(429, "", {"Retry-After": header})])
    with pytest.raises(TransientError) as caught:
        model.ask(["a"])
    assert caught.value.retry_after == pytest.approx(seconds, abs=300 if seconds > 99 else 0)


def test_requests_overlap_up_to_the_bound(endpoint: Endpoint, models: list[HttpBlackBox]) -> None:
    models.append(HttpBlackBox(settings(endpoint.url, concurrency=3, timeout=5.0)))
    endpoint.misbehave([Odd(delay=0.05)] * 9)
    texts = [f"t{i}" for i in range(9)]
    answers = Meter(models[-1], Ledger(), Budget()).answer(texts)
    assert answers == [text.upper() for text in texts]
    assert endpoint.most == 3


def test_requests_keep_the_pace(endpoint: Endpoint, models: list[HttpBlackBox]) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    options = settings(endpoint.url, requests_per_minute=120.0)
    models.append(HttpBlackBox(options, clock=lambda: now[0], sleep=sleep))
    models[-1].ask(["a", "b", "c"])
    assert now == [101.0]
    now[0] = 200.0  # what was not used is not made up for
    models[-1].ask(["d", "e"])
    assert now == [200.5]
    RateLimiter(float("inf"), lambda: 0.0, lambda seconds: pytest.fail("slept")).wait()


def test_a_bad_day_ends_well_within_the_budget(
    endpoint: Endpoint, models: list[HttpBlackBox]
) -> None:
    """Everything at once: every text has its answer, none is asked again, each attempt is paid."""
    rng = random.Random(5)
    kinds = [Odd(429, ""), Odd(500, ""), Odd(body="{"), Odd(delay=0.8), Odd(), Odd(), Odd(), Odd()]
    endpoint.misbehave([rng.choice(kinds) for _ in range(40)])
    models.append(HttpBlackBox(settings(endpoint.url, concurrency=4)))
    meter = Meter(models[-1], Ledger(), Budget(queries=60), retry=Retry(41, 0.0))
    texts = [f"t{i}" for i in range(25)]
    assert meter.answer(texts) == [text.upper() for text in texts]
    sent = len(endpoint.requests)
    refused = sum(odd.status == 429 for i, odd in endpoint.odd.items() if i < sent)
    assert refused > 0
    assert meter.spent.queries == sent - refused <= 60
    meter.answer(texts)
    assert len(endpoint.requests) == sent


def test_the_key_is_nowhere(
    endpoint: Endpoint,
    models: list[HttpBlackBox],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = Odd(401, "x" * 180 + f"no such key: {KEY}")  # cut in the middle of the key
    echoes = [Odd(body=completion(f"your key is {KEY}")), Odd(500, KEY), Odd(body=KEY), echo]
    endpoint.misbehave(echoes)
    models.append(HttpBlackBox(settings(endpoint.url)))
    said = []
    with Ledger(tmp_path / "ledger") as ledger:
        meter = Meter(models[-1], ledger, Budget(), retry=Retry(1))
        said += meter.answer(["a"])
        for text in "bcd":
            with pytest.raises(ServiceError) as caught:
                meter.answer([text])
            said += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    said += [repr(models[-1]), str(vars(models[-1])), repr(models[-1].config), caplog.text]
    service = models[-1]._service
    said += [str(vars(service)), repr(service._client.headers), meter.name]
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(models[-1])
    assert endpoint.keys == [f"Bearer {KEY}"] * 4
    assert said[0] == "your key is ***"
    everything = "".join(said) + stored.decode("latin-1")
    assert "POST" in caplog.text
    assert KEY not in everything
    assert KEY[:6] not in everything


@pytest.mark.parametrize("value", [None, "", " ", "two words", "sk-ä", "sk\nx"])
def test_a_key_that_cannot_be_sent_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(FedfuseError, match=f"variable '{VARIABLE}': expected a key of") as caught:
        HttpBlackBox(settings("http://x"))
    assert not (value or "").strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://x"}, "url: expected http or https"),
        ({"url": "https://me:secret@x/v1"}, "no user, password, query"),
        ({"url": "https://x/v1?key=secret"}, "no user, password, query"),
        ({"url": "x"}, "url: expected"),
        ({"url": "http://x:port"}, "url: expected"),
        ({"model": ""}, "model: expected text that is not empty"),
        ({"max_tokens": 0}, "max-tokens: expected at least 1, got 0"),
        ({"concurrency": 0}, "concurrency: expected at least 1, got 0"),
        ({"timeout": 0.0}, "timeout: expected above 0, got 0.0"),
        (
            {"requests_per_minute": float("nan")},
            "requests-per-minute: expected at least 0",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FedfuseError, match=message) as caught:
        HttpBlackBox(BlackBoxConfig(**{"url": "http://x", "model": "m"} | options))
    assert "secret" not in str(caught.value)
