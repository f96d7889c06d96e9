"""What strategy ``feddtpt`` sends: token ids down; token ids, gains and two numbers up.

Every request carries the record ``prompt``, by which a client knows what kind of client it is to
be. Ids travel as uint32, gains as float16, which has steps of a thousandth or less: 150 tokens, the
most that are allowed, and what Flower puts around them stay below 2 kB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.flower.messages import arrays_to_record, record_to_arrays, unpack_number

PROMPT = "prompt"


def pack_prompt(content: RecordDict, prompt: Prompt) -> None:
    """Add a prompt to a request's content."""
    content[PROMPT] = arrays_to_record({"tokens": np.array(prompt.tokens, dtype=np.uint32)})


def unpack_prompt(content: RecordDict) -> Prompt:
    """Read a prompt out of a message's content.

    Raises:
        FedfuseError: when there is none or it is malformed.
    """
    return Prompt(tuple(_array(content, "tokens", np.uint32).tolist()))


def pack_tuned(content: RecordDict, tuned: TunedPrompt) -> None:
    """Add a tuned prompt to a reply's content."""
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
    """Read a tuned prompt out of a reply's content, and check all that it says.

    Args:
        content: of the reply.
        fits: whether a prompt is made of tokens that may be proposed, and survives as text.
        length: most tokens.
        queries: most that its client may have paid for.

    Raises:
        FedfuseError: when there is none, or it is malformed, too long or impossible.
    """
    prompt = unpack_prompt(content)
    if not 1 <= len(prompt.tokens) <= length:
        raise FedfuseError(f"prompt.tokens are {len(prompt.tokens)} tokens; allowed: 1 to {length}")
    if not fits(prompt):
        raise FedfuseError(
            f"prompt.tokens are {list(prompt.tokens)}; allowed: tokens that make a text which is "
            "tokenized into them"
        )
    gain = _array(content, "gain", np.float16)
    if gain.shape != (len(prompt.tokens),) or not (np.abs(gain) <= 1).all():
        raise FedfuseError(
            f"prompt.gain is {gain.tolist()} for {len(prompt.tokens)} tokens; "
            "allowed: one number in [-1, 1] for each"
        )
    return TunedPrompt(
        prompt,
        tuple(gain.astype(float).tolist()),
        unpack_number(content, "accuracy", 0, 1),
        int(unpack_number(content, "queries", 0, queries)),
    )


def unpack_registration(content: RecordDict, vocabulary: str) -> tuple[str, str]:
    """Who answers a registration: partition and black box.

    Args:
        content: of the reply.
        vocabulary: fingerprint of the masked language model's tokenizer, which all must share.

    Raises:
        FedfuseError: when it does not say, or has another tokenizer.
    """
    info = content.get("info")
    if not isinstance(info, ConfigRecord) or {"partition", "model", "vocabulary"} - set(info):
        raise FedfuseError(
            f"the message holds {sorted(content)}; allowed: partition, model and vocabulary"
        )
    if info["vocabulary"] != vocabulary:
        raise FedfuseError(
            f"the masked language model's vocabulary is {str(info['vocabulary'])[:16]!r}; "
            f"allowed: the server's, {vocabulary[:16]!r} (prompts.masked-lm)"
        )
    return str(int(info["partition"])), str(info["model"])  # type: ignore[arg-type]


def _array(content: RecordDict, name: str, dtype: type[np.generic]) -> ndarray:
    record = content.get(PROMPT)
    if not isinstance(record, ArrayRecord) or name not in record:
        raise FedfuseError(f"the message holds {sorted(content)}; allowed: a prompt with {name}")
    try:
        array = record_to_arrays(ArrayRecord({name: record[name]}))[name]
    except (ValueError, TypeError, EOFError) as error:
        raise FedfuseError(f"prompt.{name} cannot be read ({error})") from error
    if array.dtype != dtype or array.ndim != 1:
        raise FedfuseError(
            f"prompt.{name} is {array.dtype}{list(array.shape)}; "
            f"allowed: {np.dtype(dtype)}, 1-dimensional"
        )
    return array
