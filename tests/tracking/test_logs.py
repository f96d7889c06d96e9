"""Lines of the server's log that machines read."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError
from fedfuse.tracking.logs import JsonLines, now
from tests.federations import federate, tiny_builtin
from tests.strategies.saboteur import sabotage
from tests.strategies.test_faults import SHORT, raises

__all__ = ["tiny_builtin"]


def line(**more: Any) -> dict[str, Any]:
    record = logging.makeLogRecord({"name": "strategies", "levelname": "INFO", "msg": "n", **more})
    return dict(json.loads(JsonLines().format(record)))


def test_a_line_says_what_the_process_is_at() -> None:
    def at_work() -> None:
        assert line(msg="%d of 5", args=(2,))["message"] == "2 of 5"
        assert not {"run", "round", "phase", "client"} & line().keys()
        now(run="quickstart")
        now(round=1, phase="train.local")
        found = line(client="3", created=0.5)
        assert found == {
            "time": "1970-01-01T00:00:00.500+00:00",
            "level": "info",
            "logger": "strategies",
            "message": "n",
            "run": "quickstart",
            "round": 1,
            "phase": "train.local",
            "client": "3",
        }
        try:
            raise ValueError("wrong")
        except ValueError:
            assert line(exc_info=sys.exc_info())["error"].endswith("ValueError: wrong")

    contextvars.Context().run(at_work)


@pytest.mark.usefixtures("tiny_builtin")
def test_a_run_is_told_in_lines(tmp_path: Path) -> None:
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonLines().format(record)))

    log, handler = logging.getLogger("strategies"), Keep()
    log.addHandler(handler)
    try:
        federate(
            tmp_path,
            **SHORT,
            log_format="json",
            app=sabotage({1: raises("train.distill")}),
        )
        assert any(isinstance(h.formatter, JsonLines) for h in log.handlers)
    finally:
        log.removeHandler(handler)
        federate(tmp_path, **SHORT)  # Text again, for the tests that follow.
    [failure] = [x for x in found if x["level"] == "warning"]
    wanted = {"run": "quickstart", "round": 1, "phase": "train.distill", "client": "1"}
    assert wanted.items() <= failure.items()


def test_there_are_two_forms() -> None:
    with pytest.raises(FedfuseError, match="log-format: expected 'text', 'json', got 'xml'"):
        parse({"log-format": "xml"})
