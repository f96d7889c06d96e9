"""Log-probabilities of a prompt's tokens, as services write them.

Two forms of a reply to ``/completions``::

    prompt_logprobs  vLLM: [null, {"464": {"logprob": -1.2, "decoded_token": "The", ...}, ...}, ...]
                     by token id, the k most probable ones and the prompt's own
    logprobs         the first OpenAI form, with "echo": the prompt's tokens as text, their
                     log-probabilities, and {"text": log-probability} of the k most probable ones

Nothing is known of the first token; a service that writes no begin token knows nothing of the
text's first either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfuse.errors import FedfuseError, check
from fedfuse.knowledge.archive import InputKnowledge
from fedfuse.knowledge.record import MASS_TOLERANCE
from fedfuse.knowledge.token_texts import TokenTexts


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What a service says of one position of a prompt.

    Attributes:
        token_id: the prompt's own token.
        token: its log-probability.
        entries: log-probabilities by token id, the prompt's own token among them.
    """

    token_id: int
    token: float
    entries: Mapping[int, float]


# By position of the input; None where nothing is known.
Positions = list[TokenLogprobs | None]


def read_prompt_logprobs(
    found: Sequence[Mapping[str, Mapping[str, Any]] | None], ids: Sequence[int], texts: TokenTexts
) -> Positions:
    """Positions of vLLM's form.

    Args:
        found: ``prompt_logprobs`` of a reply.
        ids: the input's token ids, which were sent.
        texts: tokens of the tokenizer that they are from.

    Raises:
        FedfuseError: for a reply about other tokens, or values that are no log-probabilities.
    """
    _check_length(len(found), len(ids))
    positions: Positions = [None]
    for place, (token_id, row) in enumerate(zip(ids[1:], found[1:], strict=True), 1):
        if row is None:
            raise FedfuseError(
                f"has no log-probabilities at position {place}; vLLM leaves out those of cached "
                "prompts in old versions: start it with --no-enable-prefix-caching"
            )
        entries = {}
        for key, about in row.items():
            number, written = int(key), about.get("decoded_token")
            _check_token(texts, number, written)
            if number < texts.vocab_size:
                entries[number] = float(about["logprob"])
        check("log-probabilities", f"none of token {token_id}", "one", token_id in entries)
        positions.append(_checked(token_id, entries))
    return positions


def read_echo(found: Mapping[str, Any], ids: Sequence[int], texts: TokenTexts) -> Positions:
    """Positions of the first OpenAI form; for the arguments and errors see the other.

    An entry whose text no token or several have is left out: its mass is in the tail.
    """
    tokens, own, top = found["tokens"], found["token_logprobs"], found["top_logprobs"] or []
    first = 0 if texts.agrees(ids[0], tokens[0]) else 1  # no begin token
    length = len(ids) - first
    # Behind the prompt may be the one token that had to be generated.
    if len(tokens) > length + 1 or len(tokens) < length:
        _check_length(len(tokens) + first, len(ids))
    positions: Positions = [None] * (first + 1)
    for place, token_id in enumerate(ids[first:]):
        _check_token(texts, token_id, tokens[place])
        if not place:
            continue
        entries = {}
        for written, logprob in (top[place] or {}).items() if place < len(top) else ():
            if (number := texts.id_of(written)) is not None:
                entries[number] = float(logprob)
        check("log-probability", "none", f"one of token {token_id}", own[place] is not None)
        entries[token_id] = float(own[place])
        positions.append(_checked(token_id, entries))
    return positions


def row_knowledge(
    positions: Positions, rows: Sequence[int], k: int, context_loss: float
) -> InputKnowledge:
    """The k most probable entries of each label row, and the rest as tail.

    Args:
        positions: of one input.
        rows: label rows; row t speaks of position t + 1.
        k: entries of a row, at most.
        context_loss: see ``InputKnowledge``.

    Raises:
        FedfuseError: for a row of which nothing is known.
    """
    found = [positions[row + 1] for row in rows]
    if any(about is None for about in found):
        raise FedfuseError(
            "gives no log-probability of a text's first token: give samples with a prompt"
        )
    known = [about for about in found if about is not None]
    width = min(k, max(len(about.entries) for about in known))
    indices = np.zeros((len(known), width), dtype=np.int64)
    logprobs = np.full((len(known), width), -np.inf)
    label = np.array([about.token for about in known])
    kept = np.zeros(len(known), dtype=bool)
    for row, about in enumerate(known):
        best = sorted(about.entries.items(), key=lambda entry: (-entry[1], entry[0]))[:width]
        indices[row, : len(best)], logprobs[row, : len(best)] = zip(*best, strict=True)
        kept[row] = about.token_id in dict(best)
    rest = np.maximum(1 - np.exp(logprobs).sum(1), 0)
    # A label that is not kept is in the tail, whatever rounding has left of that.
    rest = np.where(kept, rest, np.maximum(rest, np.exp(label)))
    with np.errstate(divide="ignore"):
        tail = np.log(rest)
    return InputKnowledge(
        indices,
        logprobs.astype(np.float32),
        tail.astype(np.float32),
        label.astype(np.float32),
        context_loss,
        k,
    )


def prompt_nats(positions: Positions, first_row: int) -> float:
    """Negative log-likelihood of the tokens before the first label; NaN where one is unknown."""
    before = positions[1 : first_row + 1]
    return -math.fsum(math.nan if about is None else about.token for about in before)


def _checked(token_id: int, entries: Mapping[int, float]) -> TokenLogprobs:
    values = np.array(list(entries.values()))
    good = bool(np.isfinite(entries[token_id]) and (values <= MASS_TOLERANCE).all())  # no NaN
    check("log-probabilities", "others", "numbers that are at most 0, finite for the text", good)
    mass = float(np.exp(values).sum())
    check("probabilities", f"a sum of {mass:.4f}", "at most 1", mass <= 1 + MASS_TOLERANCE)
    at_most = {number: min(value, 0.0) for number, value in entries.items()}
    return TokenLogprobs(token_id, at_most[token_id], at_most)


def _check_length(found: int, expected: int) -> None:
    if found != expected:
        raise FedfuseError(
            f"has another tokenizer than the one that is named: expected {expected} tokens of an "
            f"input, got {found}"
        )


def _check_token(texts: TokenTexts, token_id: int, written: str | None) -> None:
    if not texts.agrees(token_id, written):
        own = repr(texts.text(token_id)) if token_id < texts.vocab_size else "unused"
        raise FedfuseError(
            f"has another tokenizer than the one that is named: expected token {token_id} to be "
            f"{own}, got {written!r}"
        )
