"""Damaged and forged messages are refused, quickly, in little memory, and by nothing but an error.

``FEDFUSE_MUTATIONS`` messages: 2,000 by default, 100,000 in ``make test-slow``.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.top_p import trim
from tests.knowledge.conftest import random_knowledge

MUTATIONS = int(os.environ.get("FEDFUSE_MUTATIONS", "2000"))
# Of the honest message in memory it would be some kilobytes.
MOST_MEMORY = 32 * 2**20
MOST_SECONDS = 2.0


def mutated(message: bytes, rng: np.random.Generator) -> bytes:
    """One to three things done to a message: what wires, disks and enemies do."""
    data = bytearray(message)
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(7), int(rng.integers(len(data) + 1))
        length = int(rng.integers(1, 9))
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = rng.bytes(length)
        elif kind == 5:  # a number of the header
            number = int(rng.choice([0, 1, 255, 2**16, 2**27, 2**31, 2**32 - 1]))
            start = 6 + 4 * int(rng.integers(16))
            data[start : start + 4] = struct.pack("<I", number)
        else:
            data[place:place] = data[place : place + 64]
    return bytes(data)


@pytest.mark.parametrize("forged", [False, True], ids=["damaged", "forged"])
@pytest.mark.parametrize("bits", QUANTIZERS)
def test_nothing_but_a_refusal(bits: int, forged: bool) -> None:
    """With a good checksum some are knowledge still: a log-probability or an id was changed."""
    rng = np.random.default_rng(MUTATIONS)
    messages = [
        encode(trim(random_knowledge(seed, samples=5, rows=40, k=6), mass), bits)
        for seed, mass in enumerate((1.0, 0.9, 0.5))
    ]
    refusals: list[str] = []
    tracemalloc.start()
    try:
        for number in range(MUTATIONS // 4):
            message = messages[number % len(messages)]
            broken = mutated(message, rng)
            if forged:
                broken = broken[:-4] + struct.pack("<I", zlib.crc32(broken[:-4]))
            started = time.monotonic()
            try:
                found = decode(broken)
            except FedfuseError as error:
                refusals.append(str(error))
            else:
                assert forged or broken == message
                mass = np.exp(found.logprobs.astype(np.float64)).sum(1) + np.exp(found.tail_logprob)
                np.testing.assert_allclose(mass, 1, atol=1e-5)
                assert found.offsets[-1] == found.num_rows
            assert time.monotonic() - started < MOST_SECONDS
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert len(refusals) > 0.6 * (MUTATIONS // 4)
    assert all(r.startswith("knowledge") and ": expected " in r for r in refusals)
