"""Label rows: which rows of a model's input are scored, and where in the text they stand.

The model's input is [BOS] + tokens, and row t predicts token t+1 of the input from tokens 0..t. So
the row that predicts text token j is row j::

    input      BOS    Th     e     cat
    row         0      1     2      3
    predicts    Th     e     cat    -
    byte_start  0      2     3               bytes of text before the predicted token
    byte_end    2      3     7               bytes of text with it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.chat_encoder import encode_answers, encode_heads
from fedfuse.tokenizers.token_ends import UNKNOWN
from fedfuse.tokenizers.tokenizer import TextTokenizer, TokenizedText

IntArray = Int64[ndarray, " n"]


@dataclass(frozen=True, slots=True)
class LabelRows:
    """The label rows of N samples, T in all, as one tokenizer sees them.

    Attributes:
        offsets: ``[N+1]`` rows of sample i are ``offsets[i]:offsets[i+1]``.
        token: ``[T]`` id of the predicted token.
        row: ``[T]`` row inside the model's input; it predicts position ``row + 1`` of the input.
        byte_start: ``[T]`` UTF-8 bytes of the text before the predicted token; -1 where unknown.
        byte_end: ``[T]`` UTF-8 bytes of the text up to the predicted token's end; -1 where unknown.
        begin: ``[N]`` UTF-8 bytes of each text before the input's first token: 0 unless a long
            prompt was cut; -1 where unknown.
    """

    offsets: Int64[ndarray, " n_plus_1"]
    token: Int64[ndarray, " rows"]
    row: Int64[ndarray, " rows"]
    byte_start: Int64[ndarray, " rows"]
    byte_end: Int64[ndarray, " rows"]
    begin: Int64[ndarray, " n"]

    @property
    def sample_of_row(self) -> Int64[ndarray, " rows"]:
        """``[T]`` the sample that each row belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, which: Int64[ndarray, " taken"]) -> LabelRows:
        """The rows of some samples."""
        counts = np.diff(self.offsets)[which]
        offsets = np.concatenate([[0], counts.cumsum()])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[which] - offsets[:-1], counts)
        return LabelRows(
            offsets,
            self.token[rows],
            self.row[rows],
            self.byte_start[rows],
            self.byte_end[rows],
            self.begin[which],
        )


def label_rows(
    tokenizer: TextTokenizer,
    samples: Sequence[Sample],
    max_length: int,
    groups: IntArray | None = None,
) -> tuple[list[IntArray], LabelRows]:
    """Tokenize samples and find their label rows.

    A label row predicts a token that ends after the prompt's last byte: it covers at least one byte
    of the answer. Of a longer text than ``max_length`` the prompt's first tokens are cut off, so
    that it has its end and the whole answer; only of an answer that is longer itself the last
    tokens are, with their rows.

    Args:
        tokenizer: the model's tokenizer.
        samples: N samples.
        max_length: longest input, the begin token included; at least 2.
        groups: ``[N]`` number of each sample's group, whose prompts lose equally many tokens, so
            that answers to one prompt can be compared; without, each loses what it must.

    Returns:
        Input ids of every sample, ``[length_i]`` int64 each, and the label rows.

    Raises:
        FedfuseError: when ``max_length`` is below 2, or the tokenizer has no token to begin with.
    """
    if max_length < 2:
        raise FedfuseError(f"max_length: expected 2 or more, got {max_length}")
    begin = np.array([tokenizer.bos_id], dtype=np.int64)
    texts = _written(tokenizer, samples)
    lengths = np.array([len(text.ids) for text in texts], dtype=np.int64)
    starts = np.concatenate([[0], lengths.cumsum()])  # of each text among the tokens of all
    none = np.empty(0, dtype=np.int64)
    ids = np.concatenate([none, *(text.ids for text in texts)])
    ends = np.concatenate([none, *(text.ends for text in texts)])
    owner = np.repeat(np.arange(len(texts)), lengths)
    prompts = np.array([sample.prompt_bytes for sample in samples], dtype=np.int64)
    token = _after_prompts(ends, owner, prompts)  # places of the tokens to predict
    found, first = np.unique(owner[token], return_index=True)
    prompt_tokens = np.zeros(len(texts), dtype=np.int64)
    prompt_tokens[found] = token[first] - starts[found]
    # What is left has room for one token more: who sees an input without any cannot tell whether
    # its answer was cut.
    cuts = np.where(lengths < max_length, 0, np.minimum(prompt_tokens, lengths - (max_length - 2)))
    if groups is not None and len(groups):
        most = np.zeros(groups.max() + 1, dtype=np.int64)
        np.maximum.at(most, groups, cuts)
        cuts = np.minimum(most[groups], prompt_tokens)
    stops = np.minimum(starts[1:], starts[:-1] + cuts + max_length - 1)
    inputs = [
        np.concatenate([begin, ids[start:stop]])
        for start, stop in zip((starts[:-1] + cuts).tolist(), stops.tolist(), strict=True)
    ]
    token = token[token < stops[owner[token]]]
    sample = owner[token]
    before = np.concatenate([[0], ends])  # of the token before; of a text's first token, 0
    before[starts[:-1]] = 0
    offsets = np.concatenate([[0], np.bincount(sample, minlength=len(texts)).cumsum()])
    return inputs, LabelRows(
        offsets=offsets,
        token=ids[token],
        row=token - starts[sample] - cuts[sample],
        byte_start=before[token],
        byte_end=ends[token],
        begin=before[starts[:-1] + cuts],
    )


def _after_prompts(ends: IntArray, owner: IntArray, prompts: IntArray) -> IntArray:
    """Places, among the tokens of all texts, of those that end after their text's prompt."""
    # An unknown end lies inside a character; the next known end is that character's. A prompt ends
    # between characters, so both are on the same side of it.
    above = 1 + max(ends.max(initial=0), prompts.max(initial=0))  # any end of an earlier text
    known = np.where(ends == UNKNOWN, np.iinfo(np.int64).max, ends + owner * above)
    character = np.minimum.accumulate(known[::-1])[::-1]
    return np.flatnonzero(character > prompts[owner] + owner * above)


def _written(tokenizer: TextTokenizer, samples: Sequence[Sample]) -> list[TokenizedText]:
    """Every sample as the tokenizer's model is given it.

    Places are those of ``Sample.text``; what is before an answer in a chat ends where it begins.
    """
    texts: dict[int, TokenizedText] = {}
    chat = tokenizer.chat
    chats = [i for i, sample in enumerate(samples) if chat and sample.turns]
    other = sorted(set(range(len(samples))) - set(chats))
    encoded = tokenizer.encode([samples[i].text for i in other])
    texts.update(zip(other, encoded, strict=True))
    if chat and chats:
        heads = encode_heads(tokenizer, chat, [samples[i].turns for i in chats])
        tails = encode_answers(tokenizer, chat, [samples[i].answer for i in chats])
        literal = len(chat.literal.encode())
        for i, head, tail in zip(chats, heads, tails, strict=True):
            prompt = samples[i].prompt_bytes
            known = tail.ends != UNKNOWN
            # A space that the template writes belongs to the answer's first token, not to the text.
            ends = np.where(known, np.maximum(tail.ends - literal, 0) + prompt, UNKNOWN)
            ids = np.concatenate([np.array(head, dtype=np.int64), tail.ids])
            before = np.full(len(head), prompt)
            texts[i] = TokenizedText(ids, np.concatenate([before, ends]))
    return [texts[i] for i in range(len(samples))]


def verbatim_rows(
    tokenizer: TextTokenizer, samples: Sequence[Sample], rows: LabelRows
) -> Bool[ndarray, " rows"]:
    """``[T]`` whether a row's label token is the text's own bytes, perhaps behind one space.

    It is not where the tokenizer changes the text (lower case, an unknown token), where a special
    token is written out in the text and found there, or where the ends of a token are unknown.

    Args:
        tokenizer: the tokenizer of the rows.
        samples: the N samples that the rows are of.
        rows: label rows, T in all.
    """
    texts, own = [sample.text.encode() for sample in samples], tokenizer.token_bytes
    special = tokenizer.vocabulary_bytes.special
    found = np.zeros(len(rows.token), dtype=bool)
    columns = np.stack([rows.sample_of_row, rows.token, rows.byte_start, rows.byte_end], axis=1)
    for i, (sample, token, start, end) in enumerate(columns.tolist()):
        if start >= 0 and end >= 0 and token not in special:
            text, piece = texts[sample][start:end], own[token]
            found[i] = piece in (text, b" " + text)
    return found


def unspelled_bytes(
    tokenizer: TextTokenizer,
    samples: Sequence[Sample],
    rows: LabelRows,
    scored: Int64[ndarray, " samples"],
) -> Int64[ndarray, " rows"]:
    """``[T]`` bytes of the answer that a row's label stands for without being them; 0 is good.

    Labels between two places of the text that are known are taken together, as those inside a
    character are: the last has the bytes of all. What a tokenizer drops at the end of an answer is
    the last label's.

    Args:
        tokenizer: the tokenizer of the rows.
        samples: the N samples that the rows are of.
        rows: label rows, T in all.
        scored: ``[N]`` bytes of each answer that its rows are to predict.
    """
    texts, own = [sample.text.encode() for sample in samples], tokenizer.token_bytes
    special = tokenizer.vocabulary_bytes.special
    found = np.zeros(len(rows.token), dtype=np.int64)
    columns = np.stack([rows.sample_of_row, rows.token, rows.byte_start, rows.byte_end], axis=1)
    pieces: list[bytes | None] = []
    begin = 0
    for i, (sample, token, start, end) in enumerate(columns.tolist()):
        if not pieces:
            begin = start
        pieces.append(None if token in special else own[token])
        prompt = samples[sample].prompt_bytes
        if i + 1 == rows.offsets[sample + 1]:
            end = max(end, prompt + int(scored[sample]))
        elif end == UNKNOWN:
            continue
        text = texts[sample][max(begin, 0) : end]
        joined = b"" if None in pieces else b"".join(piece for piece in pieces if piece)
        if joined not in (text, b" " + text):
            found[i] = max(end - max(begin, prompt), 1)
        pieces = []
    return found
