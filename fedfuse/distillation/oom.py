"""Back-off when a training step runs out of memory: the same step in smaller parts."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch means that memory ran out, of a GPU or of the machine."""
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def smaller_parts(lengths: Int64[ndarray, " samples"], max_tokens: int) -> int:
    """Halve the tokens in a part of a step, padding included.

    Args:
        lengths: ``[N]`` tokens of each sample of the step.
        max_tokens: of a part; 0 for all of the step.

    Raises:
        FedfuseError: when each sample was a part alone already.
    """
    longest = int(lengths.max())
    had = min(max_tokens or len(lengths) * longest, len(lengths) * longest)
    if had <= longest:
        raise FedfuseError(
            f"out of memory with a single sample of {longest} tokens: expected a smaller "
            "data.max-length or model, gradient-checkpointing, or a device with more memory"
        )
    return max(had // 2, longest)
