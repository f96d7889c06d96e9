"""What each choice in token alignment costs: ``python -m experiments.alignment.run``.

Teachers with real knowledge: stories260K, a small pretrained Llama, on real questions, translated
for six real tokenizers; and the built-in models on their own language, translated for each other,
for real tokenizers, and for stories260K's 512 tokens, which cut every word to pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from experiments import harness
from experiments.alignment.draw import draw, table
from experiments.alignment.measures import CHOICES, AlignmentChoice, Quality, compare
from fedfuse.builtin.models import build, cache_root
from fedfuse.builtin.text_lexicon import LEXICONS
from fedfuse.builtin.text_world import Domain
from fedfuse.data.records import load_records
from fedfuse.data.sample import Sample
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import CausalLM, load_causal_lm
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.load import load_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer

REAL = ("gpt2", "llama2", "mistral_v3", "gpt_neox_pythia", "qwen", "bert_uncased")
BUILTIN = ("gpt2", "llama", "opt", "gpt-neox", "server")
SOURCES = ("trec", "sst2", "gsm8k", "arc_easy")
TEXTS, MAX_LENGTH, K = 200, 128, 16


def measure_seed(material: Path, seed: int) -> list[dict[str, Any]]:
    """All pairs and ways on the texts of one seed."""
    cells: list[dict[str, Any]] = []
    for group, teacher, name, student, texts in pairs(material, seed):
        data = TokenizedDataset(teacher.tokenizer, texts, MAX_LENGTH)
        knowledge = extract(teacher, data, K)
        _, rows = label_rows(student, texts, MAX_LENGTH)
        tables = cache_root() / "tables"
        found = compare(knowledge, data.rows, teacher.tokenizer, rows, student, tables)
        about = {"seed": seed, "group": group, "teacher": Path(teacher.name).name, "student": name}
        for choice, quality in found.items():
            four_digits = {key: round(value, 4) for key, value in quality._asdict().items()}
            cells.append(about | choice._asdict() | four_digits)
    return cells


def pairs(
    material: Path, seed: int
) -> Iterator[tuple[str, CausalLM, str, TextTokenizer, list[Sample]]]:
    """Group, teacher, name and tokenizer of the student, and the text."""
    real = {name: load_tokenizer(str(material / "tokenizers" / name)) for name in REAL}
    stories = load_causal_lm(str(material / "models" / "stories260K"), device="cpu")
    questions = real_texts(material / "datasets", seed)
    for name, tokenizer in real.items():
        yield "stories260K -> real", stories, name, tokenizer, questions
    models = {n: load_causal_lm(str(build(f"builtin:{n}")), device="cpu") for n in BUILTIN}
    sentences = builtin_texts(seed)
    for teacher in models.values():
        for name, model in models.items():
            if model is not teacher:
                yield "built-in -> built-in", teacher, name, model.tokenizer, sentences
        for name, tokenizer in real.items():
            yield "built-in -> real", teacher, name, tokenizer, sentences
        yield "built-in -> 512 tokens", teacher, "stories260K", stories.tokenizer, sentences


def real_texts(datasets: Path, seed: int) -> list[Sample]:
    """Questions and reviews; every position of them is a label row."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for source in SOURCES:
        records = [record for _, record in load_records(str(datasets / source), "train")]
        for i in rng.choice(len(records), TEXTS // len(SOURCES), replace=False).tolist():
            texts.append(str(records[i].get("text") or records[i].get("question")))
    return [Sample("", text) for text in texts]


def builtin_texts(seed: int) -> list[Sample]:
    """Sentences of the built-in language that no model was pretrained on."""
    rng = np.random.default_rng([seed, 17])
    drawn = []
    for lexicon in LEXICONS:
        domain = Domain(lexicon, seed)
        for _ in range(TEXTS // len(LEXICONS)):
            entity, answer = rng.integers(len(lexicon.entities)), rng.integers(len(lexicon.answers))
            drawn.append(Sample("", domain.sentence(int(entity), int(answer), rng).text))
    return drawn


def summarize(cells: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By group and choice, each measure's mean over pairs and its spread over seeds."""
    summary: dict[str, dict[str, dict[str, list[float]]]] = {}
    for group, of_group in harness.grouped(cells, "group").items():
        by_choice = harness.grouped(of_group, *AlignmentChoice._fields)
        summary[group] = {
            str(choice): {key: _mean_and_spread(by_choice[choice], key) for key in Quality._fields}
            for choice in CHOICES
        }
    return summary


def _mean_and_spread(cells: list[dict[str, Any]], key: str) -> list[float]:
    """Mean over everything; standard deviation of the seeds' means."""
    seeds = sorted(harness.grouped(cells, "seed").items())
    by_seed = [mean(cell[key] for cell in mine) for _, mine in seeds]
    return [round(mean(by_seed), 4), round(harness.spread(by_seed), 4)]


@harness.experiment("results.json", "alignment.md", {"table": table}, draw)
def main(material: harness.Material, seeds: harness.Seeds = "0,1,2") -> harness.Study:
    """Measure every choice; write results.json beside this file, and docs/alignment.*."""
    return harness.Study(
        cells={(seed,): partial(measure_seed, material, seed) for seed in harness.numbers(seeds)},
        folder="alignment",
        summarize=summarize,
    )
