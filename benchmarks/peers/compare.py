"""The library beside other libraries: ``python -m benchmarks.peers.compare``.

Each side runs in processes and an environment of its own, on the same weights, tokens, adapter,
optimizer and learning rates, in float32, with one thread. Both sides take turns; a ratio is the
median over the turns of the library's median over the peer's. Memory is what a process takes at
most during a step beyond what it had before, so that weights are in neither.

- Distilling across tokenizers: TRL's GOLD, off-policy. Its loss is another one: losses cannot be
  compared, tokens are. The library extracts a teacher's knowledge once and trains on it, GOLD runs
  the teacher in every step: ``step`` is without the extraction, ``whole`` with it.
- Distilling with one tokenizer: TRL's GKD with forward KL, the teacher being the student's base.
  Of all entries the loss is one; the library's steps are on k of them and what is left.
- Labels alone: transformers' Trainer. The losses of all steps are equal.
- Questions with options: the lm-evaluation-harness, with the fastest of several sizes of batches.
  The log-likelihoods are equal where the texts are tokenized alike.

``short`` texts are questions of ARC-Easy with the right option, ``long`` ones worked answers of
GSM8K. Of ``short`` ones, the library passes those of like lengths together, and Trainer pads all to
the longest; ``even`` ones have the same length nearly, so that what is left is not padding.
``--models`` is a folder with the models', ``--material`` one with data sets; environments
are made when they are first needed.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks import harness
from benchmarks.peers.environments import FOLDER, environment
from benchmarks.peers.prepare import BATCH, choose, make_work, read_samples
from benchmarks.peers.work import Measurement, Work, read_outcome

STUDENT, TEACHER = "smollm2-135m-instruct", "gemma3-270m"
TEXTS = {"short": "arc_easy", "even": "arc_easy", "long": "gsm8k"}
# Kinds of texts on which a peer has nothing new to show.
LEFT_OUT = {"even": {"gold", "uld", "gkd", "harness"}, "long": {"harness"}}
# Losses and log-likelihoods, nats, that are the same but for rounding.
TOLERANCE = 1e-3
Pair = tuple[Measurement, Measurement]


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer and what it does.

    Attributes:
        environment: name of its requirements.
        module: its side, in ``benchmarks.peers``.
        job: what it does, and what the library does beside it.
    """

    environment: str
    module: str
    job: str


PEERS = {
    "gold": Peer("trl", "trl_side", "gold"),
    "uld": Peer("trl", "trl_side", "uld"),
    "gkd": Peer("trl", "trl_side", "gkd"),
    "trainer": Peer("trainer", "trainer_side", "trainer"),
    "harness": Peer("harness", "harness_side", "harness"),
}
# Both kinds of GOLD's losses are beside one of the library.
OURS = {"uld": "gold"}


@dataclass(slots=True)
class Turns:
    """What both sides measured, turn by turn, by name.

    Attributes:
        found: a measurement a turn.
        versions: of the peers' packages, by environment.
    """

    found: dict[str, list[Measurement]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, side: str, outcome: Mapping[str, Measurement]) -> None:
        """A side's measurements of a turn."""
        for name, one in outcome.items():
            self.found.setdefault(f"{side} {name}", []).append(one)

    def ratio(self, ours: str, theirs: str, what: str) -> float:
        """Median over the turns of the library's median over the peer's.

        Args:
            ours: name of the library's measurements.
            theirs: name of the peer's.
            what: ``seconds``, ``cpu_seconds`` or ``peak_bytes``.
        """
        pairs = zip(self.found[f"ours {ours}"], self.found[f"theirs {theirs}"], strict=True)
        ratios = [median(getattr(a, what)) / median(getattr(b, what)) for a, b in pairs]
        return float(median(ratios))

    def last(self, ours: str, theirs: str) -> Pair:
        """The last measurements of both sides."""
        return self.found[f"ours {ours}"][-1], self.found[f"theirs {theirs}"][-1]

    def raw(self) -> dict[str, Any]:
        """Every measurement, without the tokens."""
        return {
            name: [
                {
                    "seconds": [harness.rounded(second) for second in one.seconds],
                    "cpu_seconds": [harness.rounded(second) for second in one.cpu_seconds],
                    "peak_bytes": one.peak_bytes,
                    "losses": [harness.rounded(loss) for loss in one.losses],
                    **{key: value for key, value in one.more.items() if key != "tokens"},
                }
                for one in turns
            ]
            for name, turns in self.found.items()
        }


def take_turn(turns: Turns, work: Work, peer: Peer, environments: Path) -> None:
    """The library's side and the peer's, one after another, each in a process of its own."""
    python = environment(environments, peer.environment)
    ours = OURS.get(peer.job, peer.job)
    with tempfile.TemporaryDirectory() as folder:
        file, outcome = Path(folder) / "work.json", Path(folder) / "outcome.json"
        work.write(file)
        sides = {
            "ours": (Path(sys.executable), "ours", ours),
            "theirs": (python, peer.module, peer.job),
        }
        for side, (interpreter, module, job) in sides.items():
            files = str(file), str(outcome)
            command = [str(interpreter), "-m", f"benchmarks.peers.{module}", *files, job]
            subprocess.run(command, cwd=harness.ROOT, env=_environment(), check=True)
            found, versions = read_outcome(outcome)
            if side == "theirs":
                turns.versions[peer.environment] = versions
            turns.add(side, found)
            for name, one in found.items():
                seconds, megabytes = median(one.seconds), median(one.peak_bytes) / 1e6
                line = f"{side} {name}: {seconds:.3g} s, {megabytes:.0f} MB"
                print(line, file=sys.stderr, flush=True)


def _environment() -> dict[str, str]:
    """Environment variables of both sides: one thread, nothing from the network."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    return os.environ | threads | offline | {"PYTHONPATH": str(harness.ROOT)}


def check_trained(name: str, pair: Pair) -> None:
    """Refuse a comparison in which a peer trained nothing, or something else.

    Raises:
        SystemExit: naming the peer.
    """
    ours, theirs = pair
    sound = all(0 < norm < math.inf for norm in theirs.more["gradient_norms"])
    if theirs.more["moved"] < 1 or not sound:
        raise SystemExit(f"{name}: weights of the adapter were not trained")
    if theirs.more["recomputes"]:
        raise SystemExit(f"{name}: activations are computed twice")
    if len(ours.losses) != len(theirs.losses):
        raise SystemExit(f"{name}: {len(ours.losses)} steps here, {len(theirs.losses)} there")
    if "learned" in theirs.more and theirs.more["learned"] != ours.more["learned"]:
        raise SystemExit(f"{name}: other tokens are learned")
    if not theirs.more.get("same_tokens", True):
        raise SystemExit(f"{name}: texts are tokenized in another way")


def losses_off(name: str, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest difference of losses that should be equal.

    Raises:
        SystemExit: where they are not.
    """
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    for step, off in enumerate(apart):
        if not off <= TOLERANCE:  # nor is NaN
            raise SystemExit(f"{name}: losses differ by {off:.3g} nats at step {step}")
    return max(apart)


def step_results(turns: Turns, name: str) -> dict[str, Any]:
    """Ratios of a peer that trains, and what shows that the work was the same."""
    ours = OURS.get(name, name)
    pair = turns.last(ours, name)
    check_trained(name, pair)
    kinds = {"step": ours} | ({"whole": f"{ours} whole"} if name != "trainer" else {})
    results: dict[str, Any] = {}
    for kind, mine in kinds.items():
        results[f"{kind}_over_{name}_time"] = turns.ratio(mine, name, "seconds")
        results[f"{kind}_over_{name}_cpu_time"] = turns.ratio(mine, name, "cpu_seconds")
        results[f"{kind}_over_{name}_memory"] = turns.ratio(mine, name, "peak_bytes")
    if name == "trainer":
        results["trainer_loss_off"] = losses_off(name, pair[0].losses, pair[1].losses)
    if name == "gkd":
        whole = pair[0].more["first_loss_of_all_entries"]
        results["gkd_loss_off"] = losses_off(name, [whole], pair[1].losses[:1])
    return results


def scoring_results(turns: Turns, sizes: Sequence[int]) -> dict[str, Any]:
    """Rate over the harness's with its fastest size of batches, and how far scores are apart.

    Raises:
        SystemExit: where scores of texts that are tokenized alike differ.
    """
    size = min(sizes, key=lambda n: _seconds(turns.found[f"theirs harness {n}"]))
    theirs = f"harness {size}"
    ours, other = turns.last("harness", theirs)
    alike = [a == b for a, b in zip(ours.more["tokens"], other.more["tokens"], strict=True)]
    pairs = zip(ours.losses, other.losses, alike, strict=True)
    both = [(a, b) for a, b, same in pairs if same]
    off = losses_off("harness", *zip(*both, strict=True)) if both else None
    return {
        "questions_over_harness_rate": 1 / turns.ratio("harness", theirs, "seconds"),
        "questions_over_harness_cpu_rate": 1 / turns.ratio("harness", theirs, "cpu_seconds"),
        "questions_over_harness_memory": turns.ratio("harness", theirs, "peak_bytes"),
        "harness_batch_size": size,
        "harness_alike": sum(alike) / len(alike),
        "harness_logprob_off": off,
    }


def _seconds(turns: Sequence[Measurement]) -> float:
    """Median of the turns' medians."""
    return median(median(one.seconds) for one in turns)


@harness.benchmark
def main(
    models: Annotated[Path, typer.Option(help=f"Folder with {STUDENT} and {TEACHER}.")],
    material: harness.Material,
    file: harness.File = harness.ROOT / "benchmarks" / "results" / "peers.json",
    environments: Annotated[Path, typer.Option(help="Folder of the environments.")] = FOLDER,
    peers: Annotated[str, typer.Option(help="Peers, joined by commas.")] = ",".join(PEERS),
    texts: Annotated[str, typer.Option(help="Texts, joined by commas.")] = ",".join(TEXTS),
    repeats: harness.Repeats = 3,
    steps: harness.Steps = 3,
    questions: Annotated[int, typer.Option(min=1, help="Questions that are scored.")] = 48,
) -> Iterator[harness.Measured]:
    """Measure, and write the result file after each peer."""
    models, data = models.resolve(), material.resolve() / "datasets"
    results: dict[str, Any] = {}
    raw: dict[str, Any] = {"versions": {}}
    asked = read_samples(data / "arc_easy" / "train.jsonl", questions=2 * questions).questions
    asked = [one for one in asked if len(one.options) == 4][:questions]
    for kind in texts.split(","):
        public = read_samples(data / TEXTS[kind] / "train.jsonl", public=4 * BATCH).public
        public = choose(public, even=kind == "even")
        prefix = "" if kind == "short" else f"{kind}_"
        with tempfile.TemporaryDirectory() as folder:
            places = models / STUDENT, models / TEACHER
            work = make_work(*places, public, asked, Path(folder), steps=steps)
            raw[f"{kind} tokens"] = work.tokens
            for name in peers.split(","):
                if name in LEFT_OUT.get(kind, ()):
                    continue
                turns = Turns()
                for _ in range(repeats):
                    take_turn(turns, work, PEERS[name], environments.resolve())
                found = (
                    scoring_results(turns, work.batch_sizes)
                    if name == "harness"
                    else step_results(turns, name)
                )
                results |= {f"{prefix}{key}": value for key, value in found.items()}
                raw[f"{kind} {name}"] = turns.raw()
                raw["versions"] |= turns.versions
                yield harness.Measured(dict(results), dict(raw))
