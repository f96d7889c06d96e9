"""Messages of strategy ``feddtpt``: token ids down; token ids, gains and two numbers up.

Every request carries the record ``prompt``. Ids travel as uint32, gains as float16, which has steps
of a thousandth or less: 150 tokens, the most that are allowed, and what Flower puts around them
stay below 2 kB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedfuse.errors import check
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.flower.messages import arrays_to_record, unpack_array, unpack_number

PROMPT = "prompt"


def pack_prompt(content: RecordDict, prompt: Prompt) -> None:
    """Pack a prompt into a request's content."""
    content[PROMPT] = arrays_to_record({"tokens": np.array(prompt.tokens, dtype=np.uint32)})


def unpack_prompt(content: RecordDict) -> Prompt:
    """Unpack the prompt of a message's content.

    Raises:
        FedfuseError: when there is none or it is malformed.
    """
    return Prompt(tuple(unpack_array(content, PROMPT, "tokens", np.uint32).tolist()))


def pack_tuned(content: RecordDict, tuned: TunedPrompt) -> None:
    """Pack a tuned prompt into a reply's content."""
    content[PROMPT] = arrays_to_record(
        {
            "tokens": np.array(tuned.prompt.tokens, dtype=np.uint32),
            "gain": np.array(tuned.gain, dtype=np.float16),
        }
    )
    content["metrics"] = MetricRecord({"accuracy": tuned.accuracy, "queries": tuned.queries})


def unpack_tuned(
    content: RecordDict, fits: Callable[[Prompt], bool], length: int, queries: int
) -> TunedPrompt:
    """Unpack the tuned prompt of a reply's content, and check all of it.

    Args:
        content: content of the reply.
        fits: whether a prompt is made of tokens that may be proposed, and survives as text.
        length: largest number of tokens.
        queries: largest number of queries that its client may have paid for.

    Raises:
        FedfuseError: when there is none, or it is malformed, too long or impossible.
    """
    prompt = unpack_prompt(content)
    tokens = len(prompt.tokens)
    check("prompt.tokens", tokens, f"1 to {length}", 1 <= tokens <= length)
    expected = "tokens that make a text which is tokenized into them"
    check("prompt.tokens", list(prompt.tokens), expected, fits(prompt))
    gain = unpack_array(content, PROMPT, "gain", np.float16)
    good = len(gain) == tokens and (np.abs(gain) <= 1).all()
    expected = f"one number in [-1, 1] for each of {tokens} tokens"
    check("prompt.gain", gain.tolist(), expected, good)
    return TunedPrompt(
        prompt,
        tuple(gain.astype(float).tolist()),
        unpack_number(content, "accuracy", 0, 1),
        int(unpack_number(content, "queries", 0, queries)),
    )


def unpack_registration(content: RecordDict, vocabulary: str) -> tuple[str, str]:
    """Unpack a registration's partition and black box.

    Args:
        content: content of the reply.
        vocabulary: fingerprint of the masked language model's tokenizer, which all must share.

    Raises:
        FedfuseError: when a field is missing, or the tokenizer is another.
    """
    info = content.config_records.get("info", ConfigRecord())
    good = {"partition", "model", "vocabulary"} <= set(info)
    check("info", f"the records {sorted(content)}", "partition, model and vocabulary", good)
    name = "vocabulary of the masked language model (feddtpt.masked-lm)"
    found, expected = repr(str(info["vocabulary"])[:16]), f"the server's, {vocabulary[:16]!r}"
    check(name, found, expected, info["vocabulary"] == vocabulary)
    return str(int(info["partition"])), str(info["model"])  # type: ignore[arg-type]
