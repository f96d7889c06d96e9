"""A masked language model: tokens that fit into a prompt, and embeddings of a prompt's tokens.

All parties hold the same one, so a prompt may travel as token ids. A black box reads text, so a
prompt is only proposed if its text, tokenized again, is the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from transformers import AutoModelForMaskedLM, PreTrainedModel

from fedfuse.errors import check
from fedfuse.feddtpt.prompt import Prompt
from fedfuse.models.adapter_folder import base_of
from fedfuse.models.devices import resolve_device
from fedfuse.models.loading import loading_errors, model_source
from fedfuse.tokenizers.load import from_transformers
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model with its tokenizer.

    Attributes:
        model: in evaluation mode, without gradients.
        tokenizer: its tokenizer, with a mask token.
        name: folder or hub id of the model.
    """

    model: PreTrainedModel
    tokenizer: TextTokenizer
    name: str

    def __post_init__(self) -> None:
        roles = self.tokenizer.special_ids
        found = f"the special tokens {', '.join(roles) or 'none'}"
        name = f"masked language model {self.name!r}"
        check(name, found, "a tokenizer with a mask token", "mask" in roles)

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> MaskedLM:
        """Load any masked language model; safetensors only, and no code of the model's own.

        Args:
            name: a local folder, which is read without any network, or a hub id.
            device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ...

        Raises:
            FedfuseError: for anything that cannot be loaded or does not fit together, naming it.
        """
        place = resolve_device(device)
        source, options = model_source(name)
        whole = base_of(Path(name).expanduser()) is None
        check(f"model {name!r}", "an adapter", "a whole masked language model", whole)
        with loading_errors(name, "masked"):
            tokenizer = from_transformers(source, options)
            loaded: Any = AutoModelForMaskedLM.from_pretrained(
                source, **options, use_safetensors=True, output_loading_info=True
            )
        model, info = loaded
        found = f"no weights for {sorted(info['missing_keys'])[:5]}"
        expected = "a checkpoint of a complete masked language model"
        check(f"model {name!r}", found, expected, not info["missing_keys"])
        size, rows = tokenizer.vocab_size, model.get_input_embeddings().weight.shape[0]
        found = f"{size} tokens and {rows} embeddings"
        check(f"model {name!r}", found, "no more tokens than embeddings", size <= rows)
        return cls(model.requires_grad_(False).to(place).eval(), tokenizer, name)

    @cached_property
    def allowed(self) -> Int64[ndarray, " allowed"]:
        """Ids that may be proposed, ascending: their text is visible, and tokenized into them."""
        known = self.tokenizer
        special = {*known.special_ids.values(), *known.marked_special}
        ids = sorted(set(known.vocabulary.values()) - special)
        texts = [known.decode([token]) for token in ids]
        back = [encoded.ids.tolist() for encoded in known.encode(texts)]
        kept = [
            token
            for token, text, again in zip(ids, texts, back, strict=True)
            if again == [token] and text.strip()
        ]
        return np.array(kept, dtype=np.int64)

    @property
    def max_length(self) -> int:
        """Largest number of tokens of a prompt, with one mask between them."""
        config = self.model.config.get_text_config()
        before, after = self.tokenizer.special_prefix_suffix
        # RoBERTa's positions start after the padding id; two fewer are safe for all.
        limit = getattr(config, "max_position_embeddings", 512) - 2
        return int(limit) - len(before) - len(after) - 1

    def encode(self, text: str) -> Prompt:
        """Encode a text as a prompt, whose own text may differ in case and spaces.

        Raises:
            FedfuseError: for a text that the tokenizer cannot represent.
        """
        (encoded,) = self.tokenizer.encode([text])
        prompt = Prompt(tuple(encoded.ids.tolist()))
        unknown = self.tokenizer.special_ids.get("unk")
        known = prompt.tokens and unknown not in prompt.tokens
        expected = f"text that the tokenizer of {self.name!r} can represent"
        check(f"prompt {text!r}", "unknown tokens or none", expected, known)
        return self.canonical(prompt)

    def text(self, prompt: Prompt) -> str:
        """Text of a prompt, as a black box reads it."""
        return self.tokenizer.decode(prompt.tokens)

    def word(self, token: int) -> str:
        """Text of one token."""
        return self.tokenizer.decode([token])

    def words(self, prompt: Prompt) -> list[str]:
        """Text of each token of a prompt."""
        return [self.word(token) for token in prompt.tokens]

    def canonical(self, prompt: Prompt) -> Prompt:
        """Tokens of the prompt's own text; the prompt itself, where it survives as text."""
        (encoded,) = self.tokenizer.encode([self.text(prompt)])
        return Prompt(tuple(encoded.ids.tolist()))

    def may_become(self, given: Prompt, prompt: Prompt) -> bool:
        """Whether edits may make a prompt of a given one, and whether it survives as text."""
        known = {*self.allowed.tolist(), *given.tokens}
        return known.issuperset(prompt.tokens) and self.canonical(prompt) == prompt

    @torch.no_grad()
    def proposals(
        self, prompt: Prompt, position: int, how: Literal["replace", "insert"], top: int
    ) -> tuple[Int64[ndarray, " top"], Float32[ndarray, " top"]]:
        """Tokens that fit best into one place of a prompt of n tokens.

        Args:
            prompt: prompt around the place.
            position: index of the token to replace, 0 to n - 1; or of the token before which to
                insert, 0 to n.
            how: ``replace`` (never by the token that stands there) or ``insert``.
            top: number of proposals, at most; at least 1.

        Returns:
            Token ids, the likeliest first, and their log-probabilities (nats) among all allowed.

        Raises:
            FedfuseError: for a position outside, or a prompt that is too long for the model.
        """
        tokens = prompt.tokens
        last = len(tokens) - (how == "replace")
        check(f"position to {how}", position, f"0 to {last}", 0 <= position <= last)
        mask = self.tokenizer.special_ids["mask"]
        rest = tokens[position + (how == "replace") :]
        hidden = self._framed((*tokens[:position], mask, *rest))
        before = len(self.tokenizer.special_prefix_suffix[0])
        logits = self.model(input_ids=hidden).logits[0, before + position].float().cpu()
        ids = self.allowed
        if how == "replace":
            ids = ids[ids != tokens[position]]
        logprobs = logits[torch.from_numpy(ids)].log_softmax(0)
        best = logprobs.topk(min(top, len(ids)))
        return ids[best.indices.numpy()], best.values.numpy()

    @torch.no_grad()
    def embed(self, prompt: Prompt) -> Float32[ndarray, "n d"]:
        """``[n, d]`` last hidden state of each of the prompt's tokens.

        Raises:
            FedfuseError: for a prompt that is too long for the model.
        """
        base: Any = self.model.base_model
        states = base(input_ids=self._framed(prompt.tokens)).last_hidden_state[0]
        before = len(self.tokenizer.special_prefix_suffix[0])
        embedded: ndarray = states[before : before + len(prompt.tokens)].float().cpu().numpy()
        return embedded

    def _framed(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """Input ids ``[1, n]`` with the tokenizer's own special tokens around them."""
        expected, fits = f"1 to {self.max_length} tokens", 1 <= len(tokens) <= self.max_length + 1
        check(f"prompt for {self.name!r}", len(tokens), expected, fits)
        before, after = self.tokenizer.special_prefix_suffix
        return torch.tensor([[*before, *tokens, *after]], device=self.model.device)
