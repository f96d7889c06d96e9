"""A step of TRL's trainers, in their environment.

``python -m benchmarks.peers.trl_side WORK OUTCOME gold|uld|gkd``

- ``gold``: GOLD with the hybrid loss and the weights of its documentation. Teachers whose tokens
  are no bytes, as SentencePiece has them, are aligned by position: GOLD's alignment of texts
  refuses them.
- ``uld``: the same with the loss of sorted probabilities alone.
- ``gkd``: GKD with forward KL, where the teacher is the student's own base.

All learn the answers that are given, and none that the student makes up, and none computes its
activations twice, which is TRL's default. GOLD puts no start token before a text, which the library
does where a tokenizer has one, and one more token behind it, which is not learned.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer

from benchmarks.peers.hugging_face import (
    arguments,
    collate,
    load_model,
    load_student,
    optimizers,
    run,
)
from benchmarks.peers.work import Measurement, Work, write_outcome

HYBRID = {
    "uld_use_hybrid_loss": True,
    "uld_hybrid_matched_weight": 0.6,
    "uld_hybrid_unmatched_weight": 0.4,
}


def gold(work: Work, hybrid: bool, folder: str) -> Any:
    """GOLD's trainer."""
    model, tokenizer = load_student(work), AutoTokenizer.from_pretrained(work.student)
    pairs = [{"prompt": prompt, "completion": answer} for prompt, answer in work.samples]
    config = GOLDConfig(
        **arguments(work, folder),
        gradient_checkpointing=False,
        max_length=work.max_length,
        lmbda=0.0,
        teacher_tokenizer_name_or_path=work.teacher,
        use_uld_loss=True,
        use_extended_uld=False,
        **(HYBRID if hybrid else {}),
    )
    return GOLDTrainer(
        model=model,
        teacher_model=load_model(work.teacher),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        optimizers=optimizers(work, model),
    )


def gkd(work: Work, folder: str) -> Any:
    """GKD's trainer, with the library's tokens: its own collator wants chats."""
    model, tokenizer = load_student(work), AutoTokenizer.from_pretrained(work.student)
    return GKDTrainer(
        model=model,
        teacher_model=load_model(work.student),
        args=GKDConfig(
            **arguments(work, folder),
            gradient_checkpointing=False,
            max_length=work.max_length,
            lmbda=0.0,
            beta=0.0,
        ),
        train_dataset=Dataset.from_list([{"number": n} for n in range(len(work.samples))]),
        data_collator=lambda some: collate(work, [one["number"] for one in some]),
        processing_class=tokenizer,
        optimizers=optimizers(work, model),
    )


def measure(work: Work, job: str) -> Measurement:
    """The steps of a job, and the tokens that its batch has."""
    if job == "gkd":
        return run(work, partial(gkd, work))
    seen: list[Any] = []

    def make(folder: str) -> Any:
        trainer = gold(work, job == "gold", folder)
        seen.extend(trainer.train_dataset)
        return trainer

    found = run(work, make)
    texts = [one["input_ids"][:-1] for one in seen]
    same = all(own in (ids, ids[1:]) for own, ids in zip(texts, work.input_ids, strict=True))
    learned = sum(sum(one["completion_mask"]) - 1 for one in seen)
    found.more.update(same_tokens=same, learned=learned)
    return found


if __name__ == "__main__":
    given, name = Work.read(Path(sys.argv[1])), sys.argv[3]
    write_outcome(Path(sys.argv[2]), {name: measure(given, name)})
