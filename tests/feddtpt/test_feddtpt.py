"""Federations that tune a prompt: in this process, behind HTTP with faults, with odd clients."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord

from fedfuse.cli import simulate as cli
from fedfuse.config.node import parse_client
from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError
from fedfuse.factory import feddtpt as factory
from fedfuse.feddtpt.http_black_box import HttpBlackBox
from fedfuse.flower.messages import arrays_to_record
from fedfuse.http_service import Retry
from fedfuse.report.feddtpt import bytes_per_client_round, global_lines, prompt_rows
from fedfuse.simulation.simulate import absolute_paths, check_inputs
from fedfuse.tracking.run import RunFolder, read_run
from strategies.feddtpt import FedDTPT
from tests.feddtpt.endpoint import Odd, serve
from tests.federations import about, lines
from tests.prompt_federations import KEYS, forget, tune
from tests.prompt_federations import tiny_world as tiny_world
from tests.strategies.saboteur import sabotage

pytestmark = pytest.mark.usefixtures("tiny_world")
KEY = "sk-Very-Secret-0123456789"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_world: None) -> Path:
    """A run with everything: two rounds, baselines, the report."""
    return tune(tmp_path_factory.mktemp("runs"), baselines=True, report=True)


def accounts(ledger: Path) -> dict[str, int]:
    """Queries by account."""
    with sqlite3.connect(ledger) as db:
        return dict(db.execute("SELECT name, queries FROM accounts").fetchall())


def answers(ledger: Path) -> int:
    """Questions that have an answer."""
    with sqlite3.connect(ledger) as db:
        return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])


def evolution(folder: Path) -> list[Any]:
    """All prompts and accuracies of a run, but what they cost."""
    return [
        (line.stage, line.round, line.model, line.tokens, line.test, line.private)
        for line in read_run(folder).prompts
    ]


def test_the_prompt_gets_better_and_its_origin_is_kept(whole: Path) -> None:
    run = read_run(whole)
    assert run.status == "finished"
    assert run.rounds == 2
    manual, *rounds = global_lines(run)
    assert manual.text == "decide the number"
    assert manual.queries == 0
    assert len(rounds) == 2
    assert rounds[-1].test is not None
    assert rounds[-1].test > (manual.test or 0.0)
    assert 0 < rounds[0].queries < rounds[1].queries
    for made, line in zip(run.aggregations, rounds, strict=True):
        assert set(made.scores) == {"previous", "aggregated", "0", "1", "2"}
        assert made.scores[made.chosen] == max(made.scores.values())
        assert {client for token in made.kept for client in token.clients} <= {"0", "1", "2"}
        assert len(made.kept) <= 14
        sent = [p for p in run.prompts if p.round == line.round and p.model != "server"]
        uploaded = [word for p in sent if p.stage == "federated" for word in p.tokens]
        assert [point.token for point in made.uploaded] == uploaded
    tested = [p for p in run.prompts if p.stage == "federated" and p.model != "server"]
    assert [p.test is not None for p in tested] == [False] * 3 + [True] * 3
    kept = json.loads((whole / "server" / "prompt.json").read_text())
    assert kept["text"] == rounds[-1].text
    assert kept["round"] == 2


def test_baselines_are_measured_at_equal_budgets(whole: Path) -> None:
    run = read_run(whole)
    alone = [line for line in run.prompts if line.stage == "standalone"]
    assert [line.model for line in alone] == ["0", "1", "2"]
    assert all(line.queries <= 2 * 200 for line in alone)
    (central,) = (line for line in run.prompts if line.stage == "centralized")
    # Those of all clients, and of the server's choice.
    assert 0.5 * global_lines(run)[-1].queries < central.queries <= global_lines(run)[-1].queries
    assert central.test is not None
    assert [row.name for row in prompt_rows(run)] == [
        *("manual", "1", "2", "clients' own, best", "search alone, best", "centralized")
    ]


def test_nothing_is_asked_twice_and_no_budget_is_passed(whole: Path) -> None:
    for ledger in sorted(whole.glob("clients/*/*/ledger.sqlite")):
        paid = accounts(ledger)
        assert sum(paid.values()) == answers(ledger)
        assert max(paid.values()) <= 200
    server = whole / "server" / "ledger.sqlite"
    assert sum(accounts(server).values()) == answers(server)
    assert set(accounts(server)) == {"validation", "test", "centralized"}


def test_messages_are_small(whole: Path) -> None:
    sizes: dict[tuple[int, str], int] = {}
    for line in lines(whole, "messages"):
        key = line["round"], line["client"]
        sizes[key] = sizes.get(key, 0) + line["sent_bytes"] + line["received_bytes"]
    assert 0 < max(sizes.values()) <= 2000
    assert (bytes_per_client_round(read_run(whole)) or 0) < 1000


def test_the_report_has_the_prompt(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert 'id="prompts"' in page
    assert 'aria-label="Accuracy of the global prompt' in page
    assert 'aria-label="Tokens that clients sent' in page
    assert 'id="results"' not in page
    text = re.sub(r"<[^>]*>", " ", page)
    assert "decide the number" in " ".join(text.split())
    assert (whole / "headline.png").stat().st_size > 5000
    # The section is not there in a run that tunes none.
    run = read_run(whole)
    none: dict[str, Any] = {name: getattr(run, name) for name in RunFolder.__dataclass_fields__}
    assert prompt_rows(RunFolder(**none | {"prompts": [], "aggregations": []})) == []


def test_two_runs_are_alike(whole: Path, tmp_path: Path) -> None:
    again = evolution(tune(tmp_path))
    first = evolution(whole)
    assert again == [line for line in first if line[0] in ("zero-shot", "federated")]


def test_behind_http_with_faults_it_is_the_same_prompt(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Also: no question gets two answers, budgets hold, and the key is nowhere."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FEDFUSE_TEST_KEY", KEY)
    monkeypatch.setattr(Retry, "wait", lambda self, failures, rng: 0.0)
    box = factory.load_backend(_box(whole), "cpu")
    forget()
    faults = (
        Odd(429, "slow down", {"Retry-After": "0"}),
        Odd(500, f"the key {KEY} broke it"),
        Odd(delay=2.5),
        Odd(200, '{"choices": ['),
    )
    one_at_a_time = threading.Lock()

    def answer(text: str) -> str:
        with one_at_a_time:
            return str(box.answer([text])[0])

    with serve(answer) as endpoint:
        endpoint.reason = "length"
        endpoint.misbehave([odd for fault in faults for odd in (fault, *[Odd()] * 12)])
        folder = tune(
            tmp_path,
            black_box__url=endpoint.url,
            black_box__model="tiny",
            black_box__key_variable="FEDFUSE_TEST_KEY",
            black_box__timeout=1.0,
            rounds=1,
        )
        forget()
        assert set(endpoint.keys) == {f"Bearer {KEY}"}
        texts = [request["messages"][-1]["content"] for request in endpoint.requests]
    # Clients' own prompts see the test set after the last round, which is an earlier one here.
    found, expected = (
        [(*line[:4], line[2] == "server" and line[4], line[5]) for line in evolution(run)]
        for run in (folder, whole)
    )
    assert len(found) == 5
    assert found == [line for line in expected if line[1] <= 1]
    assert about(folder)["status"] == "finished"
    [event] = lines(folder, "events")
    assert (event["event"], event["client"]) == ("cut-answers", "server")
    assert "answers ended at black-box.max-tokens = " in event["detail"]
    failed = len(texts) - sum(answers(path) for path in folder.rglob("ledger.sqlite"))
    assert failed >= len(faults)
    for ledger in folder.glob("clients/*/*/ledger.sqlite"):
        assert max(accounts(ledger).values()) <= 200
    out = "".join(capfd.readouterr()) + caplog.text
    assert KEY not in out
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_an_error_of_the_service_does_not_repeat_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FEDFUSE_TEST_KEY", KEY)
    with serve(str) as endpoint:
        endpoint.misbehave([Odd(401, f"no such key: {KEY}")] * 50)
        with pytest.raises(FedfuseError) as failed:
            tune(
                tmp_path,
                black_box__url=endpoint.url,
                black_box__model="tiny",
                black_box__key_variable="FEDFUSE_TEST_KEY",
            )
        forget()
    assert "401" in str(failed.value)
    assert KEY not in f"{failed.value!r} {failed.value.__cause__!r} {caplog.text}"
    assert about(tmp_path / "quickstart")["status"] == "failed"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_key_that_is_not_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FedfuseError, match="'NOT_SET_AT_ALL': expected a key of visible ASCII, got nothing"
    ):
        tune(
            tmp_path,
            black_box__url="http://127.0.0.1:1/v1",
            black_box__key_variable="NOT_SET_AT_ALL",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("aggregation", "choice", "chosen"),
    [
        ("paper", "none", {"aggregated"}),
        ("gain", "aggregated", {"aggregated", "previous"}),
        ("best-client", "all", {"0", "1", "2", "previous"}),
        ("best-client", "none", {"0", "1", "2"}),
    ],
)
def test_ways_to_the_next_prompt(
    tmp_path: Path, aggregation: str, choice: str, chosen: set[str]
) -> None:
    rules = {"feddtpt__aggregation__method": aggregation, "feddtpt__candidates": choice}
    run = read_run(tune(tmp_path, rounds=1, feddtpt__search__queries=40, **rules))
    (made,) = run.aggregations
    assert made.chosen in chosen
    assert bool(made.kept) == (aggregation != "best-client")
    expected = {"none": set(), "aggregated": chosen, "all": chosen}[choice]
    assert set(made.scores) == expected
    validated = accounts(run.folder / "server" / "ledger.sqlite").get("validation", 0)
    assert (validated > 0) == (choice != "none")


def test_one_client_a_round(tmp_path: Path) -> None:
    """In turns, although more are needed to begin with, and its prompt competes as it is."""
    run = read_run(
        tune(
            tmp_path,
            rounds=4,
            feddtpt__search__queries=24,
            clients_per_round=1,
            min_clients=3,
        )
    )
    asked = [line.client for line in run.messages if line.phase == "train.local"]
    assert sorted(asked[:3]) == ["0", "1", "2"]
    # Who is asked about the new prompt searches next, and has its answers already.
    heard = [line.client for line in run.messages if line.phase == "evaluate"]
    assert (heard[:4], len(heard)) == (asked, 5)
    paid = sum(
        sum(accounts(path).values()) for path in run.folder.glob("clients/*/*/ledger.sqlite")
    )
    validated = accounts(run.folder / "server" / "ledger.sqlite")["validation"]
    searched = global_lines(run)[-1].queries - validated
    assert 0 <= paid - searched <= 4  # the last one's private examples
    assert [set(made.scores) for made in run.aggregations] == [
        {"previous", client} for client in asked
    ]


def test_a_clients_nonsense_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    def lie(kind: str, reply: Message) -> None:
        if kind == "train.local":
            reply.content["metrics"] = MetricRecord({"accuracy": 1.5, "queries": 3})

    def special(kind: str, reply: Message) -> None:
        if kind == "train.local":
            tokens = np.array([0, 1], dtype=np.uint32)
            gain = np.zeros(2, dtype=np.float16)
            reply.content["prompt"] = arrays_to_record({"tokens": tokens, "gain": gain})

    app = sabotage({0: lie, 1: special})
    run = read_run(tune(tmp_path, clients=4, app=app, rounds=1, feddtpt__search__queries=24))
    assert sorted((line.client, line.phase) for line in run.failures) == [
        ("0", "train.local"),
        ("1", "train.local"),
    ]
    (made,) = run.aggregations
    assert {point.client for point in made.uploaded} == {"2", "3"}


def test_another_vocabulary_cannot_take_part(tmp_path: Path) -> None:
    def other(kind: str, reply: Message) -> None:
        if kind == "query.register":
            reply.content.config_records["info"]["vocabulary"] = "f" * 64

    run = read_run(
        tune(
            tmp_path,
            app=sabotage({1: other}),
            rounds=1,
            feddtpt__search__queries=24,
            feddtpt__search__patience=1,
        )
    )
    assert [line.phase for line in run.failures] == ["query.register"]
    assert {line.model for line in run.prompts} == {"server", "0", "2"}


def _box(folder: Path) -> Any:
    return parse(about(folder)["config"]).black_box


def test_a_service_is_reached_by_the_config() -> None:
    keys = {"url": "https://m.example/v1/", "model": "a/b", "requests-per-minute": 30}
    box = parse({f"black-box.{key}": value for key, value in keys.items()}).black_box
    backend = factory.load_backend(box, "cpu")
    assert isinstance(backend, HttpBlackBox)
    assert (backend.config.model, backend.config.requests_per_minute) == ("a/b", 30)
    assert backend.config.timeout == 60


def test_the_command_line_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("strategies.app.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr("strategies.app.save_headline", lambda run, stem: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in KEYS.items()}
    keys |= {"rounds": 1, "feddtpt.search.queries": 24, "baselines": "false"}
    sets = [f"{key}={value}" for key, value in keys.items()]
    cli.simulate(None, sets, 2, True, 1, 0.0)
    shown = capsys.readouterr().out
    assert "quickstart: accuracy" in shown
    assert "decide the number" in shown
    assert (tmp_path / "runs" / "quickstart" / "server" / "prompt.json").exists()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"feddtpt.task": "./nowhere"}, "'./nowhere' does not exist"),
        ({"feddtpt.masked-lm": "builtin:bort"}, "got 'builtin:bort'"),
        ({"black-box.model": "builtin:x"}, "got 'builtin:x'"),
        (
            {"black-box.url": "http://127.0.0.1:1", "black-box.key-variable": "NOT_SET_AT_ALL"},
            "'NOT_SET_AT_ALL': expected a key of visible ASCII, got nothing",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_it_begins(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(FedfuseError, match=why):
        check_inputs(parse({"strategy": "feddtpt", **keys}), 2)


def test_a_service_needs_no_model_of_ours(tmp_path: Path) -> None:
    given = {"strategy": "feddtpt", "black-box.url": "http://127.0.0.1:1/v1"}
    config = parse({**given, "black-box.model": "./org/model", "feddtpt.task": "./data"})
    assert FedDTPT.models(config, 2) == ["builtin:masked-bert"]
    (tmp_path / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        absolute = absolute_paths(config)
    assert absolute.black_box.model == "./org/model"
    assert absolute.feddtpt.task == str(tmp_path / "data")


def test_a_machine_may_have_examples_of_its_own(tmp_path: Path) -> None:
    def write(name: str, count: int) -> str:
        records = [
            {"text": f"{name} {n}", "options": ["no", "yes"], "label": n % 2} for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
        return str(tmp_path / f"{name}.jsonl")

    run = {
        "feddtpt.task": write("shared", 300),
        "feddtpt.examples.private": 5,
        "feddtpt.examples.test": 20,
    }
    share = parse_client({"partition-id": 1, "num-partitions": 2}, run)
    own = parse_client({"partition-id": 1, "num-partitions": 2, "data": write("mine", 9)}, run)
    dealt, mine = (factory.private_examples(client) for client in (share, own))
    assert len(dealt) == len(mine) == 5
    assert all(example.text.startswith("shared") for example in dealt)
    assert all(example.text.startswith("mine") for example in mine)
    with pytest.raises(FedfuseError, match="partition-id: expected 0 to 1, got 2"):
        factory.private_examples(parse_client({"partition-id": 2, "num-partitions": 2}, run))
