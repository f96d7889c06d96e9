"""Knowledge as bytes: versioned, compact, checked before it is believed.

Rows are sent as sets of tokens (``token_index``) and codes of their log-probabilities
(``quantizer``); the order of entries follows from the codes. The label's log-probability is mostly
that of an entry, so only its place is sent. What is left has no structure that pays, and is
entropy-coded (``container.pack_numbers``).

Log-probabilities come back within the precision of the codec, and each row's probabilities are made
to sum to one again, which moves a row by no more than a few roundings. All else comes back exactly.
Entries whose codes are equal come back in the order of their ids.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from fedfuse.knowledge.container import (
    MAX_VOCABULARY,
    Header,
    pack,
    pack_numbers,
    unpack,
    unpack_numbers,
)
from fedfuse.knowledge.quantizer import QUANTIZERS, LogprobQuantizer, nearly_equal
from fedfuse.knowledge.record import MASS_TOLERANCE, Knowledge, check
from fedfuse.knowledge.token_index import TokenIndex, decode_gaps, encode_gaps

# A row, a code and a token together fit one int64 that sorts: 26 bits, 16 and 20 at most.
_CODE_BITS = 16
_TOKEN_BITS = MAX_VOCABULARY.bit_length() - 1

Codes = Int64[ndarray, "rows k"]


def encode(knowledge: Knowledge, logprob_bits: int = 16) -> bytes:
    """Knowledge as one message.

    Args:
        knowledge: well-formed, as ``extract`` makes it; slots at -inf are not sent.
        logprob_bits: bits of a log-probability, 16 or 8.

    Raises:
        FedfuseError: for another number of bits, knowledge that is malformed or too large, or a
            label that is neither as likely as an entry nor less likely than all and than the tail.
    """
    expected = " or ".join(map(str, QUANTIZERS))
    check("logprob_bits", logprob_bits, expected, logprob_bits in QUANTIZERS)
    quantizer = QUANTIZERS[logprob_bits]
    _check_encodable(knowledge)
    codes = quantizer.codes(knowledge.logprobs)  # [T, k], unused slots at quantizer.zero_code
    used = codes < quantizer.zero_code
    # Slots that no row uses are not sent either.
    k = int(used.sum(1).max(initial=min(1, knowledge.k)))
    smallest = np.where(used, codes, 0).max(1, initial=0)  # [T]
    label = quantizer.codes(knowledge.label_logprob)
    tail_logprob = quantizer.codes(knowledge.tail_logprob)
    # Where the label is all that is left, rounding must not make it more likely than that.
    alone = nearly_equal(knowledge.tail_logprob, knowledge.label_logprob)
    tail_logprob = np.where(alone, np.minimum(tail_logprob, label), tail_logprob)
    place, beyond = _encode_labels(codes, np.maximum(smallest, tail_logprob), label, k)
    index, code = _by_token(knowledge.indices, codes, quantizer)
    gaps, remainders = encode_gaps(index, knowledge.num_rows)
    fields = {
        "offsets": pack_numbers(np.diff(knowledge.offsets)),
        "label_bytes": pack_numbers(knowledge.label_bytes),
        "tokens": pack_numbers(np.diff(index.tokens, prepend=-1) - 1),
        "counts": pack_numbers(index.counts - 1),
        "gaps": gaps.tobytes(),
        "remainders": remainders.tobytes(),
        "smallest": pack_numbers(smallest),
        "logprobs": pack_numbers(smallest[index.row] - code),
        "tail_logprob": pack_numbers(tail_logprob),
        "label_place": pack_numbers(place),
        "label_logprob": pack_numbers(beyond),
    }
    header = Header(
        logprob_bits=logprob_bits,
        k=k,
        num_rows=knowledge.num_rows,
        num_samples=knowledge.num_samples,
        num_tokens=len(index.tokens),
        num_entries=len(index.row),
        tokenizer=knowledge.tokenizer,
        public=knowledge.public,
    )
    return pack(header, fields)


def decode(message: bytes, *, num_rows: int | None = None, k: int | None = None) -> Knowledge:
    """The inverse of ``encode``.

    Args:
        message: as received.
        num_rows: label rows that the public set has under the sender's tokenizer, if that is known.
        k: entries of a row that are accepted at most, if that is known; one at least, if not 0.

    Raises:
        FedfuseError: for a message that is damaged, of another version, too large (before its
            contents are decompressed), or that contradicts itself. Whether what it says is about
            the right thing is for ``KnowledgeAligner.verify``.
    """
    header, fields = unpack(message)
    check("num_rows", header.num_rows, num_rows, num_rows in (None, header.num_rows))
    check("k", header.k, f"at most {k}", k is None or header.k <= k)
    check("k", header.k, "at least 1", not k or header.k)
    quantizer = QUANTIZERS[header.logprob_bits]
    sizes = unpack_numbers("offsets", fields["offsets"], header.num_samples)
    check("offsets", int(sizes.sum()), header.num_rows, sizes.sum() == header.num_rows)
    smallest = _unpack_codes("smallest", fields, header.num_rows, quantizer)
    check("smallest", "no probability", "finite values",
           smallest.max(initial=0) < quantizer.zero_code)  # fmt: skip
    indices, codes, kept = _decode_entries(header, fields, smallest, quantizer)
    tail_logprob = _unpack_codes("tail_logprob", fields, header.num_rows, quantizer)
    label = _decode_labels(fields, codes, kept, np.maximum(smallest, tail_logprob), quantizer)

    table = quantizer.logprobs()
    probability = np.exp(table)
    mass = probability[codes].sum(1) + probability[tail_logprob]  # [T]
    wrong = float(np.abs(mass - 1).max(initial=0))
    # Each of k + 1 classes is off by error * p * (1 - log p), in all at most by their entropy's.
    expected = MASS_TOLERANCE + quantizer.error * (2 + np.log(header.k + 1))
    check("mass", f"off by {wrong:.3g}", f"one within {expected:.3g}", wrong <= expected)
    shift = np.log(mass)

    def logprobs(values: Int64[ndarray, " rows"]) -> Float32[ndarray, " rows"]:
        found: ndarray = (table[values] - shift).astype(np.float32)
        return found

    return Knowledge(
        offsets=np.concatenate([[0], sizes.cumsum()]),
        indices=indices,
        logprobs=(table[codes] - shift[:, None]).astype(np.float32),
        tail_logprob=logprobs(tail_logprob),
        label_logprob=logprobs(label),
        label_bytes=unpack_numbers("label_bytes", fields["label_bytes"], header.num_samples),
        tokenizer=header.tokenizer,
        public=header.public,
    )


def _by_token(
    indices: Int64[ndarray, "rows k"], codes: Codes, quantizer: LogprobQuantizer
) -> tuple[TokenIndex, Int64[ndarray, " m"]]:
    """Entries by token and then row, and their codes, by one sort of all three at once."""
    row_bits = len(codes).bit_length()
    slot = np.flatnonzero(codes < quantizer.zero_code)
    row = slot // max(codes.shape[1], 1)
    key = ((indices.ravel()[slot] << row_bits | row) << _CODE_BITS) | codes.ravel()[slot]
    key.sort()
    code, key = key & ((1 << _CODE_BITS) - 1), key >> _CODE_BITS
    token, row = key >> row_bits, key & ((1 << row_bits) - 1)
    again = np.flatnonzero(key[1:] == key[:-1])
    if len(again):
        check("indices", f"{token[again[0]]} twice in row {row[again[0]]}", "once", False)
    first = np.flatnonzero(np.diff(token, prepend=-1))
    counts = np.diff(first, append=len(token))
    return TokenIndex(token[first], counts, row), code


def _decode_entries(
    header: Header,
    fields: dict[str, bytes],
    smallest: Int64[ndarray, " rows"],
    quantizer: LogprobQuantizer,
) -> tuple[Int64[ndarray, "rows k"], Codes, Int64[ndarray, " rows"]]:
    """``[T, k]`` ids and codes, most likely first, and ``[T]`` how many a row has."""
    tokens = (unpack_numbers("tokens", fields["tokens"], header.num_tokens) + 1).cumsum() - 1
    check("tokens", int(tokens.max(initial=0)), f"below {MAX_VOCABULARY}",
           tokens.max(initial=0) < MAX_VOCABULARY)  # fmt: skip
    counts = unpack_numbers("counts", fields["counts"], header.num_tokens) + 1
    check("counts", int(counts.sum()), header.num_entries, counts.sum() == header.num_entries)
    gaps, remainders = (np.frombuffer(fields[name], np.uint8) for name in ("gaps", "remainders"))
    row = decode_gaps(counts, gaps, remainders, header.num_rows)
    kept = np.bincount(row, minlength=header.num_rows)
    found = (int(kept.min(initial=header.k)), int(kept.max(initial=0)))
    least = min(1, header.k)
    good = not header.num_rows or (found[0] >= least and found[1] == header.k)
    check("gaps", f"{found} entries a row", f"({least}, {header.k}), the least and the most", good)
    code = smallest[row] - _unpack_codes("logprobs", fields, header.num_entries, quantizer)
    check("logprobs", int(code.min(initial=0)), "codes from 0", code.min(initial=0) >= 0)

    key = ((row << _CODE_BITS | code) << _TOKEN_BITS) | np.repeat(tokens, counts)
    key.sort()
    slot = np.arange(header.num_entries) - np.repeat(kept.cumsum() - kept, kept)
    place = (key >> (_CODE_BITS + _TOKEN_BITS)) * header.k + slot
    indices = np.zeros((header.num_rows, header.k), dtype=np.int64)
    codes = np.full(indices.shape, quantizer.zero_code)
    indices.ravel()[place] = key & (MAX_VOCABULARY - 1)
    codes.ravel()[place] = key >> _TOKEN_BITS & ((1 << _CODE_BITS) - 1)
    return indices, codes, kept


def _encode_labels(
    codes: Codes, bound: Int64[ndarray, " rows"], label: Int64[ndarray, " rows"], k: int
) -> tuple[Int64[ndarray, " rows"], Int64[ndarray, " explicit"]]:
    """``[T]`` the label's place among the entries, k where it has none; there, its code beyond
    ``bound``."""
    place = (codes < label[:, None]).sum(1)
    explicit = ~(codes == label[:, None]).any(1)
    place[explicit] = k
    beyond = label[explicit] - bound[explicit]
    # Rounding may have moved label and bound towards each other, by one code.
    if beyond.min(initial=0) < -1:
        row = int(np.flatnonzero(explicit)[beyond.argmin()])
        check("label_logprob", f"too likely at row {row}",
               "that of an entry, or at most the smallest and the tail", False)  # fmt: skip
    return place, np.maximum(beyond, 0)


def _decode_labels(
    fields: dict[str, bytes],
    codes: Codes,
    kept: Int64[ndarray, " rows"],
    bound: Int64[ndarray, " rows"],
    quantizer: LogprobQuantizer,
) -> Int64[ndarray, " rows"]:
    """``[T]`` codes of the labels: the inverse of ``_encode_labels``."""
    rows, k = codes.shape
    place = unpack_numbers("label_place", fields["label_place"], rows)
    explicit: Bool[ndarray, " rows"] = place == k
    check("label_place", "that of no entry", f"an entry's, or {k}",
           bool((explicit | (place < kept)).all()))  # fmt: skip
    label = np.empty(rows, dtype=np.int64)
    label[~explicit] = codes[np.flatnonzero(~explicit), place[~explicit]]
    beyond = _unpack_codes("label_logprob", fields, int(explicit.sum()), quantizer)
    label[explicit] = bound[explicit] + beyond
    good = bool(label.max(initial=0) < quantizer.zero_code)
    check("label_logprob", "no probability", "finite values", good)
    return label


def _unpack_codes(
    name: str, fields: dict[str, bytes], count: int, quantizer: LogprobQuantizer
) -> Int64[ndarray, " count"]:
    return unpack_numbers(name, fields[name], count, width=quantizer.bits // 8)


def _check_encodable(knowledge: Knowledge) -> None:
    """What would be garbled silently."""
    knowledge.check_shapes()
    least, most = knowledge.label_bytes.min(initial=0), knowledge.label_bytes.max(initial=0)
    good = least >= 0 and most < 1 << 32
    check("label_bytes", (int(least), int(most)), f"0..{2**32 - 1}", good)
    knowledge.check_values(MAX_VOCABULARY)
    kept = not knowledge.k or bool(np.isfinite(knowledge.logprobs).any(1).all())
    check("logprobs", "a row without an entry", "at least one a row", kept)
