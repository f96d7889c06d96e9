"""Knowledge as it is sent from one side to the other: all of it, or what its receiver lacks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.checking import check
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.delta import Update, difference, overlay
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim


@dataclass(frozen=True, slots=True)
class Payload:
    """What travels.

    Attributes:
        message: of ``codec.encode``.
        rows: one bit per label row, set where the message tells it; empty when it tells all.
        before: digest of what the receiver must hold; empty when it need hold nothing.
    """

    message: bytes
    rows: bytes = b""
    before: str = ""


def write(now: Knowledge, wire: str, mass: float) -> Payload:
    """All of it.

    Args:
        now: what to tell.
        wire: how precisely; see ``codec.encode``.
        mass: how much of each row; see ``trim``.
    """
    return Payload(encode(trim(now, mass), wire))


def encode_delta(
    now: Knowledge, held: Knowledge, threshold: float, wire: str, mass: float
) -> Payload:
    """What moved by ``threshold`` or more since the receiver was told; see ``difference``."""
    update = difference(held, trim(now, mass), threshold)
    bits = np.packbits(update.rows).tobytes()
    return Payload(encode(update.knowledge, wire), bits, update.before)


def read(
    payload: Payload,
    held: Knowledge | None = None,
    *,
    rows: int | None = None,
    k: int | None = None,
) -> Knowledge:
    """What the receiver knows after a letter; what it says is not checked yet.

    Args:
        letter: as received.
        held: what the receiver holds of the sender's knowledge.
        rows: label rows that the whole knowledge has; others are refused before they take memory.
        k: entries of a row that it may have.

    Raises:
        FedfuseError: for a message that ``codec.decode`` refuses, or an update of something that
            is not held.
    """
    if not payload.before:
        return decode(payload.message, rows=rows, k=k)
    if held is None:
        raise FedfuseError("knowledge is an update; allowed: all of it, as nothing is held yet")
    width = -(-held.rows // 8)
    check("rows", f"{len(payload.rows)} bytes", width, len(payload.rows) == width)
    told = np.unpackbits(np.frombuffer(payload.rows, dtype=np.uint8), count=held.rows) > 0
    new = decode(payload.message, rows=int(told.sum()), k=k)
    return overlay(held, Update(told, new, payload.before))
