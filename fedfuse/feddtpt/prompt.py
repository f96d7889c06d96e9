"""A discrete prompt, and what a client says of the one that it tuned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A list of token ids of the masked language model's tokenizer, which all parties share."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TunedPrompt:
    """What a client sends.

    Attributes:
        prompt: the best one that it found.
        gain: per token, the rise in accuracy that the client measured when it put the token in; 0
            for what it was given.
        accuracy: of the prompt, in [0, 1].
        queries: black-box calls paid for it.
    """

    prompt: Prompt
    gain: tuple[float, ...]
    accuracy: float
    queries: int
