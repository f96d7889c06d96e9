"""A language model in this process as a black box: greedy generation in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig

from fedfuse.errors import check
from fedfuse.feddtpt.black_box import Reply
from fedfuse.models.causal_lm import CausalLM

_SAMPLED = 1009  # every so many values of a tensor go into the fingerprint; a prime


class LocalBlackBox:
    """A ``Backend`` that continues a text; without cache and budget, also a ``BlackBox``.

    Args:
        lm: the model. Its input is ``[BOS] + tokens``, as everywhere in fedfuse; a chat template is
            not applied.
        max_tokens: tokens of an answer, at least 1.
        batch_size: texts at a time, at least 1.
        prefix: ``[P, d]`` embeddings before every text, a continuous prompt.

    Raises:
        FedfuseError: for numbers out of range.
    """

    concurrency = 1

    def __init__(
        self,
        lm: CausalLM,
        max_tokens: int = 8,
        batch_size: int = 32,
        prefix: Float[Tensor, "tokens width"] | None = None,
    ) -> None:
        good = 1 <= max_tokens < lm.max_length and batch_size >= 1
        expected = f"max_tokens from 1 to {lm.max_length - 1} and batch_size from 1"
        check(f"local model {lm.name!r}", f"{max_tokens} and {batch_size}", expected, good)
        self.batch_size = batch_size
        # Of the weights, not only the folder: a model trained anew must not find the old answers.
        self.name = f"local {_fingerprint(lm)} greedy max_tokens={max_tokens}"
        self._lm = lm
        self._prefix = prefix
        self._max_tokens = max_tokens
        self._ends = _end_ids(lm)
        model: Any = lm.model  # partly untyped
        config: Any = GenerationConfig
        rows = model.get_output_embeddings().weight.shape[0]
        self._generation = config(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            eos_token_id=self._ends or None,
            pad_token_id=self._ends[0] if self._ends else 0,
            # Rows of the head that are no tokens.
            suppress_tokens=list(range(lm.vocab_size, rows)) or None,
        )

    def most_tokens(self, text: str) -> int:
        """Tokens of the question and of the longest answer."""
        return len(self._ids(text)) + self._max_tokens

    def answer(self, texts: Sequence[str]) -> list[str]:
        """One answer per text, in their order."""
        starts = range(0, len(texts), self.batch_size)
        parts = (texts[first : first + self.batch_size] for first in starts)
        return [reply.text for part in parts for reply in self.ask(part)]

    @torch.no_grad()
    def ask(self, texts: Sequence[str]) -> list[Reply]:
        """One reply per text, in their order.

        Raises:
            FedfuseError: for a text that is too long for the model.
        """
        if not texts:
            return []
        prefix = 0 if self._prefix is None else len(self._prefix)
        questions = [[0] * prefix + self._ids(text) for text in texts]
        longest = max(map(len, questions))
        device = self._lm.model.device
        # Padded on the left: all answers begin in the same column.
        ids = torch.zeros(len(texts), longest, dtype=torch.int64, device=device)
        mask = torch.zeros_like(ids)
        for row, question in enumerate(questions):
            ids[row, longest - len(question) :] = torch.tensor(question)
            mask[row, longest - len(question) :] = 1
        model: Any = self._lm.model
        options = {"attention_mask": mask, "generation_config": self._generation}
        if self._prefix is None:
            out = model.generate(ids, **options)[:, longest:]
        else:
            inputs = model.get_input_embeddings()(ids)
            for row, question in enumerate(questions):
                start = longest - len(question)
                inputs[row, start : start + prefix] = self._prefix
            out = model.generate(inputs_embeds=inputs, **options)
        return [
            self._reply(question, answer)
            for question, answer in zip(questions, out.tolist(), strict=True)
        ]

    def _reply(self, question: list[int], answer: list[int]) -> Reply:
        end = next((i for i, token in enumerate(answer) if token in self._ends), len(answer))
        tokens = len(question) + min(end + 1, len(answer))
        return Reply(self._lm.tokenizer.decode(answer[:end]), tokens)

    def _ids(self, text: str) -> list[int]:
        (encoded,) = self._lm.tokenizer.encode([text])
        prefix = 0 if self._prefix is None else len(self._prefix)
        room = self._lm.max_length - self._max_tokens - prefix
        name, size = f"text {text[:60]!r}... for {self._lm.name!r}", len(encoded.ids)
        check(name, size, f"at most {room - 1} tokens, so that an answer fits in", size < room)
        return [self._lm.tokenizer.bos_id, *encoded.ids.tolist()]


def _end_ids(lm: CausalLM) -> list[int]:
    """Ids of the tokens that end an answer: the model's own, and the tokenizer's."""
    generation: Any = lm.model.generation_config
    own = generation.eos_token_id if generation is not None else None
    listed = [] if own is None else [own] if isinstance(own, int) else list(own)
    eos = lm.tokenizer.special_ids.get("eos")
    return sorted({*listed, *([] if eos is None else [eos])})


def _fingerprint(lm: CausalLM) -> str:
    """SHA-256 (16 hex) of the tokenizer and of some weights, which all change by training."""
    digest = hashlib.sha256(lm.tokenizer.fingerprint.encode())
    for name, tensor in sorted(lm.model.state_dict().items()):
        some = tensor.detach().flatten()[::_SAMPLED].to("cpu", torch.float64)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]
