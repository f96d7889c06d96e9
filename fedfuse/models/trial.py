"""A step of training on a few tokens, before there is anything to lose."""

from __future__ import annotations

import numpy as np
import torch

from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.devices import accelerator, all_devices
from fedfuse.models.forward import label_row_logits, label_row_states
from fedfuse.models.layer_stack import train_mode
from fedfuse.tokenizers.dataset import Batch


def check_trains(lm: CausalLM) -> None:
    """Refuse a model that cannot take a step of training as it is set up.

    Some families have no form of some layers in a precision, or take inputs of some lengths only
    when they train. Weights and torch's global generator are left as they were.

    Args:
        lm: a model with an adapter.

    Raises:
        FedfuseError: naming the model, its family and what it raised.
    """
    device = lm.device
    # Two samples of different length, the shorter one padded; and the last row of each.
    input_ids = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]], device=device) % lm.vocab_size
    rows = torch.tensor([4, 2], device=device)
    numbers = torch.arange(2, device=device)
    batch = Batch(input_ids, numbers, rows, numbers, np.arange(2))
    forked = torch.random.fork_rng(all_devices(), device_type=accelerator() or "cuda")
    try:
        with forked, torch.enable_grad():
            train_mode(lm.model)
            states = label_row_states(lm, batch)
            result = states.hidden if states else label_row_logits(lm, batch)
            result.float().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a family's own code raises
        reason = " ".join(str(error).split())[:300]
        kind = lm.model.get_base_model().config.model_type
        weights = str(next(lm.model.parameters()).dtype)[6:]
        setting = f"weights in {weights}, autocast {lm.autocast}"
        raise FedfuseError(
            f"model {lm.name!r} of family {kind}: expected a step of training with {setting}, got "
            f"{type(error).__name__}: {reason}"
        ) from error
    finally:
        lm.model.zero_grad(set_to_none=True)
        lm.model.eval()
