"""A selector that learns whom to trust, and keeps what it learned from round to round.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844 (Fusion-X).

Differs from the paper, by default:

- The signal. Learning through the distillation loss rewards candidates that the learning model
  already agrees with. Here a gate learns from the likelihood of the labels under the mixture.
- Cross-fitting (Chernozhukov et al., arXiv 1608.00060). Samples are dealt to K folds for good. The
  gate that weighs a fold is trained on the others and sees its labels in no round.
- No gate sees the score ``exp(-CE)`` of the sample that it weighs: under the labels' likelihood the
  best use of it is to pick whoever happens to give this one label the most, which is MinCE. What
  labels tell comes from other samples, see ``track_record``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray
from torch import nn

from fedfuse.distillation.state import optimizer_moments, restore_optimizer
from fedfuse.errors import FedfuseError
from fedfuse.fusion.evidence import Evidence
from fedfuse.fusion.gate import GateInputs, new_gate, prepare, signal, train_gate
from fedfuse.fusion.network import Perceptron, dynamic_selection
from fedfuse.fusion.selectors import RowWeights, on_rows, unless_alone
from fedfuse.fusion.settings import SelectorSettings

SelectorState = dict[str, ndarray]


@dataclass(frozen=True, slots=True)
class Fit:
    """What one round of learning came to.

    Attributes:
        before: the signal on held-out samples when the round began, nats per label row.
        after: the same at its end.
        importance: ``[C]`` each candidate's share of all weights after the threshold; sums to 1.
    """

    before: float
    after: float
    importance: Float32[ndarray, " candidates"]


class LearnedSelector:
    """One gate per fold, each trained a little further in every round.

    Attributes:
        settings: of networks and training.
        last: what the last call's learning came to.
    """

    def __init__(self, settings: SelectorSettings, seed: int) -> None:
        self.settings = settings
        self.last: Fit | None = None
        self._seed = seed
        self._round = 0
        self._fold: Int64[ndarray, " samples"] = np.empty(0, dtype=np.int64)
        self._gates: list[nn.Module] = []
        self._optimizers: list[torch.optim.AdamW] = []

    def __call__(self, evidence: Evidence) -> RowWeights:
        """Learn from a round's evidence, then weigh its candidates.

        Args:
            evidence: of C candidates on N samples, the same samples in every round.

        Returns:
            ``[T, C]`` weights. Every row sums to one; or to zero, where on no row anybody but the
            learning model is trusted, and nobody teaches.

        Raises:
            FedfuseError: for other samples than before, or another number of candidates where the
                network has a fixed one.
        """
        if not len(self._fold):
            self._fold = deal(evidence.samples, self.settings.folds, self._seed)
        if len(self._fold) != evidence.samples:
            raise FedfuseError(
                f"the selector was trained on {len(self._fold)} samples and is given "
                f"{evidence.samples}; allowed: the same public set in every round"
            )
        inputs = [
            prepare(evidence, self.settings, self._known(k)) for k in range(self.settings.folds)
        ]
        if not self._gates:
            self._build(evidence.candidates, inputs[0].features.shape[2])
        self._check_candidates(evidence.candidates)
        before = self._held_out_loss(inputs)
        for k, (gate, optimizer) in enumerate(zip(self._gates, self._optimizers, strict=True)):
            rng = np.random.default_rng([self._seed, self._round, k])
            train_gate(gate, optimizer, inputs[k], self.settings, rng)
        self._round += 1
        weights = self._weigh(inputs)
        importance = weights.sum(0) / weights.sum()
        self.last = Fit(before, self._held_out_loss(inputs), importance)
        return unless_alone(weights if self.settings.unit == "row" else on_rows(weights, evidence))

    @torch.no_grad()
    def _weigh(self, inputs: list[GateInputs]) -> Float32[ndarray, "units candidates"]:
        """Every unit by the gate that did not see its labels."""
        weights = np.zeros(tuple(inputs[0].usable.shape), dtype=np.float32)
        for gate, part in zip(self._gates, inputs, strict=True):
            units = np.unique(part.unit_of_row[part.held_rows])
            chosen = gate(part.features[units], part.usable[units]).exp()
            weights[units] = dynamic_selection(chosen, self.settings.threshold).numpy()
        return weights

    @torch.no_grad()
    def _held_out_loss(self, inputs: list[GateInputs]) -> float:
        total, rows = 0.0, 0
        for gate, part in zip(self._gates, inputs, strict=True):
            held = part.held_rows
            if len(held):
                log_gate = gate(part.features, part.usable)[part.unit_of_row[held]]
                loss = signal(log_gate, part, held, self.settings.signal)
                total, rows = total + float(loss) * len(held), rows + len(held)
        return total / max(rows, 1)

    def _known(self, k: int) -> Bool[ndarray, " samples"]:
        """The samples whose labels gate k may look at: all others, or all without folds."""
        return self._fold != k if self.settings.folds > 1 else np.ones(len(self._fold), dtype=bool)

    def _build(self, candidates: int, features: int) -> None:
        settings = self.settings
        self._gates = [
            new_gate(settings, candidates, features, self._seed + k) for k in range(settings.folds)
        ]
        self._optimizers = [
            torch.optim.AdamW(
                gate.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
            for gate in self._gates
        ]

    def _check_candidates(self, candidates: int) -> None:
        gate = self._gates[0]
        if isinstance(gate, Perceptron) and gate.candidates != candidates:
            raise FedfuseError(
                f"the selector's perceptron was made for {gate.candidates} candidates and is given "
                f"{candidates}; allowed: the same number in every round, or network equivariant"
            )

    def state(self) -> SelectorState:
        """All that was learned, as flat arrays: weights, optimizer moments, folds, rounds."""
        state: SelectorState = {"round": np.array(self._round), "fold": self._fold.copy()}
        for k, (gate, optimizer) in enumerate(zip(self._gates, self._optimizers, strict=True)):
            for name, value in gate.state_dict().items():
                state[f"gate/{k}/{name}"] = value.numpy().copy()
            moments = optimizer_moments(optimizer, dict(gate.named_parameters()))
            state |= {f"moment/{k}/{name}": value.copy() for name, value in moments.items()}
        return state

    def load(self, state: SelectorState) -> None:
        """Go on where ``state`` was taken, bit for bit.

        Raises:
            FedfuseError: for a state that another kind of selector left.
        """
        self._round, self._fold = int(state["round"]), state["fold"].copy()
        self._gates, self._optimizers = [], []
        shapes = {name: value.shape for name, value in state.items()}
        if self._round == 0:
            return
        perceptron = self.settings.network == "perceptron"
        first = "gate/0/layers.0.weight" if perceptron else "gate/0/embed.weight"
        try:
            self._build(shapes[first][1], shapes[first][1])
            for k, (gate, optimizer) in enumerate(zip(self._gates, self._optimizers, strict=True)):
                weights = _below(state, f"gate/{k}/")
                gate.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in weights.items()})
                moments = _below(state, f"moment/{k}/")
                restore_optimizer(optimizer, dict(gate.named_parameters()), moments)
        except (KeyError, RuntimeError) as error:
            raise FedfuseError(
                f"the selector's state does not fit its settings: {error}; allowed: the state of a "
                "selector of the same network, width, features and folds"
            ) from error


def _below(state: SelectorState, prefix: str) -> SelectorState:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def deal(samples: int, folds: int, seed: int) -> Int64[ndarray, " samples"]:
    """``[N]`` the fold of each sample, evenly at random."""
    return np.random.default_rng([seed, samples]).permutation(samples) % folds
