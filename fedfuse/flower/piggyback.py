"""Several phases in one message: what each asks for, or answers, under its own name.

The client does them one after the other and keeps its state once, at the end: a message is done as
a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from fedfuse.errors import FedfuseError
from fedfuse.tracking.checkpoints import strip_prefix

JOINT = "train.joint"
_PHASES = "phases"


def join(parts: Mapping[str, RecordDict]) -> RecordDict:
    """One content out of several.

    Args:
        parts: by phase (``train.local`` and so on), in the order in which they are to be done.
    """
    whole = RecordDict({_PHASES: ConfigRecord({"names": list(parts)})})
    for phase, part in parts.items():
        whole.update({f"{phase}/{name}": record for name, record in part.items()})
    return whole


def split(content: RecordDict) -> dict[str, RecordDict]:
    """The inverse of ``join``.

    Raises:
        FedfuseError: for a content that is not of several phases.
    """
    given = content.config_records.get(_PHASES, ConfigRecord()).get("names")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    if not names:
        raise FedfuseError(f"expected phases with names, got the records {sorted(content)}")
    return {phase: RecordDict(strip_prefix(content, f"{phase}/")) for phase in names}
