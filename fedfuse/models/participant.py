"""One side of the exchange, server or client: an adapted model, and the data it works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from numpy import ndarray
from peft import PeftModel

from fedfuse.data.sample import Sample
from fedfuse.distillation.encoded import EncodedSet
from fedfuse.distillation.settings import TrainingSettings
from fedfuse.distillation.state import TrainingState
from fedfuse.distillation.training import Teacher, train
from fedfuse.evaluation.scoring import Evaluator, Score
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.causal_lm import adapter_state, load_adapter_state
from fedfuse.tokenization.tokenizer import TextTokenizer

AdapterState = dict[str, ndarray]


class Participant:
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
        autocast: str = "none",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.autocast = autocast
        self.public = self.encode(public)
        self._evaluator = Evaluator(tokenizer, test, questions, max_length)
        self._fresh = adapter_state(model)

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

    def encode(self, samples: Sequence[Sample]) -> EncodedSet:
        """Samples as this model sees them."""
        return EncodedSet(self.tokenizer, samples, self.max_length)

    def learn(
        self,
        data: EncodedSet,
        settings: TrainingSettings,
        *,
        seed: int,
        teacher: Teacher | None = None,
        label_share: float = 1.0,
        replay: EncodedSet | None = None,
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
            label_share=label_share,
            replay=replay,
            autocast=self.autocast,
            state=state,
            on_step=on_step,
        )

    def knowledge(self, k: int, public: EncodedSet | None = None) -> Knowledge:
        """What the model knows about the public set, or about some of it."""
        return extract(self.model, public or self.public, k, self.autocast)

    @torch.no_grad()
    def score(self) -> dict[str, Score]:
        """Test loss and accuracy per domain."""
        return self._evaluator.score(self.model, self.autocast)
