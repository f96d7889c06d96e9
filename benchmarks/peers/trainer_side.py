"""A plain LoRA step of transformers' Trainer, in its environment.

``python -m benchmarks.peers.trainer_side WORK OUTCOME``
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import Trainer, TrainingArguments

from benchmarks.peers.hugging_face import arguments, collate, load_student, optimizers, run
from benchmarks.peers.work import Work, write_outcome


def trainer(work: Work, folder: str) -> Trainer:
    """Of the labels of the batch alone."""
    model = load_student(work)
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments(work, folder)),
        train_dataset=list(range(len(work.samples))),
        data_collator=lambda which: collate(work, which),
        optimizers=optimizers(work, model),
    )


if __name__ == "__main__":
    given = Work.read(Path(sys.argv[1]))
    write_outcome(Path(sys.argv[2]), {"trainer": run(given, lambda folder: trainer(given, folder))})
