"""What a family need not be able to do: passes that read less, where it can.

Each is tried on every model when it is used, and who cannot runs as a whole. So what is checked
here is that nobody who is let through gives another result.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from experiments.families.checks import LORA, MAX_LENGTH, Subject
from experiments.families.oracles import LOGITS, close, draw_adapter
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.losses import SampleNLL, sample_nll
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.frozen_layers import frozen_layers
from fedfuse.models.kept_states import KeptStates
from fedfuse.models.packed_pass import longest_packed
from fedfuse.models.states_file import StatesFolder
from fedfuse.tokenizers.dataset import TokenizedDataset

ANSWERS = ("yes", "no, it is not", "nobody said so", "on the other side")


def last_layers(subject: Subject) -> dict[str, Any]:
    """With adapters on the last half, passes that begin behind the others give the same losses."""
    base = load_causal_lm(str(subject.folder), device="cpu")
    try:
        lm = add_lora(base, replace(LORA, layers=0.5))
    except FedfuseError:  # its layers are no plain list
        return {"frozen_layers_once": False}
    draw_adapter(lm)
    layers = frozen_layers(base.name, lm.model.eval(), lm.vocab_size, lm.device)
    if layers is None:
        return {"frozen_layers_once": False}
    with TemporaryDirectory() as folder:
        files = StatesFolder(Path(folder), 2**30)
        kept = replace(lm, kept=KeptStates(layers, lm.model, "base", lm.vocab_size, files))
        right = torch.from_numpy(sample_nll(lm, subject.data))
        for _ in range(2):  # what is computed now, and what is read
            found = torch.from_numpy(sample_nll(kept, subject.data))
            close("losses behind frozen layers", found, right, LOGITS)
    return {"frozen_layers_once": True}


def options(subject: Subject) -> dict[str, Any]:
    """Answers that are packed behind their prompt have the losses of each alone."""
    lm = subject.lm
    short = Sample("it", "")  # with most answers within the windows of these models
    prompts = [short, *subject.data.samples[:2]]
    samples = [replace(sample, answer=f" {answer}") for sample in prompts for answer in ANSWERS]
    data = TokenizedDataset(lm.tokenizer, samples, MAX_LENGTH)
    right = np.concatenate([_alone(lm, data, place) for place in range(len(data))])
    found = torch.from_numpy(sample_nll(lm, data))
    close("losses of options", found, torch.from_numpy(right), LOGITS)
    return {"options_share_prompt": longest_packed(lm.model, lm.vocab_size, lm.device) > 0}


def _alone(lm: CausalLM, data: TokenizedDataset, place: int) -> SampleNLL:
    return sample_nll(lm, data.take(np.array([place])))
