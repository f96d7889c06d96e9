"""Samples in a message, compressed; those that server and clients share are read once a process."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fedfuse.data.sample import Sample, SharedSamples
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import arrays_to_record, record_to_arrays

_SAMPLES, _HELD_OUT = "samples", "held-out"
_SETS = ("public", "test", "questions")
# Bytes of text that a receiver unpacks at most, however small the message is.
MAX_TEXT_BYTES = 2**30


def pack_samples(content: RecordDict, shared: SharedSamples) -> None:
    """Add the shared samples to a message's content, as compressed JSON."""
    _pack(content, _SAMPLES, {name: getattr(shared, name) for name in _SETS})


def pack_held_out(content: RecordDict, samples: Sequence[Sample]) -> None:
    """Add held-out samples to a message's content, as compressed JSON."""
    _pack(content, _HELD_OUT, {_HELD_OUT: samples})


def unpack_held_out(content: RecordDict) -> Sequence[Sample]:
    """Read held-out samples out of a message's content.

    Raises:
        FedfuseError: as ``unpack_samples``.
    """
    return _unpack_sets(_packed(content, _HELD_OUT), _HELD_OUT, (_HELD_OUT,))[_HELD_OUT]


def copy_samples(source: RecordDict, target: RecordDict) -> None:
    """Copy them from one content to another, where there are any."""
    if _SAMPLES in source:
        target[_SAMPLES] = source[_SAMPLES]


def unpack_samples(content: RecordDict) -> SharedSamples:
    """Read the shared samples out of a message's content.

    Returns:
        the same object for the same content, within one process.

    Raises:
        FedfuseError: when there are none, or they are malformed.
    """
    return _shared(_packed(content, _SAMPLES))


@lru_cache(maxsize=2)
def _shared(packed: bytes) -> SharedSamples:
    sets = _unpack_sets(packed, _SAMPLES, _SETS)
    for name in ("public", "test"):
        if not sets[name]:
            raise FedfuseError(f"{_SAMPLES}: expected at least one {name} sample, got none")
    return SharedSamples(**sets)


def _pack(content: RecordDict, record: str, sets: Mapping[str, Sequence[Sample]]) -> None:
    rows = {name: [_row(sample) for sample in samples] for name, samples in sets.items()}
    packed = zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode())
    content[record] = arrays_to_record({"json": np.frombuffer(packed, dtype=np.uint8)})


def _packed(content: RecordDict, record: str) -> bytes:
    found = content.get(record)
    if not isinstance(found, ArrayRecord) or set(found) != {"json"}:
        raise FedfuseError(f"expected {record}, got the records {sorted(content)}")
    return record_to_arrays(found)["json"].tobytes()


def _unpack_sets(packed: bytes, record: str, names: Sequence[str]) -> dict[str, tuple[Sample, ...]]:
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, MAX_TEXT_BYTES)
        if not unpacking.eof:
            raise ValueError(f"a stream that does not end within {MAX_TEXT_BYTES} bytes")
        sets = json.loads(text)
        return {name: tuple(map(_sample, sets[name])) for name in names}
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise FedfuseError(f"{record}: expected compressed JSON, got {error}") from error


def _row(sample: Sample) -> list[Any]:
    row: list[Any] = [sample.prompt, sample.answer, sample.domain, sample.options, sample.label]
    return [*row, sample.turns] if sample.turns else row


def _sample(row: Any) -> Sample:
    prompt, answer, domain, options, label, *chat = row
    turns = tuple((role, text) for role, text in chat[0]) if chat else ()
    texts = (prompt, answer, domain, *options, *(part for turn in turns for part in turn))
    if not all(isinstance(text, str) for text in texts) or not isinstance(label, int):
        raise ValueError(f"a sample of {row!r}")
    return Sample(prompt, answer, domain, tuple(options), label, turns)
