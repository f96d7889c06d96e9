"""A gate that learns how much to trust each candidate, and goes on learning in every round.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844 (Fusion-X).

Differs from the paper, by default:

- The loss. Learning through the distillation loss rewards candidates that the learning model
  already agrees with. Here a gate learns from the likelihood of the labels under the mixture.
- Cross-fitting (Chernozhukov et al., arXiv 1608.00060). Each sample is assigned to one of K folds
  for good. The gate that weighs a fold is trained on the others and sees its labels in no round.
- No gate sees the score ``exp(-CE)`` of the sample that it weighs: under the labels' likelihood the
  best use of it is to pick whoever happens to give this one label the most, which is MinCE. What
  labels tell comes from other samples, see ``neighbour_accuracy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from fedfuse.config.gate import GateConfig
from fedfuse.distillation.optimizer_state import optimizer_moments, restore_optimizer
from fedfuse.errors import FedfuseError, check
from fedfuse.fusion.gating.networks import BatchedPerceptron, dynamic_selection
from fedfuse.fusion.gating.training import (
    GateInputs,
    Gates,
    build_inputs,
    gate_loss,
    new_gates,
    train_gates,
)
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.fusion.weights import RowWeights, zero_if_only_self


@dataclass(frozen=True, slots=True)
class GateUpdate:
    """Result of one round of learning.

    Attributes:
        before: gate loss on held-out samples when the round began, nats per label row.
        after: the same at its end.
        importance: ``[C]`` each candidate's share of all weights after the threshold; sums to 1.
    """

    before: float
    after: float
    importance: Float32[ndarray, " candidates"]


class LearnedGate:
    """One gate per fold, each trained a little further in every round.

    Attributes:
        config: networks and training.
        last: result of the last call's learning.
    """

    def __init__(self, config: GateConfig, seed: int) -> None:
        self.config = config
        self.last: GateUpdate | None = None
        self._seed = seed
        self._round = 0
        self._fold: Int64[ndarray, " samples"] = np.empty(0, dtype=np.int64)
        self._gates: Gates | None = None
        self._optimizer: torch.optim.AdamW

    def __call__(self, stats: StackedStats) -> RowWeights:
        """Learn from a round's evidence, then weigh its candidates.

        Args:
            stats: about C candidates on N samples, the same samples in every round.

        Returns:
            ``[T, C]`` weights. Every row sums to one; or to zero, where on no row anybody but the
            learning model is trusted, and nobody teaches.

        Raises:
            FedfuseError: for other samples than before, or another number of candidates where the
                network has a fixed one.
        """
        if not len(self._fold):
            self._fold = assign_folds(stats.samples, self.config.folds, self._seed)
        found = f"{stats.samples}; all rounds need the same public set"
        expected = f"the {len(self._fold)} samples that it was trained on"
        check("gate", found, expected, stats.samples == len(self._fold))
        train = self._fold != np.arange(self.config.folds)[:, None]
        if self.config.folds == 1:
            train = ~train
        inputs = build_inputs(stats, self.config, train)
        if self._gates is None:
            self._gates = self._build(stats.candidates, inputs.features.shape[3])
        gates = self._gates
        if isinstance(gates, BatchedPerceptron):
            found = f"{stats.candidates}; 'equivariant' takes any number"
            expected = f"{gates.candidates} candidates in every round"
            good = stats.candidates == gates.candidates
            check("gate.network = 'perceptron'", found, expected, good)
        before = self._held_out_loss(gates, inputs)
        rng = np.random.default_rng([self._seed, self._round])
        train_gates(gates, self._optimizer, inputs, self.config, rng)
        self._round += 1
        weights = self._weigh(gates, inputs)
        importance = weights.sum(0) / weights.sum()
        self.last = GateUpdate(before, self._held_out_loss(gates, inputs), importance)
        return zero_if_only_self(stats.to_rows(weights))

    @torch.no_grad()
    def _weigh(self, gates: Gates, inputs: GateInputs) -> Float32[ndarray, "samples candidates"]:
        """Every sample by the gate that did not see its labels."""
        gate = gates(inputs.features, inputs.usable).exp().mT  # [K, N, C]
        chosen = torch.stack([dynamic_selection(one, self.config.threshold) for one in gate])
        weights: Float32[ndarray, "samples candidates"]
        weights = np.zeros(tuple(chosen.shape[1:]), dtype=np.float32)
        for of_gate, held_out in zip(chosen.numpy(), inputs.held_out, strict=True):
            samples = inputs.sample_of_row[held_out].numpy()
            weights[samples] = of_gate[samples]
        return weights

    @torch.no_grad()
    def _held_out_loss(self, gates: Gates, inputs: GateInputs) -> float:
        rows = torch.arange(len(inputs.sample_of_row))
        log_gate = gates(inputs.features, inputs.usable).index_select(2, inputs.sample_of_row)
        losses = gate_loss(log_gate, inputs, rows, self.config.loss)[inputs.held_out]
        return float(losses.mean()) if len(losses) else 0.0

    def _build(self, candidates: int, features: int) -> Gates:
        gates = new_gates(self.config, candidates, features, self._seed)
        self._optimizer = torch.optim.AdamW(
            gates.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,  # steps are many and gates small: one call for all parameters
        )
        return gates

    def state(self) -> dict[str, ndarray]:
        """All that was learned, as flat arrays: weights, optimizer moments, folds, rounds."""
        state: dict[str, ndarray] = {"round": np.array(self._round), "fold": self._fold.copy()}
        if self._gates is not None:
            named = dict(self._gates.named_parameters())
            state |= {f"gate/{n}": value.detach().numpy().copy() for n, value in named.items()}
            moments = optimizer_moments(self._optimizer, named)
            state |= {f"moment/{name}": value.copy() for name, value in moments.items()}
        return state

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken, bit for bit.

        Raises:
            FedfuseError: for a state that another kind of gate left.
        """
        self._round, self._fold = int(state["round"]), state["fold"].copy()
        self._gates = None
        if self._round == 0:
            return
        perceptron = self.config.network == "perceptron"
        first = "gate/layers.0.weight" if perceptron else "gate/embed.weight"
        try:
            inputs = state[first].shape[2]
            gates = self._build(inputs, inputs)
            named = dict(gates.named_parameters())
            for name, parameter in named.items():
                value = torch.from_numpy(state[f"gate/{name}"].copy())
                if value.shape != parameter.shape:
                    raise RuntimeError(f"{name} is {tuple(value.shape)}")
                parameter.data.copy_(value)
            moments = {
                n.removeprefix("moment/"): v for n, v in state.items() if n.startswith("moment")
            }
            restore_optimizer(self._optimizer, named, moments)
            self._gates = gates
        except (KeyError, IndexError, RuntimeError) as error:
            raise FedfuseError(
                "gate state: expected one of the same network, width, features and folds, got "
                f"{error}"
            ) from error


def assign_folds(samples: int, folds: int, seed: int) -> Int64[ndarray, " samples"]:
    """``[N]`` the fold of each sample, evenly at random."""
    return np.random.default_rng([seed, samples]).permutation(samples) % folds
