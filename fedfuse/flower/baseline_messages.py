"""What a request for baselines, and the reply to it, carry beside scores."""

from __future__ import annotations

from dataclasses import astuple

from flwr.app import ConfigRecord, RecordDict

from fedfuse.algorithms.effort import Effort
from fedfuse.errors import check


def pack_effort(info: ConfigRecord, stage: str, effort: Effort) -> None:
    """Add to the ``info`` of a reply what the training of a stage took."""
    info[f"{stage}/effort"] = list(astuple(effort))


def unpack_effort(content: RecordDict, stage: str) -> Effort:
    """Read it out of a reply.

    Raises:
        FedfuseError: when it is not four numbers, 0 or more.
    """
    found = content.config_records.get("info", ConfigRecord()).get(f"{stage}/effort")
    values = found if isinstance(found, list) else []
    good = len(values) == 4 and all(isinstance(x, int) and x >= 0 for x in values)
    check(f"{stage}/effort", found, "four whole numbers, 0 or more", good)
    return Effort(*map(int, values))


def unpack_count(content: RecordDict, name: str) -> int:
    """A number out of a request's ``config``: ``steps`` of a round, or ``rounds``.

    Raises:
        FedfuseError: when it does not say.
    """
    found = content.config_records["config"].get(name)
    good = isinstance(found, int) and found >= 0
    check(f"config.{name}", found, "a whole number, 0 or more", good)
    return int(found)  # type: ignore[arg-type]
