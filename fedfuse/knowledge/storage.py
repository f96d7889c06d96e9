"""Knowledge in a file: the very bytes that go over the wire; or as arrays that keep it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim

# No message that ``decode`` would accept is larger.
MAX_BYTES = 2**31
_TEXT = ("tokenizer", "public")


def save(path: Path, knowledge: Knowledge, logprob_bits: int = 16, top_p: float = 1.0) -> None:
    """Write knowledge as it would be sent; see ``codec.encode`` and ``trim``.

    Raises:
        FedfuseError: when it cannot be encoded or written.
    """
    message = encode(trim(knowledge, top_p), logprob_bits)
    try:
        path.write_bytes(message)
    except OSError as error:
        raise FedfuseError(f"{str(path)!r} cannot be written: {error}") from error


def read_message(path: Path) -> bytes:
    """A saved message, not decoded yet.

    Raises:
        FedfuseError: for a file that cannot be read or is larger than any message.
    """
    try:
        with path.open("rb") as file:
            message = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FedfuseError(f"{str(path)!r}: expected a file of knowledge, got {error}") from error
    if len(message) > MAX_BYTES:
        raise FedfuseError(f"{str(path)!r}: expected at most {MAX_BYTES} bytes, got more")
    return message


def load(path: Path) -> Knowledge:
    """Read knowledge back.

    Raises:
        FedfuseError: when the file cannot be read, or ``codec.decode`` refuses it.
    """
    return decode(read_message(path))


def to_arrays(knowledge: Knowledge) -> dict[str, ndarray]:
    """All fields as flat arrays, which is what survives between messages; nothing is rounded."""
    text = {name: getattr(knowledge, name).encode() for name in _TEXT}
    return knowledge.arrays() | {n: np.frombuffer(v, dtype=np.uint8) for n, v in text.items()}


def from_arrays(arrays: Mapping[str, ndarray]) -> Knowledge:
    """The inverse of ``to_arrays``."""
    fields: dict[str, Any] = dict(arrays)
    fields |= {name: arrays[name].tobytes().decode() for name in _TEXT}
    return Knowledge(**fields)
