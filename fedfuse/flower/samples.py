"""The samples that server and clients share, in a message: small, and read once a process."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fedfuse.data.sample import Sample, SharedSamples
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import arrays_to_record, record_to_arrays

_SAMPLES = "samples"
_SETS = ("public", "test", "questions")
# Bytes of text that a receiver unpacks at most, however small the message is.
MAX_TEXT_BYTES = 2**30


def pack_samples(content: RecordDict, shared: SharedSamples) -> None:
    """Add the shared samples to a message's content, as compressed JSON."""
    sets = {name: [_row(sample) for sample in getattr(shared, name)] for name in _SETS}
    packed = zlib.compress(json.dumps(sets, ensure_ascii=False, separators=(",", ":")).encode())
    content[_SAMPLES] = arrays_to_record({"json": np.frombuffer(packed, dtype=np.uint8)})


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
    record = content.get(_SAMPLES)
    if not isinstance(record, ArrayRecord) or set(record) != {"json"}:
        raise FedfuseError(f"expected {_SAMPLES}, got the records {sorted(content)}")
    return _parse(record_to_arrays(record)["json"].tobytes())


@lru_cache(maxsize=2)
def _parse(packed: bytes) -> SharedSamples:
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, MAX_TEXT_BYTES)
        if not unpacking.eof:
            raise ValueError(f"a stream that does not end within {MAX_TEXT_BYTES} bytes")
        sets = json.loads(text)
        shared = SharedSamples(**{name: tuple(map(_sample, sets[name])) for name in _SETS})
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise FedfuseError(f"{_SAMPLES}: expected compressed JSON, got {error}") from error
    for name in ("public", "test"):
        if not getattr(shared, name):
            raise FedfuseError(f"{_SAMPLES}: expected at least one {name} sample, got none")
    return shared


def _row(sample: Sample) -> list[Any]:
    return [sample.prompt, sample.answer, sample.domain, sample.options, sample.label]


def _sample(row: Any) -> Sample:
    prompt, answer, domain, options, label = row
    texts = (prompt, answer, domain, *options)
    if not all(isinstance(text, str) for text in texts) or not isinstance(label, int):
        raise ValueError(f"a sample of {row!r}")
    return Sample(prompt, answer, domain, tuple(options), label)
