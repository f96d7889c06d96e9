"""FedAvg of continuous prompts, which clients could tune if the model were no black box.

A baseline for ``FedDTPT``. The prompt is a matrix of embeddings (Lester et al., "The Power of Scale
for Parameter-Efficient Prompt Tuning", arXiv 2104.08691), which clients train by gradients through
the model and the server averages (McMahan et al., arXiv 1602.05629). The loss is that of PEFT's
prompt tuning, whose generation drops the positions of padded batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.errors import check
from fedfuse.feddtpt.label_tasks import LabelledExample, Task
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.models.causal_lm import CausalLM

Embeddings = Float32[ndarray, "tokens width"]


@dataclass(frozen=True, slots=True)
class ContinuousSettings:
    """Training of a continuous prompt by a client in a round.

    Attributes:
        examples: examples that a round's steps see together, at least 1: each is a pass through
            the model, as a query is.
        batch_size: examples per step, at least 1.
        learning_rate: learning rate of AdamW, above 0. Lester et al. find that prompts want a
            large one.
    """

    examples: int = 256
    batch_size: int = 16
    learning_rate: float = 0.03

    def __post_init__(self) -> None:
        good = self.examples >= 1 and self.batch_size >= 1 and self.learning_rate > 0
        expected = "at least 1 example, batches of at least 1, a learning rate above 0"
        check("continuous prompt", self, expected, good)


class ContinuousPrompt:
    """A trainable prompt before every question that a language model is asked.

    The model's own weights get no gradient. The words of a manual prompt are where it begins.

    Args:
        lm: the model.
        task: task, whose questions have no prompt in words here.
        start: manual prompt.
        max_tokens: tokens of an answer.

    Raises:
        FedfuseError: for a start without tokens.
    """

    def __init__(self, lm: CausalLM, task: Task, start: str, max_tokens: int = 8) -> None:
        (encoded,) = lm.tokenizer.encode([start])
        check(f"manual prompt {start!r}", "no tokens", "at least one token", len(encoded.ids))
        self._lm, self._task, self._max_tokens = lm, task, max_tokens
        tokens = torch.from_numpy(encoded.ids.copy()).to(lm.model.device)
        self._trained = nn.Parameter(self._embed(tokens).float().clone())

    @property
    def embeddings(self) -> Embeddings:
        """``[tokens, width]`` the prompt, as clients and server exchange it."""
        return self._trained.detach().cpu().numpy().copy()

    @embeddings.setter
    def embeddings(self, value: Embeddings) -> None:
        with torch.no_grad():
            self._trained.copy_(torch.from_numpy(value))

    def train(
        self, examples: Sequence[LabelledExample], settings: ContinuousSettings, seed: int
    ) -> None:
        """Train for one client's round: AdamW on the likelihood of the labels' words."""
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW([self._trained], settings.learning_rate, weight_decay=0.0)
        for start in range(0, settings.examples, settings.batch_size):
            size = min(settings.batch_size, settings.examples - start)
            chosen = rng.choice(len(examples), size=size, replace=size > len(examples))
            loss = self.loss([examples[place] for place in chosen])
            [self._trained.grad] = torch.autograd.grad(loss, [self._trained])
            optimizer.step()

    def loss(self, examples: Sequence[LabelledExample]) -> Float[Tensor, ""]:
        """Mean cross-entropy of the labels' words, nats per token."""
        tokenizer, prefix = self._lm.tokenizer, len(self._trained)
        words = [f" {self._task.verbalizer[example.label][0]}" for example in examples]
        questions = tokenizer.encode([self._question(example) for example in examples])
        answers = tokenizer.encode(words)
        longest = max(len(q.ids) + len(a.ids) for q, a in zip(questions, answers, strict=True)) + 1
        ids = torch.zeros(len(examples), longest, dtype=torch.int64)
        labels = torch.full((len(examples), prefix + longest), -100)
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            line = [tokenizer.bos_id, *question.ids.tolist(), *answer.ids.tolist()]
            ids[row, : len(line)] = torch.tensor(line)
            end = prefix + len(line)
            labels[row, end - len(answer.ids) : end] = torch.from_numpy(answer.ids.copy())
        # No attention mask: padding is on the right, and what predicts it is not looked at.
        texts = self._embed(ids.to(self._trained.device))
        prompts = self._trained.to(texts.dtype).expand(len(examples), -1, -1)
        model: Any = self._lm.model
        logits = model(inputs_embeds=torch.cat([prompts, texts], dim=1)).logits
        scored = (labels[:, 1:] >= 0).to(logits.device)
        target = labels[:, 1:].to(logits.device)[scored]
        return nn.functional.cross_entropy(logits[:, :-1][scored].float(), target)

    def accuracy(self, examples: Sequence[LabelledExample]) -> float:
        """Share of examples that the model labels rightly, in [0, 1]."""
        prefix = self._trained.detach().to(self._lm.model.dtype)
        answers = LocalBlackBox(self._lm, self._max_tokens, prefix=prefix)
        questions = [self._question(example) for example in examples]
        return self._task.right(answers.answer(questions), examples) / len(examples)

    def _question(self, example: LabelledExample) -> str:
        return self._task.question("", example.text).strip()

    @torch.no_grad()
    def _embed(self, ids: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        embed: Any = self._lm.model.get_input_embeddings()
        found: Tensor = embed(ids)
        return found


def fed_avg_prompts(
    prompt: ContinuousPrompt,
    private: Sequence[Sequence[LabelledExample]],
    public: Sequence[LabelledExample],
    settings: ContinuousSettings,
    rounds: int,
    seed: int,
) -> list[Embeddings]:
    """Average the clients' prompts, weighted by their examples, round after round (FedAvg).

    Args:
        prompt: the first prompt; holds the last one afterwards.
        private: examples of each client.
        public: examples that every client trains on as well.
        settings: training in a client's round.
        rounds: number of rounds.
        seed: seed of all draws.

    Returns:
        The averaged prompt after each round.
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
