"""The tables and the picture of docs/performance.md: ``python -m benchmarks.publish``.

A benchmark that has no results yet leaves its rows out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT
from experiments.harness import DOCS, markdown, picture, put_table
from fedfuse.report.style import INK, MUTED, PALETTE

RESULTS = ROOT / "benchmarks" / "results"
PAGE = DOCS / "performance.md"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio that the page shows: below 1 is less.

    Attributes:
        what: what is measured.
        time: name of the ratio of times.
        memory: name of the ratio of memory, if it was measured.
        rate: whether the first is a rate, of which more is better; it is shown as a time.
    """

    what: str
    time: str
    memory: str = ""
    rate: bool = False


PEERS = (
    Ratio(
        "TRL's GOLD: distillation from Gemma 3 270M, which has other tokens; knowledge is there, "
        "as in a federation",
        "step_over_gold_time",
        "step_over_gold_memory",
    ),
    Ratio(
        "the same, with extraction and alignment in every step",
        "whole_over_gold_time",
        "whole_over_gold_memory",
    ),
    Ratio(
        "TRL's GKD: distillation from a teacher of the same tokens; knowledge is there",
        "step_over_gkd_time",
        "step_over_gkd_memory",
    ),
    Ratio(
        "the same, with extraction in every step", "whole_over_gkd_time", "whole_over_gkd_memory"
    ),
    Ratio(
        "transformers' Trainer with PEFT: a LoRA step",
        "step_over_trainer_time",
        "step_over_trainer_memory",
    ),
    Ratio(
        "the same, of texts of nearly one length",
        "even_step_over_trainer_time",
        "even_step_over_trainer_memory",
    ),
    Ratio(
        "lm-evaluation-harness: scoring options of a question",
        "questions_over_harness_rate",
        "questions_over_harness_memory",
        rate=True,
    ),
)
ROUNDS = (
    Ratio(
        "three rounds with frozen layers run once, over running them in every pass",
        "cached_over_uncached_time",
    ),
    Ratio("the same, over adapters on all layers", "cached_over_everywhere_time"),
    Ratio("four options of ARC-Easy's questions, over their prompts", "option_scoring_over_prompt"),
    Ratio("the same by the number of tokens", "option_scoring_over_prompt_tokens"),
    Ratio(
        "four options of ARC-Challenge's, over their prompts",
        "option_scoring_over_prompt_arc_challenge",
    ),
    Ratio("the same by the number of tokens", "option_scoring_over_prompt_arc_challenge_tokens"),
    Ratio("knowledge of k = 16, over hidden states of the same texts", "extraction_over_forward"),
    Ratio("scoring with weights in bfloat16, over float32", "scoring_bfloat16_over_float32"),
    Ratio("training with weights in bfloat16, over float32", "training_bfloat16_over_float32"),
    Ratio(
        "scoring with products in bfloat16, over float32", "scoring_bfloat16_products_over_float32"
    ),
    Ratio(
        "training with products in bfloat16, over float32",
        "training_bfloat16_products_over_float32",
    ),
    Ratio("the quickstart, over that of an earlier commit", "quickstart_over_before"),
    Ratio("its clients' distillation, over that", "client_distill_over_before"),
)
# Short names for the picture.
SHORT = {
    "GOLD, a step": PEERS[0],
    "GKD, a step": PEERS[2],
    "Trainer, a LoRA step": PEERS[4],
    "the harness, a question": PEERS[6],
}


def read(name: str) -> dict[str, float]:
    """Results of a benchmark; none where it was not run."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())["results"]) if file.exists() else {}


def ratio(found: Mapping[str, float], name: str, *, rate: bool = False) -> float | None:
    """A ratio of times or bytes, if there is one."""
    if name not in found:
        return None
    return 1 / found[name] if rate else found[name]


def peers_table(found: Mapping[str, float]) -> str:
    """The same work in other libraries: time and memory."""
    return markdown(
        ["the same work in", "time", "peak memory"],
        [
            [one.what, *_numbers(ratio(found, one.time, rate=one.rate), ratio(found, one.memory))]
            for one in PEERS
            if one.time in found
        ],
    )


def rounds_table(found: Mapping[str, float]) -> str:
    """What passes and rounds cost against one another."""
    rows = [[one.what, *_numbers(ratio(found, one.time))] for one in ROUNDS if one.time in found]
    return markdown(["what", "ratio"], rows)


def _numbers(*values: float | None) -> Sequence[str]:
    return ["" if value is None else f"{value:.2f}" for value in values]


def draw(found: Mapping[str, float], file: Path) -> None:
    """Time and memory beside other libraries', as bars; theirs is 1."""
    shown = {name: one for name, one in SHORT.items() if one.time in found}
    with picture(file, 0.7 + 0.5 * len(shown)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(shown.values()):
            bars = (ratio(found, one.time, rate=one.rate), ratio(found, one.memory))
            for place, value in enumerate(bars):
                at = row + 0.2 * (2 * place - 1)
                label = ("time", "peak memory")[place] if row == 0 else None
                axes.barh(at, value or 0, 0.36, color=PALETTE[place], label=label)
                axes.text((value or 0) + 0.01, at, f"{value:.2f}", va="center", color=INK)
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.text(1, -0.62, "theirs", ha="center", va="bottom", color=MUTED)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 1.15)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(0.85, 0))


def main() -> None:
    """Put the tables into the page, and draw its picture."""
    put_table(PAGE, peers_table(read("peers")), "peers")
    put_table(PAGE, rounds_table(read("rounds")), "rounds")
    draw(read("peers"), DOCS / "performance.svg")


if __name__ == "__main__":
    main()
