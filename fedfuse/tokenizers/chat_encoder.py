"""Chats as token ids: the turns before an answer, and the answer with what stands right before it.

The two are tokenized apart, so that others, who do not know the template, find the same tokens of
the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fedfuse.tokenizers.chat import ChatFormat, Turn
from fedfuse.tokenizers.token_ends import token_ends
from fedfuse.tokenizers.tokenizer import TextTokenizer, TokenizedText
from fedfuse.tokenizers.unspellable import MARK, unmarked

# Stands for a turn where no special token is between its text and the answer: at the beginning of a
# text some tokenizers put a space.
_BEFORE = "x"


def encode_heads(
    tokenizer: TextTokenizer, chat: ChatFormat, chats: Sequence[Sequence[Turn]]
) -> list[list[int]]:
    """Token ids of turns, up to the special token before an answer, that included; none where the
    template is not known.

    Raises:
        FedfuseError: where the template does not take the turns.
    """
    if not chat.template:
        return [[] for _ in chats]
    texts = [chat.head(turns) + _begin(chat) for turns in chats]
    return [encoding.ids for encoding in tokenizer.encode_marked(texts)]


def encode_answers(
    tokenizer: TextTokenizer, chat: ChatFormat, answers: Sequence[str]
) -> list[TokenizedText]:
    """Tokens of ``chat.literal`` and an answer, as they are behind the special token.

    Raises:
        FedfuseError: when the tokenizer cannot represent a text.
    """
    begin, token_bytes = _begin(chat) or _BEFORE, tokenizer.token_bytes
    texts = [chat.literal + unmarked(answer) for answer in answers]
    encodings = tokenizer.encode_marked([begin + text for text in texts])
    result = []
    for text, encoding in zip(texts, encodings, strict=True):
        offsets = encoding.offsets
        # Tokens of what is before, and the space that some tokenizers put in front of it.
        first = sum(end <= len(begin) for _, end in offsets)
        ids = encoding.ids[first:]
        behind = partial(_moved, offsets[first:], len(begin))
        ends = token_ends(text, [token_bytes[i] for i in ids], behind)
        result.append(TokenizedText(np.array(ids, dtype=np.int64), ends))
    return result


def _moved(offsets: Sequence[tuple[int, int]], by: int) -> list[tuple[int, int]]:
    return [(max(begin - by, 0), end - by) for begin, end in offsets]


def _begin(chat: ChatFormat) -> str:
    return MARK + chat.special if chat.special else ""
