"""One side of the exchange, server or client: an adapted model, and the data it works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray
from peft import PeftModel

from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import train
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.acceptance import AcceptanceResult, acceptance_test
from fedfuse.evaluation.scoring import Evaluator, SampleNLL, Score, sample_nll
from fedfuse.knowledge.contexts import ContextView, context_losses, context_states
from fedfuse.knowledge.extract import extract, extract_with_contexts
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.causal_lm import adapter_state, load_adapter_state
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

T = TypeVar("T")
AdapterState = dict[str, ndarray]


class LocalModel:
    """A model with a trainable adapter that learns, tells what it knows, and is scored.

    The base weights are frozen and may be shared; everything that a participant learns is in
    ``adapter`` and in the states that ``learn`` returns.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: TextTokenizer,
        *,
        public: Sequence[Sample],
        test: Sequence[Sample],
        questions: Sequence[Sample],
        max_length: int,
        holdout: Sequence[Sample] = (),
        autocast: str = "none",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.autocast = autocast
        self.public = self.encode(public)
        self.holdout: TokenizedDataset | None = self.encode(holdout) if holdout else None
        self._evaluator = Evaluator(tokenizer, test, questions, max_length)
        self._fresh = adapter_state(model)
        self._states: tuple[str, ndarray | None] | None = None

    @property
    def adapter(self) -> AdapterState:
        """The adapter's weights by name, float32."""
        return adapter_state(self.model)

    @adapter.setter
    def adapter(self, state: AdapterState) -> None:
        load_adapter_state(self.model, state)

    def reset(self) -> None:
        """Back to the untrained adapter, with which the model is its base."""
        self.adapter = self._fresh

    def encode(self, samples: Sequence[Sample]) -> TokenizedDataset:
        """Samples as this model sees them."""
        return TokenizedDataset(self.tokenizer, samples, self.max_length)

    def learn(
        self,
        data: TokenizedDataset,
        settings: TrainingConfig,
        *,
        seed: int,
        teacher: SparseDistribution | None = None,
        replay: TokenizedDataset | None = None,
        state: TrainingState | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> tuple[float, TrainingState]:
        """Train the adapter; see ``distillation.training.train``."""
        return train(
            self.model,
            data,
            settings,
            vocab_size=self.tokenizer.vocab_size,
            seed=seed,
            teacher=teacher,
            replay=replay,
            autocast=self.autocast,
            state=state,
            on_step=on_step,
        )

    def knowledge(self, k: int, public: TokenizedDataset | None = None) -> Knowledge:
        """What the model knows about the public set, or about some of it."""
        return extract(self.model, public or self.public, k, self.autocast)

    def knowledge_with_contexts(
        self, k: int, public: TokenizedDataset | None = None
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """The same and the losses of the prompts, in hardly more time than the one."""
        return extract_with_contexts(self.model, public or self.public, k, self.autocast)

    def score(self) -> dict[str, Score]:
        """Test loss and accuracy per domain."""
        return self.measure()[0]

    @torch.no_grad()
    def measure(self, before: SampleNLL | None = None) -> tuple[dict[str, Score], SampleNLL]:
        """The same, and what a later call compares with; see ``Evaluator.measure``."""
        return self._evaluator.measure(self.model, self.autocast, before)

    def train_with_rollback(self, learn: Callable[[], T], seed: int) -> tuple[T, AcceptanceResult]:
        """Learn, and go back to the adapter from before if a held-out domain got worse.

        Args:
            learn: changes the adapter; what it returns is returned.
            seed: of the verdict's resampling.

        Raises:
            FedfuseError: without held-out samples.
        """
        held_out = self.holdout
        if held_out is None:
            raise FedfuseError("acceptance test: no held-out samples; allowed: at least one")
        adapter, before = self.adapter, self._losses(held_out)
        result = learn()
        domains = [sample.domain for sample in held_out.samples]
        verdict = acceptance_test(before, self._losses(held_out), domains, seed=seed)
        if not verdict.keep:
            self.adapter = adapter
        return result, verdict

    def _losses(self, data: TokenizedDataset) -> Float64[ndarray, " samples"]:
        """``[N]`` loss of each sample, nats per byte; 0 where nothing is scored."""
        nats = sample_nll(self.model, data, self.tokenizer.vocab_size, self.autocast)
        return np.asarray(nats / np.maximum(data.label_bytes, 1))

    def context_losses(
        self, public: TokenizedDataset | None = None
    ) -> Float32[ndarray, " samples"]:
        """Loss of the public prompts; see ``knowledge.prompts``."""
        return context_losses(self.model, public or self.public)

    def view_contexts(
        self,
        public: TokenizedDataset | None = None,
        loss: Float32[ndarray, " samples"] | None = None,
    ) -> ContextView:
        """What the model makes of the public prompts alone; see ``knowledge.prompts``.

        Args:
            public: the public set, or some of it.
            loss: ``[N]`` what ``context_losses`` found with the adapter of now, where it is known.
        """
        data = public or self.public
        # The base does not change, so its states are good for all rounds.
        if self._states is None or self._states[0] != data.fingerprint:
            self._states = data.fingerprint, context_states(self.model, data)
        return ContextView(self.context_losses(data) if loss is None else loss, self._states[1])
