"""The server's log, for people or for machines."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

# Run, round and phase that the process is at.
_now: ContextVar[dict[str, str | int]] = ContextVar("now")


def now(**facts: str | int) -> None:
    """Set facts of the progress, which every JSON line has."""
    _now.set(_now.get({}) | facts)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message; run, round, phase and client where known."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_now.get({}),
        }
        if client := getattr(record, "client", ""):
            line["client"] = client
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def show(style: str) -> None:
    """Send fedfuse's own messages, and nobody else's, to the standard output.

    Args:
        style: ``text`` or ``json``.
    """
    formatter = JsonLines() if style == "json" else logging.Formatter("%(message)s")
    for name in ("strategies", "fedfuse"):
        log = logging.getLogger(name)
        if not log.handlers:
            log.addHandler(logging.StreamHandler(sys.stdout))
            log.setLevel(logging.INFO)
        log.handlers[0].setFormatter(formatter)
