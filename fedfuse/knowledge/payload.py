"""Knowledge as it is sent: all of it, or the rows that its receiver does not have yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfuse.errors import FedfuseError
from fedfuse.knowledge import codec
from fedfuse.knowledge.delta import Delta, apply_delta, compute_delta
from fedfuse.knowledge.record import Knowledge, check
from fedfuse.knowledge.top_p import trim


@dataclass(frozen=True, slots=True)
class Payload:
    """Knowledge, or a delta of it, as bytes.

    Attributes:
        message: encoded knowledge (``codec.encode``).
        row_mask: one bit per label row, set where the message has the row; empty when it has all.
        base: digest of the knowledge that the delta applies to; empty for no delta.
    """

    message: bytes
    row_mask: bytes = b""
    base: str = ""


def encode_full(knowledge: Knowledge, logprob_bits: int, top_p: float) -> Payload:
    """Encode all rows.

    Args:
        knowledge: to send.
        logprob_bits: see ``codec.encode``.
        top_p: see ``trim``.
    """
    return Payload(codec.encode(trim(knowledge, top_p), logprob_bits))


def encode_delta(
    knowledge: Knowledge, base: Knowledge, threshold: float, logprob_bits: int, top_p: float
) -> Payload:
    """Encode the rows that differ from ``base``, which the receiver has; see ``compute_delta``."""
    delta = compute_delta(base, trim(knowledge, top_p), threshold)
    bits = np.packbits(delta.row_mask).tobytes()
    return Payload(codec.encode(delta.knowledge, logprob_bits), bits, delta.base)


def decode(
    payload: Payload,
    base: Knowledge | None = None,
    *,
    num_rows: int | None = None,
    k: int | None = None,
) -> Knowledge:
    """Decode a payload; what it claims is not verified yet.

    Args:
        payload: as received.
        base: what the receiver has of the sender's knowledge.
        num_rows: label rows of the whole knowledge; any other number is refused before it takes
            memory.
        k: largest number of entries per row.

    Raises:
        FedfuseError: for a message that ``codec.decode`` refuses, or a delta of something that
            the receiver does not have.
    """
    if not payload.base:
        return codec.decode(payload.message, num_rows=num_rows, k=k)
    if base is None:
        raise FedfuseError("knowledge: expected all rows, as there is no base yet, got a delta")
    found, width = len(payload.row_mask), -(-base.num_rows // 8)
    check("row_mask", f"{found} bytes", width, found == width)
    packed = np.frombuffer(payload.row_mask, dtype=np.uint8)
    row_mask = np.unpackbits(packed, count=base.num_rows) > 0
    new = codec.decode(payload.message, num_rows=int(row_mask.sum()), k=k)
    return apply_delta(base, Delta(row_mask, new, payload.base))
