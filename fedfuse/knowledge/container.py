"""The bytes around knowledge on the wire or in a file: header, fields, checksum.

::

    magic  version  bits  k  rows  samples  tokens  entries  sizes of the fields
    fingerprints of tokenizer and public set, each behind its length
    the fields, one behind the other
    CRC-32 of all that

Every size is in the header, so what a message will take in memory is known, and refused, before any
of it is read. Numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import zstandard
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.record import check

VERSION = 2
# What knowledge may take in memory at most: 12 bytes an entry, 0.8 GB.
MAX_ENTRIES = 2**26
MAX_SAMPLES = 2**24
MAX_VOCABULARY = 2**20
# ``gaps`` and ``remainders`` are bits as they are; all others are ``pack_numbers``.
FIELDS = (
    "offsets", "label_bytes", "tokens", "counts", "gaps", "remainders", "smallest", "logprobs",
    "tail_logprob", "label_place", "label_logprob",
)  # fmt: skip
_MAGIC = b"FFKN"
_HEADER = struct.Struct(f"<4sBB5I{len(FIELDS)}I")
_LENGTH = struct.Struct("<H")
_CHECKSUM = struct.Struct("<I")
_BITS = tuple(QUANTIZERS)
_LEVEL = 1  # of zstandard: what is left to it has no long repeats, so more effort finds nothing


@dataclass(frozen=True, slots=True)
class Header:
    """What a message says of itself.

    Attributes:
        logprob_bits: bits of a log-probability, a key of ``QUANTIZERS``.
        k: largest number of entries in a row.
        num_rows: number of label rows T.
        num_samples: number of samples N.
        num_tokens: number of distinct tokens D.
        num_entries: number of entries M in all rows.
        tokenizer: fingerprint of the tokenizer.
        public: fingerprint of the samples.
    """

    logprob_bits: int
    k: int
    num_rows: int
    num_samples: int
    num_tokens: int
    num_entries: int
    tokenizer: str
    public: str


def pack(header: Header, fields: Mapping[str, bytes]) -> bytes:
    """Header and fields as one message.

    Raises:
        FedfuseError: for knowledge larger than a receiver would take.
    """
    _check_sizes(header)
    sizes = (len(fields[name]) for name in FIELDS)
    numbers = (header.k, header.num_rows, header.num_samples, header.num_tokens, header.num_entries)
    parts = [_HEADER.pack(_MAGIC, VERSION, _BITS.index(header.logprob_bits), *numbers, *sizes)]
    for text in (header.tokenizer, header.public):
        parts += [_LENGTH.pack(len(text.encode())), text.encode()]
    parts += [fields[name] for name in FIELDS]
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(message: bytes) -> tuple[Header, dict[str, bytes]]:
    """The inverse of ``pack``.

    Raises:
        FedfuseError: for anything that ``pack`` did not make, is of another version, was damaged,
            or is too large.
    """
    least = _HEADER.size + 2 * _LENGTH.size + _CHECKSUM.size
    if len(message) < least or message[:4] != _MAGIC:
        raise FedfuseError(
            f"knowledge: expected at least {least} bytes that begin with {_MAGIC!r}, "
            f"got {len(message)} bytes that begin with {message[:4]!r}"
        )
    if message[4] != VERSION:
        raise FedfuseError(f"knowledge: expected codec version {VERSION}, got {message[4]}")
    body, end = message[: -_CHECKSUM.size], message[-_CHECKSUM.size :]
    sent, found = _CHECKSUM.unpack(end)[0], zlib.crc32(body)
    check("checksum", f"{found:08x}", f"{sent:08x}", found == sent)
    _, _, bits, k, rows, samples, tokens, entries, *sizes = _HEADER.unpack_from(body)
    check("logprob_bits", bits, f"0..{len(_BITS) - 1}", bits < len(_BITS))
    place, texts = _HEADER.size, []
    for name in ("tokenizer", "public"):
        start = place + _LENGTH.size
        check(name, "cut off", "a fingerprint", start <= len(body))
        place = start + _LENGTH.unpack_from(body, place)[0]
        try:
            texts.append(body[start:place].decode())
        except UnicodeDecodeError as error:
            raise FedfuseError(f"knowledge.{name}: expected UTF-8, got {error}") from error
    header = Header(_BITS[bits], k, rows, samples, tokens, entries, *texts)
    _check_sizes(header)
    whole = place + sum(sizes)
    check("fields", f"{len(body)} bytes long", f"{whole} bytes", whole == len(body))
    fields = {}
    for name, size in zip(FIELDS, sizes, strict=True):
        fields[name] = body[place : place + size]
        place += size
    most = 8 * len(fields["gaps"])
    check("num_entries", entries, f"at most {most}, one a bit of gaps", entries <= most)
    return header, fields


def pack_numbers(values: Int64[ndarray, " n"]) -> bytes:
    """Whole numbers from 0 to 2**32 - 1: byte planes of the narrowest width, compressed."""
    largest = int(values.max(initial=0))
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
    planes = values.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    return zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())


def unpack_numbers(
    name: str, packed: bytes, count: int, *, width: int = 4
) -> Int64[ndarray, " count"]:
    """The inverse of ``pack_numbers``.

    Args:
        name: of the field, for errors.
        packed: as made.
        count: how many there must be; bounded by the caller.
        width: bytes of a number at most.

    Raises:
        FedfuseError: for anything that ``pack_numbers`` does not make of so many numbers; nothing
            is decompressed that is not of the right size.
    """
    expected = [count * w for w in (1, 2, 4) if w <= width]
    try:
        # The size comes first: zstandard allocates what the frame says, whatever limit is given.
        size = zstandard.get_frame_parameters(packed).content_size
        check(name, f"{size} bytes decompressed", f"one of {expected}", size in expected)
        raw = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FedfuseError(f"knowledge.{name}: expected zstandard, got {error}") from error
    check(name, f"{len(raw)} bytes", f"{size} bytes", len(raw) == size)
    values = np.zeros(count, dtype=np.int64)
    for byte in range(size // count if count else 0):
        plane = np.frombuffer(raw, np.uint8, count, byte * count)
        values |= plane.astype(np.int64) << (8 * byte)
    return values


def _check_sizes(header: Header) -> None:
    rows, samples, entries = header.num_rows, header.num_samples, header.num_entries
    least, room = min(1, header.k) * rows, header.k * rows
    check("k", header.k, "at least 0", header.k >= 0)
    check("k x rows", max(rows, room), f"at most {MAX_ENTRIES}", max(rows, room) <= MAX_ENTRIES)
    check("num_samples", samples, f"at most {MAX_SAMPLES}", samples <= MAX_SAMPLES)
    # A row without an entry says nothing (but of its label, where k is 0).
    check("num_entries", entries, f"{least} to {room}, 1 to k a row", least <= entries <= room)
    most = min(entries, MAX_VOCABULARY)
    check("num_tokens", header.num_tokens, f"at most {most}", header.num_tokens <= most)
