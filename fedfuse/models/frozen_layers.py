"""The frozen first layers of a model, run once: what they make of a text is kept.

Where only the last layers have an adapter, the hidden states below are the same in every pass of a
run. Any causal LM whose layers are a plain list can start from such states: it runs as always, but
its frozen layers hand on what they are given and compute nothing. Whether that gives the model's
own results is tried on every model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedfuse.models.head import base_of, hidden_states, without_cache
from fedfuse.models.layer_stack import layer_stack, num_frozen

logger = logging.getLogger(__name__)


class _Reached(Exception):
    """Not an error: ends a forward pass at the first layer that is trained."""


class FrozenLayers:
    """The layers of a model below the first that is trained.

    Attributes:
        number: how many they are, at least 1.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, number: int) -> None:
        self.number = number
        self._model = model
        self._frozen, self._first = list(layers[:number]), layers[number]
        self._rest: tuple[Any, ...] | None = ()  # what the last one returns beside the states

    @torch.no_grad()
    def states(
        self, input_ids: Int64[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """``[B, L, d]`` what the frozen layers make of texts; the others do not run."""
        found: list[Tensor] = []

        def see_output(_module: Any, _given: Any, output: Any) -> None:
            # Of attention weights and the like is none; whether any are read shows in the check.
            more = output[1:] if isinstance(output, tuple | list) else None
            self._rest = (
                None if more is None else tuple(None if isinstance(m, Tensor) else m for m in more)
            )

        def stop(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.extend(each for each in (*given, *named.values()) if isinstance(each, Tensor))
            raise _Reached

        hooks = [
            self._frozen[-1].register_forward_hook(see_output),
            self._first.register_forward_pre_hook(stop, with_kwargs=True),
        ]
        backbone: Any = base_of(self._model)
        backbone = backbone.base_model
        try:
            backbone(input_ids=input_ids, **without_cache(backbone))
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found[0]

    @contextmanager
    def given(self, states: Float[Tensor, "batch length width"]) -> Iterator[None]:
        """Context in which forward passes begin behind the frozen layers, with these states."""
        output = states if self._rest is None else (states, *self._rest)
        before = [vars(layer).get("forward") for layer in self._frozen]
        try:
            for layer in self._frozen:
                layer.forward = lambda *_given, **_named: output
            yield
        finally:
            for layer, own in zip(self._frozen, before, strict=True):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own

    def check(self, input_ids: Int64[Tensor, "batch length"]) -> str:
        """Compare passes that begin behind the frozen layers with whole ones.

        Args:
            input_ids: texts to try it on.

        Returns:
            What is wrong, or nothing.
        """
        try:
            with torch.no_grad():
                right = hidden_states(self._model, input_ids)
                states = self.states(input_ids)
                if states.shape[:2] != input_ids.shape or states.ndim != 3:
                    return f"its layers pass on states of shape {list(states.shape)}"
                with self.given(states):
                    found = hidden_states(self._model, input_ids)
                with self.given(torch.zeros_like(states)):
                    ignored = hidden_states(self._model, input_ids)
        except Exception as error:  # whatever a family's own code raises
            return f"it cannot begin there: {type(error).__name__}: {error}"
        difference = (found - right).abs().max().item()
        allowed = torch.finfo(right.dtype).eps ** 0.5 * max(1.0, right.abs().max().item())
        if not difference <= allowed:
            return f"it gives other hidden states: they differ by {difference:.2g}"
        # Equal results tell nothing of a model that computes them anew.
        if (ignored - right).abs().max() <= allowed:
            return "it does not read the states that it is given"
        return ""


def frozen_layers(
    name: str, model: nn.Module, vocab_size: int, device: torch.device
) -> FrozenLayers | None:
    """The frozen first layers of a model; None, with a line in the log, where they must run.

    Args:
        name: the model's name.
        model: an adapted model, in evaluation mode.
        vocab_size: number of token ids that it knows.
        device: device of its inputs.
    """
    stack, number = layer_stack(base_of(model)), num_frozen(model)
    if stack is None or not number:
        return None
    frozen = FrozenLayers(model, stack.layers, number)
    input_ids = torch.arange(32, device=device).view(2, 16) * 7 % vocab_size
    wrong = frozen.check(input_ids)
    if not wrong:
        return frozen
    logger.warning("%s: its %d frozen layers run in every pass: %s", name, number, wrong)
    return None
