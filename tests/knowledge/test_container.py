"""Header, fields and checksum: every size is known, and capped, before memory is taken."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.knowledge import container as envelope
from fedfuse.knowledge.container import (
    FIELDS,
    Header,
    pack,
    pack_numbers,
    unpack,
    unpack_numbers,
)

HEADER = Header(8, 4, 3, 2, 5, 9, "the tokenizer", "the public sét")
CONTENT = {name: bytes([number]) * number for number, name in enumerate(FIELDS)}


def signed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_what_is_sealed_comes_back() -> None:
    assert unpack(pack(HEADER, CONTENT)) == (HEADER, CONTENT)


def test_every_truncation_is_refused() -> None:
    message = pack(HEADER, CONTENT)
    for size in range(len(message)):
        with pytest.raises(FedfuseError, match="expected"):
            unpack(message[:size])
    with pytest.raises(FedfuseError, match="checksum"):
        unpack(message + b"x")


def test_every_flipped_bit_is_refused() -> None:
    message = pack(HEADER, CONTENT)
    for bit in range(8 * len(message)):
        broken = bytearray(message)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FedfuseError, match=r"^knowledge.*: expected "):
            unpack(bytes(broken))


def test_another_version() -> None:
    message = bytearray(pack(HEADER, CONTENT))
    message[4] = 1
    with pytest.raises(FedfuseError, match="expected codec version 2, got 1"):
        unpack(bytes(message))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"k": 2**31, "num_rows": 2**31, "num_entries": 2**31},
            "got 4611686018427387904",
        ),
        ({"num_samples": 2**31}, "num_samples: expected at most 16777216.*, got 2147483648"),
        ({"num_entries": 13}, "num_entries: expected 3 to 12.*, got 13"),
        ({"num_entries": 2}, "num_entries: expected 3 to 12.*, got 2"),
        ({"num_tokens": 10}, "num_tokens: expected at most 9.*, got 10"),
        ({"k": 0}, "num_entries: expected 0 to 0.*, got 9"),
        (
            {"k": 2**16, "num_rows": 100, "num_entries": 100},
            "num_entries: expected at most 32.*, got 100",
        ),
    ],
)
def test_sizes_beyond_the_caps(
    change: dict[str, int], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(envelope, "_check_sizes", lambda _: None)
        message = pack(replace(HEADER, **change), CONTENT)
    with pytest.raises(FedfuseError, match=match):
        unpack(message)


def test_fields_longer_than_the_message() -> None:
    message = bytearray(pack(HEADER, CONTENT)[:-4])
    message[26:30] = struct.pack("<I", 2**32 - 1)
    with pytest.raises(FedfuseError, match=r"fields: expected 4294967.*, got \d+ bytes long"):
        unpack(signed(bytes(message)))


def test_fingerprints_that_are_none() -> None:
    message = bytearray(pack(HEADER, CONTENT)[:-4])
    place = message.index(b"the tokenizer")
    text = bytearray(message)
    text[place] = 0xFF
    with pytest.raises(FedfuseError, match=r"tokenizer: expected UTF-8.*, got .*"):
        unpack(signed(bytes(text)))
    message[place - 2 : place] = struct.pack("<H", 2**16 - 1)
    with pytest.raises(FedfuseError, match="public: expected a fingerprint, got cut off"):
        unpack(signed(bytes(message)))
    message[5] = 2
    with pytest.raises(FedfuseError, match=r"logprob_bits: expected 0\.\.1.*, got 2"):
        unpack(signed(bytes(message)))


@given(st.lists(st.integers(0, 2**32 - 1)), st.integers(0, 32))
def test_numbers_come_back(values: list[int], shift: int) -> None:
    numbers = np.array(values, dtype=np.int64) >> shift
    found = unpack_numbers("tokens", pack_numbers(numbers), len(values))
    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == np.int64


@pytest.mark.parametrize(("largest", "width"), [(255, 1), (256, 2), (65535, 2), (65536, 4)])
def test_numbers_take_the_narrowest_type(largest: int, width: int) -> None:
    packed = pack_numbers(np.full(10, largest))
    assert zstandard.get_frame_parameters(packed).content_size == 10 * width


def test_numbers_too_wide_or_of_another_number() -> None:
    packed = pack_numbers(np.array([1, 2, 300]))
    with pytest.raises(FedfuseError, match=r"tokens: expected .* \[3\].*, got 6 bytes"):
        unpack_numbers("tokens", packed, 3, width=1)
    with pytest.raises(FedfuseError, match=r"tokens: expected .* \[4, 8, 16\].*, got 6 bytes"):
        unpack_numbers("tokens", packed, 4)


@pytest.mark.parametrize("packed", [b"", b"zstd", pack_numbers(np.arange(99))[:-3]])
def test_what_zstandard_refuses(packed: bytes) -> None:
    with pytest.raises(FedfuseError, match="tokens: expected zstandard"):
        unpack_numbers("tokens", packed, 99)


def test_a_frame_that_holds_more_than_it_says() -> None:
    frame = pack_numbers(np.arange(99))
    with pytest.raises(FedfuseError, match="tokens: expected zstandard"):
        unpack_numbers("tokens", frame + frame, 99)


@pytest.mark.parametrize("sized", [True, False])
def test_a_decompression_bomb_takes_no_memory(sized: bool) -> None:
    """A gigabyte of zeros is some kilobytes, with its size told or not."""
    writer = zstandard.ZstdCompressor(write_content_size=sized).compressobj(
        **({"size": 2**30} if sized else {})
    )
    chunk = bytes(2**22)
    bomb = b"".join(writer.compress(chunk) for _ in range(2**8)) + writer.flush()
    assert len(bomb) < 2**18
    tracemalloc.start()
    with pytest.raises(FedfuseError, match=r"tokens: expected one of.*, got .* bytes decompressed"):
        unpack_numbers("tokens", bomb, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
