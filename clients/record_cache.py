"""A client's copies of knowledge, in its state."""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from fedfuse.flower.messages import arrays_to_record, record_to_arrays
from fedfuse.knowledge.delta import digest
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import from_arrays, to_arrays


class RecordCache:
    """A ``KnowledgeCache`` in ``Context.state``."""

    def __init__(self, records: RecordDict) -> None:
        self._records = records

    def get(self, sender: str) -> Knowledge | None:
        """The copy of a sender's knowledge."""
        record = self._records.get(f"knowledge.{sender}")
        return from_arrays(record_to_arrays(record)) if isinstance(record, ArrayRecord) else None

    def put(self, sender: str, knowledge: Knowledge) -> None:
        """Keep a sender's knowledge."""
        self._records[f"knowledge.{sender}"] = arrays_to_record(to_arrays(knowledge))

    def digest(self, sender: str) -> str:
        """Digest of the copy of a sender's knowledge; empty for none."""
        knowledge = self.get(sender)
        return digest(knowledge) if knowledge else ""

    @property
    def last_sent(self) -> Knowledge | None:
        """Knowledge that this client sent last."""
        return self.get("last-sent")

    @last_sent.setter
    def last_sent(self, knowledge: Knowledge | None) -> None:
        if knowledge is not None:
            self.put("last-sent", knowledge)
