"""The transfer of numbers: ``python -m experiments.transfer.digits --material FOLDER``.

Two models that are trained on the spot on the calculations in answers to word problems (GSM8K), one
with a token for each digit, one with tokens of up to three digits, teach each other. Before, both
know other calculations, written otherwise. What it takes to carry numbers from one to the other is
what X-Token (arXiv 2605.21699) was made for.
"""

from __future__ import annotations

import re
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from experiments import harness
from experiments.transfer.texts import (
    END,
    METHODS,
    PRIVATE,
    Measured,
    Projected,
    Task,
    closed,
    pretrained,
    row_losses,
    split_texts,
    study,
    taught_rows,
)
from experiments.transfer.trial import slots_of
from experiments.transfer.tuned import Tuned
from fedfuse.builtin.tokenizers import SPECIALS
from fedfuse.config.training import TrainingConfig
from fedfuse.data.records import load_records
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.dataset import TokenizedDataset

SOURCE = "gsm8k"
# Digits of a token, at most.
DIGITS = {"single": 1, "multi": 3}
PAIRS = {"multi_single": ("multi", "single"), "single_multi": ("single", "multi")}
# Tokens beside those of numbers, of which there are as many as there are numbers.
VOCAB_SIZE = 1500
# How often the tokenizers see every number: enough to make a token of it.
SEEN = 300
# An expression, the calculation that is marked, its result and a word.
CALCULATION = re.compile(r"[\d.,$%+*/x()\- ]*= \$?<<[^<>]*>>[\d.,]*( \w+)?", re.ASCII)
MARK = re.compile(r"(\$?<<[^<>]*>>)")
LONGEST = 80
# Calculations that all know before.
KNOWN = 9000
PRETRAINING = TrainingConfig(steps=600, batch_size=32, learning_rate=3e-3)
PRIVATE_TEXTS, PUBLIC_TEXTS, TEST_TEXTS = 3000, 200, 200
TEACHER = TrainingConfig(steps=300, batch_size=32, learning_rate=1e-2)
STUDENT = TrainingConfig(steps=160, batch_size=16)
PARTS = ("numbers", "rest")


def number_tokenizer(digits: int, texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; each number of up to so many digits is a token, without more."""
    every = ["".join(d) for n in range(1, digits + 1) for d in product("0123456789", repeat=n)]
    tokenizer = Tokenizer(models.BPE())
    numbers = pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([numbers, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE + len(every),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *every * SEEN], trainer)
    roles = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), SPECIALS, strict=True))
    fast: Any = PreTrainedTokenizerFast  # untyped
    found: PreTrainedTokenizerFast = fast(tokenizer_object=tokenizer, **roles)
    return found


def calculations(material: Path) -> list[str]:
    """Distinct calculations of the answers with the word behind, in some order that stays.

    Such as "4 + 5 = <<4+5=9>>9 cups".
    """
    records = load_records(str(material / "datasets" / SOURCE), "train")
    lines = [line for _, record in records for line in record["target"].split("\n")]
    found = dict.fromkeys(m[0].strip() + END for line in lines for m in CALCULATION.finditer(line))
    short = [text for text in found if len(text) <= LONGEST]
    Random(0).shuffle(short)
    return short


def otherwise(text: str) -> str:
    """A calculation with its mark at the end: "4 + 5 = 9 cups <<4+5=9>>"."""
    before, mark, behind = MARK.split(text)
    return f"{before}{behind.removesuffix(END)} {mark}{END}"


def task(material: Path, folder: Path) -> Task:
    """Both pairs; their models, which know other calculations otherwise, are made once."""
    every = calculations(material)
    known = [otherwise(text) for text in every[:KNOWN]]
    bases = {
        name: pretrained(
            folder / name, partial(number_tokenizer, digits, every), known, PRETRAINING
        )
        for name, digits in DIGITS.items()
    }
    pairs = {pair: (bases[teacher], bases[student]) for pair, (teacher, student) in PAIRS.items()}
    return Task(
        partial(split_texts, every[KNOWN:], PRIVATE_TEXTS, PUBLIC_TEXTS, TEST_TEXTS),
        pairs,
        TEACHER,
        STUDENT,
        losses,
        target_measures,
    )


def in_numbers(data: TokenizedDataset) -> Bool[ndarray, " rows"]:
    """``[T]`` whether a row's label is a part of a number."""
    digits = [piece.isdigit() for piece in data.tokenizer.token_bytes]
    found: Bool[ndarray, " rows"] = np.array(digits)[data.rows.token]
    return found


def covered(data: TokenizedDataset) -> Int64[ndarray, " rows"]:
    """``[T]`` bytes of each label."""
    size: Int64[ndarray, " rows"] = data.rows.byte_end - data.rows.byte_start
    return size


def losses(lm: CausalLM, data: TokenizedDataset) -> Measured:
    """Nats per byte: of everything, of the bytes in numbers, and of the others."""
    nats, size, numbers = row_losses(lm, data), covered(data), in_numbers(data)
    parts = {"": np.ones_like(numbers), "_numbers": numbers, "_rest": ~numbers}
    return {on: float(nats[part].sum() / size[part].sum()) for on, part in parts.items()}


def target_measures(data: TokenizedDataset, found: Projected) -> Measured:
    """How rows are taught.

    Returns:
        ``taught_numbers`` and ``taught_rest``: share of the rows with a teacher. Of the rows in
        numbers that it gives a distribution, the mean probability: ``right`` of the label's class,
        and ``never_used`` of classes of tokens with which the text goes on, but which the student's
        tokenizer does not use there: a class with such a token and without the label.
    """
    numbers, taught = in_numbers(data), taught_rows(found)
    share = {
        "taught_numbers": float(taught[numbers].mean()),
        "taught_rest": float(taught[~numbers].mean()),
    }
    some = np.flatnonzero(numbers & (found.weight > 0) & np.isfinite(found.logprobs).any(axis=1))
    if not len(some):
        return share
    right, never_used = np.mean([text_classes(data, found, row) for row in some.tolist()], axis=0)
    return share | {"right": float(right), "never_used": float(never_used)}


def text_classes(data: TokenizedDataset, found: Projected, row: int) -> tuple[float, float]:
    """Of a row, the probability of the label's class and of others with which the text goes on."""
    label, own = int(data.rows.token[row]), data.tokenizer.vocabulary_bytes
    text = data.samples[data.rows.sample_of_row[row]].text.encode()[data.rows.byte_start[row] :]
    others = [i for i in own.used - own.special if own.bytes[i] and text.startswith(own.bytes[i])]
    slot, *rest = slots_of(found, row, np.array([label, *others])).tolist()
    mass = np.append(np.exp(found.logprobs[row].astype(np.float64)), 0.0)  # none of the tail
    return float(mass[slot]), float(mass[list({*rest} - {slot})].sum())


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By pair: loss in numbers and in the rest; by method: what is closed, and how it is taught.

    The share closed is of the way to the student that learns from the teacher's private texts.
    """
    by = harness.grouped(rows, "pair", "method")
    return {
        pair: {
            **{
                f"{when}_{part}": harness.mean_of(by[pair, PRIVATE], f"{when}_{part}")
                for when, part in product(("before", "teacher"), PARTS)
            },
            "methods": {m: _of_method(by[pair, m], by[pair, PRIVATE]) for m in METHODS},
        }
        for pair in PAIRS
    }


SHOWN = ("taught_numbers", "right", "never_used")
MEASURES = (*SHOWN, "taught_rest")


def _of_method(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in PARTS:
        found[f"after_{part}"] = harness.mean_of(rows, f"after_{part}")
        shares = closed(rows, reference, f"_{part}")
        found |= harness.mean_and_std(f"closed_{part}", shares)
    return found | {m: harness.mean_of(rows, m) for m in MEASURES if m in rows[0]}


HEADS = (
    *("pair", "taught by", "numbers with a teacher", "right", "never used"),
    *("closed in numbers", "closed in the rest"),
)


def table(summary: dict[str, Any]) -> str:
    """By pair and method: how numbers are taught, and the share closed in them and in the rest."""
    rows = [
        [" -> ".join(PAIRS[pair]), method, *_shown(found)]
        for pair, of_pair in summary.items()
        for method, found in of_pair["methods"].items()
    ]
    return harness.markdown(HEADS, rows, 2)


def _shown(found: dict[str, float]) -> list[str]:
    taught = [f"{found[m]:.1%}" if m in found else "" for m in SHOWN]
    shares = [(found[f"closed_{part}"], found[f"closed_{part}_std"]) for part in PARTS]
    return [*taught, *(f"{mean:.0%} \N{PLUS-MINUS SIGN} {std:.0%}" for mean, std in shares)]


@harness.experiment("digits.json", "alignment.md", {"transfer-digits": table})
def main(
    material: harness.Material,
    seeds: harness.Seeds = "0,1,2",
    tuning_seeds: harness.Seeds = "100",
    parallel: harness.Parallel = 1,
    output: harness.Output = harness.RUNS,
) -> Tuned:
    """Teach both students by every method; write digits.json beside this file, and the table."""
    what = task(material.resolve(), output.resolve() / "experiment-transfer-digits")
    return study(what, "transfer-digits", seeds, tuning_seeds, parallel, summarize)
