"""The transfer on real text: ``python -m experiments.transfer.realtext --material FOLDER``.

stories260K, a small pretrained model with 512 fine tokens, is the teacher of a student with a
coarser tokenizer, and the student of a teacher that has it. The teacher has learned from private
questions (TREC); student and teacher share some others. The other model is trained on the spot, on
texts of other data sets, as is its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from experiments import harness
from experiments.transfer.texts import (
    METHODS,
    PRIVATE,
    Task,
    closed,
    load_texts,
    nats_per_byte,
    pretrained,
    split_texts,
    study,
    taught_share,
)
from experiments.transfer.tuned import Tuned
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Splits

SOURCE = "trec"
# What the other model knows before.
GENERAL = ("boolq_questions", "commonsenseqa", "arc_easy", "sentiment_amazon", "sentiment_nyt")
# Longer texts are left out, as fine tokens of them do not fit into a small model.
LONGEST = 100
VOCAB_SIZE = 3000
PRETRAINING = TrainingConfig(steps=400, batch_size=32, learning_rate=4e-3)
PRIVATE_TEXTS, PUBLIC_TEXTS, TEST_TEXTS = 3000, 200, 200
TEACHER = TrainingConfig(steps=200, batch_size=16, learning_rate=1e-2)
STUDENT = TrainingConfig(steps=160, batch_size=16)
# Columns of a pair.
SHOWN = ("nats per byte", "closed", "rows taught")
PAIRS = {"fine_coarse": "512 tokens teach 3,000", "coarse_fine": "3,000 teach 512"}


@cache
def texts(material: Path, source: str) -> list[str]:
    """Texts of a data set that are not too long."""
    return [text for text in load_texts(material, source) if len(text.encode()) <= LONGEST]


def splits(material: Path, seed: int) -> Splits:
    """Private, public and test questions of a seed."""
    return split_texts(texts(material, SOURCE), PRIVATE_TEXTS, PUBLIC_TEXTS, TEST_TEXTS, seed)


def task(material: Path, folder: Path) -> Task:
    """Both pairs; the coarse model is made if it is not in ``folder``."""
    known = [text for source in GENERAL for text in texts(material, source)]
    coarse = pretrained(
        folder / "coarse",
        lambda: train_tokenizer("byte-level-bpe", VOCAB_SIZE, known),
        known,
        PRETRAINING,
    )
    fine = material / "models" / "stories260K"
    pairs = {"fine_coarse": (fine, coarse), "coarse_fine": (coarse, fine)}
    return Task(partial(splits, material), pairs, TEACHER, STUDENT, nats_per_byte, taught_share)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By pair: losses before and of the teacher; by method: loss after, share closed, and taught.

    The share is of the way to the student that learns from the teacher's private texts.
    """
    by = harness.grouped(rows, "pair", "method")
    return {
        pair: {
            "before": harness.mean_of(by[pair, PRIVATE], "before"),
            "teacher": harness.mean_of(by[pair, PRIVATE], "teacher"),
            "methods": {m: _of_method(by[pair, m], by[pair, PRIVATE]) for m in METHODS},
        }
        for pair in PAIRS
    }


def _of_method(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, float]:
    found = {
        **harness.mean_and_std("after", [row["after"] for row in rows]),
        **harness.mean_and_std("closed", closed(rows, reference)),
    }
    return found | ({"taught": harness.mean_of(rows, "taught")} if "taught" in rows[0] else {})


def table(summary: dict[str, Any]) -> str:
    """Loss and share closed, by method and pair; the untrained student and the teacher first."""
    return harness.markdown(
        ["taught by", *(f"{kind} ({what})" for kind in PAIRS.values() for what in SHOWN)],
        [
            _row("untrained", [_loss(summary[pair]["before"]) for pair in PAIRS]),
            *(_row(m, [_cells(summary[pair]["methods"][m]) for pair in PAIRS]) for m in METHODS),
            _row("the teacher itself", [_loss(summary[pair]["teacher"]) for pair in PAIRS]),
        ],
    )


def _row(name: str, cells: Sequence[Sequence[str]]) -> list[str]:
    return [name, *chain(*cells)]


def _loss(loss: float) -> list[str]:
    return [f"{loss:.3f}", "", ""]


def _cells(found: dict[str, float]) -> list[str]:
    share = "{closed:.0%} \N{PLUS-MINUS SIGN} {closed_std:.0%}".format_map(found)
    return [f"{found['after']:.3f}", share, f"{found['taught']:.0%}" if "taught" in found else ""]


@harness.experiment("realtext.json", "alignment.md", {"transfer-realtext": table})
def main(
    material: harness.Material,
    seeds: harness.Seeds = "0,1,2",
    tuning_seeds: harness.Seeds = "100",
    parallel: harness.Parallel = 1,
    output: harness.Output = harness.RUNS,
) -> Tuned:
    """Teach both students by every method; write realtext.json beside this file, and the table."""
    folder = output.resolve() / "experiment-transfer-realtext"
    what = task(material.resolve(), folder)
    return study(what, "transfer-realtext", seeds, tuning_seeds, parallel, summarize)
