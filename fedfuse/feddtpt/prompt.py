"""A discrete prompt, and a client's tuned one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A list of token ids of the masked language model's tokenizer, which all parties share."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TunedPrompt:
    """A client's best prompt, with what it measured.

    Attributes:
        prompt: the best prompt that it found.
        gain: rise in accuracy that the client measured when it put a token in, for each token; 0
            for those that it was given.
        accuracy: accuracy of the prompt, in [0, 1].
        queries: number of black-box calls paid for it.
    """

    prompt: Prompt
    gain: tuple[float, ...]
    accuracy: float
    queries: int
