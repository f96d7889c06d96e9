"""One side of the federation, server or client: an adapted model and the data it works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import train
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.acceptance import AcceptanceResult, acceptance_test
from fedfuse.evaluation.losses import SampleNLL, sample_nll
from fedfuse.evaluation.options import OptionLogprobs, OptionScorer
from fedfuse.evaluation.scoring import Evaluator, Score
from fedfuse.knowledge.contexts import ContextView, context_losses, context_states
from fedfuse.knowledge.extract import extract, extract_with_contexts
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.adapter_cover import adapter_cover
from fedfuse.models.adapter_folder import weights_fingerprint
from fedfuse.models.causal_lm import (
    AdapterState,
    CausalLM,
    adapter_state,
    load_adapter_state,
    save_adapter,
)
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

T = TypeVar("T")
# Data sets whose states are kept: a round's public samples and the blind questions.
_KEPT_STATES = 2


class LocalModel:
    """A model with a trainable adapter: training, knowledge extraction and evaluation.

    The base weights are frozen and may be shared; everything learned is in ``adapter`` and in the
    states that ``learn`` returns.

    Attributes:
        lm: the adapted model.
        name: name of the base model.
        learns: whether it can be trained; else it is a ``Teacher``.
        max_length: tokens of a sample; what is beyond is cut off.
        public: the public set.
        holdout: samples by which this side judges what training did, if there are any: the server's
            own, or a client's private ones.
    """

    learns = True

    def __init__(
        self,
        lm: CausalLM,
        *,
        public: Sequence[Sample],
        test: Sequence[Sample],
        questions: Sequence[Sample],
        max_length: int,
    ) -> None:
        self.lm, self.name = lm, lm.name
        self._fresh = adapter_state(lm.model)
        self._prepare(public=public, test=test, questions=questions, max_length=max_length)

    def _prepare(
        self,
        *,
        public: Sequence[Sample],
        test: Sequence[Sample],
        questions: Sequence[Sample],
        max_length: int,
    ) -> None:
        self.max_length = max_length
        self.public = self.encode(public)
        self.holdout: TokenizedDataset | None = None
        self._evaluator = Evaluator(self.tokenizer, test, questions, max_length)
        self._states: dict[str, ndarray | None] = {}
        self._asked: tuple[Sequence[Sample], OptionScorer] | None = None
        self._base: tuple[str, Float64[ndarray, " samples"]] | None = None

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return self.lm.tokenizer

    @property
    def fingerprint(self) -> str:
        """Digest of the base model's weights; see ``weights_fingerprint``."""
        return weights_fingerprint(self.lm.name)

    @property
    def cover(self) -> str:
        """What the adapter covers, in words."""
        return str(adapter_cover(self.lm.model))

    @property
    def adapter(self) -> AdapterState:
        """The adapter's weights by name, float32."""
        return adapter_state(self.lm.model)

    @adapter.setter
    def adapter(self, state: AdapterState) -> None:
        load_adapter_state(self.lm.model, state)

    def reset(self) -> None:
        """Back to the untrained adapter, with which the model is its base."""
        self.adapter = self._fresh

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter as PEFT does; see ``models.causal_lm.save_adapter``."""
        save_adapter(self.lm.model, folder)

    def encode(self, samples: Sequence[Sample]) -> TokenizedDataset:
        """Samples as this model sees them."""
        return TokenizedDataset(self.tokenizer, samples, self.max_length)

    def learn(
        self, data: TokenizedDataset, config: TrainingConfig, **options: Any
    ) -> tuple[float, TrainingState]:
        """Train the adapter; the options are those of ``distillation.training.train``."""
        return train(self.lm, data, config, **options)

    def knowledge(self, k: int, public: TokenizedDataset | None = None) -> Knowledge:
        """Knowledge of the public set, or of some of it."""
        return extract(self.lm, public or self.public, k)

    def knowledge_with_contexts(
        self, k: int, public: TokenizedDataset | None = None
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """``knowledge`` and ``context_losses`` in one pass over the texts."""
        return extract_with_contexts(self.lm, public or self.public, k)

    def score(self) -> dict[str, Score]:
        """Test loss and accuracy per domain."""
        return self.evaluate()[0]

    def evaluate(self, before: SampleNLL | None = None) -> tuple[dict[str, Score], SampleNLL]:
        """Scores per domain and ``[N]`` NLL of each test sample; see ``Evaluator.evaluate``."""
        return self._evaluator.evaluate(self.nll, before)

    def train_with_rollback(self, learn: Callable[[], T], seed: int) -> tuple[T, AcceptanceResult]:
        """Learn, and restore the adapter from before if a held-out domain got worse.

        Args:
            learn: changes the adapter.
            seed: of the acceptance test's resampling.

        Returns:
            What ``learn`` returned, and the result of the test.

        Raises:
            FedfuseError: without held-out samples.
        """
        held_out = self.holdout
        if held_out is None:
            raise FedfuseError("acceptance test: expected at least one held-out sample, got none")
        adapter, before = self.adapter, self.losses(held_out)
        result = learn()
        domains = [sample.domain for sample in held_out.samples]
        tested = acceptance_test(before, self.losses(held_out), domains, seed=seed)
        if not tested.keep:
            self.adapter = adapter
        return result, tested

    def nll(self, data: TokenizedDataset) -> SampleNLL:
        """``[N]`` negative log-likelihood of each sample's answer, nats."""
        return sample_nll(self.lm, data)

    def losses(self, data: TokenizedDataset) -> Float64[ndarray, " samples"]:
        """``[N]`` loss of each sample, nats per byte; 0 where nothing is scored."""
        return np.asarray(self.nll(data) / np.maximum(data.label_bytes, 1))

    def base_losses(self, data: TokenizedDataset) -> Float64[ndarray, " samples"]:
        """``losses`` of the model without its adapter; the last data set's are kept."""
        if self._base is None or self._base[0] != data.fingerprint:
            with self.lm.model.disable_adapter():
                self._base = data.fingerprint, self.losses(data)
        return self._base[1]

    def context_losses(
        self, public: TokenizedDataset | None = None
    ) -> Float32[ndarray, " samples"]:
        """Loss of the public prompts; see ``knowledge.contexts``."""
        return context_losses(self.lm, public or self.public)

    def view_contexts(
        self,
        public: TokenizedDataset | None = None,
        loss: Float32[ndarray, " samples"] | None = None,
    ) -> ContextView:
        """Losses and states of the public prompts alone; see ``knowledge.contexts``.

        Args:
            public: the public set, or some of it.
            loss: ``[N]`` result of ``context_losses`` with the current adapter, where it is known.
        """
        data = public or self.public
        state = self.context_states(data)
        return ContextView(self.context_losses(data) if loss is None else loss, state)

    def context_states(self, data: TokenizedDataset) -> Float32[ndarray, "samples width"] | None:
        """``[N, d]`` pooled hidden states of prompts; see ``knowledge.contexts``."""
        # The base does not change, so its states are good for all rounds.
        if data.fingerprint not in self._states:
            if len(self._states) == _KEPT_STATES:
                del self._states[next(iter(self._states))]
            self._states[data.fingerprint] = context_states(self.lm, data)
        return self._states[data.fingerprint]

    def option_logprobs(self, questions: Sequence[Sample]) -> OptionLogprobs:
        """Log-probabilities of the options of questions; see ``OptionScorer``."""
        return self._option_scorer(questions).logprobs(self.nll)

    def texts(self, questions: Sequence[Sample] = ()) -> list[TokenizedDataset]:
        """All that the model is asked about in a run but the public set.

        The test set, the options of its questions, and those of further ones.
        """
        further = [self._option_scorer(questions).texts] if questions else []
        return [*self._evaluator.texts, *further]

    def _option_scorer(self, questions: Sequence[Sample]) -> OptionScorer:
        if self._asked is None or self._asked[0] != questions:
            scorer = OptionScorer(self.tokenizer, questions, self.max_length)
            self._asked = questions, scorer
        return self._asked[1]
