"""Knowledge as flat arrays for the wire: no pickle, no ragged objects, the narrowest types.

Version 1: float16 log-probabilities, unsigned indices of the narrowest width, losses in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import Knowledge

VERSION = 1
# Nothing larger is decoded: 2**31 entries of k would already be over 8 GB in memory.
MAX_ENTRIES = 2**31
_FLOATS = {"logprobs": np.float16, "residual": np.float16, "label_logprob": np.float32}
_INTEGERS = ("offsets", "indices", "label_bytes")


def encode(knowledge: Knowledge) -> dict[str, ndarray]:
    """Arrays by field name, in wire types.

    Log-probabilities below float16's range (-65504) become -inf.
    """
    wire: dict[str, ndarray] = {}
    for name, values in knowledge.arrays().items():
        if name in _FLOATS:
            with np.errstate(over="ignore"):
                wire[name] = values.astype(_FLOATS[name])
        else:
            wire[name] = _narrowest(values)
    return wire


def decode(wire: Mapping[str, ndarray], *, tokenizer: str, public: str) -> Knowledge:
    """Arrays as ``encode`` made them, back in memory types.

    Raises:
        FedfuseError: for a missing or surplus field, a wrong type or number of dimensions, or a
            size over the cap. Contents are checked by ``Knowledge.validate``.
    """
    expected = {*_FLOATS, *_INTEGERS}
    if set(wire) != expected:
        raise FedfuseError(f"knowledge has fields {sorted(wire)}; allowed: {sorted(expected)}")
    arrays: dict[str, ndarray] = {}
    for name, values in wire.items():
        kinds = "f" if name in _FLOATS else "u"
        dimensions = 2 if name in ("indices", "logprobs") else 1
        if values.dtype.kind not in kinds or values.ndim != dimensions or values.size > MAX_ENTRIES:
            raise FedfuseError(
                f"knowledge.{name} is {values.dtype}{list(values.shape)}; allowed: "
                f"{'float' if kinds == 'f' else 'unsigned integer'}, {dimensions}-dimensional, "
                f"at most {MAX_ENTRIES} entries"
            )
        arrays[name] = values.astype(np.float32 if name in _FLOATS else np.int64)
    if not len(arrays["offsets"]):
        raise FedfuseError("knowledge.offsets is empty; allowed: one more entry than samples")
    return Knowledge(tokenizer=tokenizer, public=public, **arrays)


def _narrowest(values: ndarray) -> ndarray:
    """The same whole numbers in the narrowest unsigned type."""
    largest = int(values.max()) if values.size else 0
    for kind in (np.uint8, np.uint16, np.uint32):
        if largest <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.uint64)
