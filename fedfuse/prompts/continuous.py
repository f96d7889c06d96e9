"""FedAvg of continuous prompts: what clients could do if the language model were no black box.

A baseline for ``FedDTPT``. The prompt is a matrix of embeddings (Lester et al., "The Power of Scale
for Parameter-Efficient Prompt Tuning", arXiv 2104.08691; PEFT's prompt tuning), which clients train
by gradients through the model and the server averages (McMahan et al., arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn

from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import CausalLM
from fedfuse.prompts.local_model import LocalModel
from fedfuse.prompts.tasks import Example, Task

Embeddings = Float32[ndarray, "tokens width"]


@dataclass(frozen=True, slots=True)
class ContinuousSettings:
    """How a client trains a continuous prompt in a round.

    Attributes:
        examples: that a round's steps see together, at least 1: each is a pass through the model,
            as a query is.
        batch_size: examples per step, at least 1.
        learning_rate: of AdamW, above 0. Lester et al. find that prompts want a large one.
    """

    examples: int = 256
    batch_size: int = 16
    learning_rate: float = 0.03

    def __post_init__(self) -> None:
        if self.examples < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise FedfuseError(
                f"continuous prompts with {self.examples} examples in batches of "
                f"{self.batch_size} and learning rate {self.learning_rate}; allowed: at least 1, "
                "and a rate above 0"
            )


class ContinuousPrompt:
    """A trainable prompt before every question that a language model is asked.

    The model's own weights are frozen. The words of a manual prompt are where it begins.

    Args:
        lm: the model; becomes part of this.
        task: makes questions, here without a prompt in words.
        start: the manual prompt.
        max_tokens: of an answer.

    Raises:
        FedfuseError: for a start without tokens.
    """

    def __init__(self, lm: CausalLM, task: Task, start: str, max_tokens: int = 8) -> None:
        (encoded,) = lm.tokenizer.encode([start])
        if not len(encoded.ids):
            raise FedfuseError(f"manual prompt {start!r} has no tokens; allowed: at least one")
        self._task, self._tokenizer = task, lm.tokenizer
        embedding = lm.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        tokens = torch.from_numpy(encoded.ids.copy()).to(embedding.weight.device)
        beginning = embedding(tokens).detach().clone()
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(tokens))
        model = get_peft_model(lm.model, config)
        assert isinstance(model, PeftModel)
        self._model = model
        self._trained = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            self._trained.copy_(beginning)
        room = lm.max_length - len(tokens)
        prompted = replace(lm, model=model, max_length=room)  # type: ignore[arg-type]
        self._answers = LocalModel(prompted, max_tokens)

    @property
    def embeddings(self) -> Embeddings:
        """``[tokens, width]`` the prompt: what clients and server exchange."""
        return self._trained.detach().cpu().numpy().copy()

    @embeddings.setter
    def embeddings(self, value: Embeddings) -> None:
        with torch.no_grad():
            self._trained.copy_(torch.from_numpy(value))

    def train(self, examples: Sequence[Example], settings: ContinuousSettings, seed: int) -> None:
        """One client's round: AdamW on the likelihood of the labels' words."""
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW([self._trained], settings.learning_rate, weight_decay=0.0)
        self._model.train()
        for start in range(0, settings.examples, settings.batch_size):
            size = min(settings.batch_size, settings.examples - start)
            chosen = rng.choice(len(examples), size=size, replace=size > len(examples))
            optimizer.zero_grad(set_to_none=True)
            self._loss([examples[place] for place in chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._model.eval()

    def _loss(self, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy of the answers' tokens, nats per token."""
        task, bos = self._task, self._tokenizer.bos_id
        words = [task.verbalizer[example.label][0] for example in examples]
        questions = self._tokenizer.encode([task.question("", e.text).strip() for e in examples])
        answers = self._tokenizer.encode([f" {word}" for word in words])
        device = self._trained.device
        lines = [[bos, *q.ids.tolist(), *a.ids.tolist()] for q, a in zip(questions, answers)]
        longest = max(map(len, lines))
        ids = torch.zeros(len(lines), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (line, answer) in enumerate(zip(lines, answers, strict=True)):
            ids[row, : len(line)] = torch.tensor(line)
            mask[row, : len(line)] = 1
            labels[row, len(line) - len(answer.ids) : len(line)] = torch.from_numpy(
                answer.ids.copy()
            )
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        loss: Tensor = self._model(**{name: value.to(device) for name, value in inputs.items()}).loss
        return loss

    def accuracy(self, examples: Sequence[Example]) -> float:
        """The share of examples that the model labels rightly, in [0, 1]."""
        task = self._task
        questions = [task.question("", example.text).strip() for example in examples]
        return task.right(self._answers.answer(questions), examples) / len(examples)


def fed_avg_prompts(
    prompt: ContinuousPrompt,
    private: Sequence[Sequence[Example]],
    public: Sequence[Example],
    settings: ContinuousSettings,
    rounds: int,
    seed: int,
) -> list[Embeddings]:
    """The averaged prompt after each round, every client counting as its examples are many.

    Args:
        prompt: with the first one; is left with the last.
        private: each client's examples.
        public: that every client trains on as well.
        settings: of a client's round.
        rounds: their number.
        seed: of all draws.
    """
    found = []
    for number in range(rounds):
        given, sizes, sent = prompt.embeddings, [], []
        for client, examples in enumerate(private):
            prompt.embeddings = given
            draws = int(np.random.SeedSequence((seed, number, client)).generate_state(1)[0])
            prompt.train([*examples, *public], settings, draws)
            sizes.append(len(examples))
            sent.append(prompt.embeddings)
        prompt.embeddings = np.average(sent, axis=0, weights=sizes).astype(np.float32)
        found.append(prompt.embeddings)
    return found
