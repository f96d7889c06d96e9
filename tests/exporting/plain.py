"""The loss of an exported folder by transformers alone: nothing of fedfuse, and no PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Domain, prompt and answer.
Text = tuple[str, str, str]


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, without a network."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def losses(folder: Path, texts: Sequence[Text]) -> dict[str, float]:
    """Nats per byte of the answers by domain, a text at a time."""
    model, tokenizer = load(folder, dtype=torch.float32)
    nats: dict[str, float] = {}
    size: dict[str, int] = {}
    for domain, prompt, answer in texts:
        found = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([[tokenizer.bos_token_id, *found["input_ids"]]])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        of_answer = torch.tensor([end > len(prompt) for _, end in found["offset_mapping"]])
        each = -logprobs[torch.arange(len(of_answer)), ids[0, 1:]]
        nats[domain] = nats.get(domain, 0.0) + float(each[of_answer].sum())
        size[domain] = size.get(domain, 0) + len(answer.encode())
    return {domain: nats[domain] / size[domain] for domain in nats}
