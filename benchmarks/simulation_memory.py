"""Predicted and measured memory of simulations: ``python -m benchmarks.simulation_memory``.

Real simulations with Ray, of base models made on the spot with random weights: the plan says what
they will take (``fedfuse.simulation.memory_plan``), then the memory of their processes is sampled,
where a page that several share counts once. More clients run at once than there are cores, which
costs time and no memory. ``FITTED`` settings are those that the plan's constants come from; the
others are predictions. A file that has some of the settings already is completed.

How often the base weights are in memory is also measured in plain processes that load and train:
as they are loaded, and with a copy of them in each process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import File, Measured, benchmark
from benchmarks.memory import Watch, memory_of
from fedfuse.builtin.text_world import pretraining_text
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.run_config import RunConfig, flatten, parse
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.factory.models import load_local_model
from fedfuse.flower.app_bundle import app_dir
from fedfuse.simulation.flwr_run import flwr_run
from fedfuse.simulation.memory_plan import Plan
from fedfuse.simulation.run_memory import plan_simulation
from fedfuse.tracking.run_writer import commit

FILE = "model.safetensors"
SHARERS = 8
_MARK = "FEDFUSE_MEMORY_BENCHMARK"
# Seconds in which all processes load the models.
LOADING = 600
FEW = {
    "name": "memory",
    "preset": "quickstart",  # a folder's would be another, of longer inputs
    "strategy": "fedmkt",
    "rounds": 2,
    "baselines": False,
    "data.private": 240,
    "data.public": 16,
    "data.test": 1,
    "data.questions": 4,
    "data.holdout": 0,
    "data.blind": 4,
    "server-distill.steps": 3,
    "client-distill.steps": 3,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A simulation.

    ``rows`` of embedding and head are more than the tokenizer has tokens: weights that cost no
    time. ``steps`` of the local phase are enough that all clients at once work together.
    """

    clients: int
    at_once: int
    rows: int
    width: int
    layers: int
    batch_size: int
    steps: int = 20


FITTED = {
    "tiny, 1 at once": Setting(2, 1, 2000, 64, 2, 4, 2),
    "tiny, 4 at once": Setting(4, 4, 2000, 64, 2, 4, 40),
    "6 layers, 2 at once": Setting(4, 2, 8000, 768, 6, 8, 3),
}
LARGEST = "8 clients, all at once"
SETTINGS = {
    LARGEST: Setting(8, 8, 56_000, 768, 2, 8),
    "4 clients, all at once": Setting(4, 4, 12_000, 768, 8, 8, 8),
    "4 clients, 2 at once": Setting(4, 2, 40_000, 512, 8, 24, 2),
}


def make_base(folder: Path, setting: Setting, *, weights: bool = True) -> None:
    """Save a model with random weights and a small tokenizer as a Hugging Face folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.rows,
        hidden_size=setting.width,
        intermediate_size=8 * setting.width // 3,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.width // 64,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        dtype="float32",
    )
    config.save_pretrained(folder)
    if weights:
        LlamaForCausalLM(config).save_pretrained(folder)
    texts = [sample.text for sample in pretraining_text(50, seed=0)]
    train_tokenizer("byte-level-bpe", 1900, texts).save_pretrained(folder)


def configure(setting: Setting, base: Path, output: Path) -> RunConfig:
    """The run config of a setting."""
    models = dict.fromkeys(("clients.model", "server.model"), str(base))
    phases = ("local.batch-size", "client-distill.batch-size", "server-distill.batch-size")
    sizes = dict.fromkeys(phases, setting.batch_size)
    here = {"output": str(output), "local.steps": setting.steps, "min-clients": setting.clients}
    return parse({**FEW, **sizes, **models, **here})


@contextmanager
def prepared(setting: Setting, *, weights: bool = True) -> Iterator[tuple[RunConfig, Path]]:
    """The run config of a setting, and the base model's folder beside the run's, for a while."""
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        base = Path(scratch) / "base"
        make_base(base, setting, weights=weights)
        yield configure(setting, base, Path(scratch)), base


def predict(setting: Setting) -> Plan:
    """What the plan says of a setting."""
    with prepared(setting, weights=False) as (config, _):
        return plan_simulation(config, setting.clients, setting.at_once)


def measure(setting: Setting) -> dict[str, Any]:
    """Run a simulation and measure its peak memory; bytes."""
    with prepared(setting) as (config, base):
        os.environ[_MARK] = config.output
        with Watch(_MARK, base.parent, str(base / FILE)) as watch:
            flwr_run(app_dir(), flatten(config), setting.clients, ray_cpus=setting.at_once)
        size = (base / FILE).stat().st_size
    return {
        "setting": asdict(setting),
        "commit": commit(),
        "weights": size,
        "peak": dict(watch.peak),
        "client_processes_at_the_peak": watch.actors,
        "copies": watch.file["Pss"] / size,
        "copies_unless_shared": watch.file["Rss"] / size,
        "written_bytes_of_the_weights": watch.file["Anonymous"],
    }


def plain_processes(setting: Setting, *, copied: bool) -> float:
    """Copies of the base weights in ``SHARERS`` processes that load and train, by their PSS.

    With ``copied`` each makes a copy of its own, as it would without sharing.
    """
    context = multiprocessing.get_context("spawn")
    loaded, measured = context.Barrier(SHARERS + 1, timeout=LOADING), context.Event()
    with prepared(setting) as (config, base):
        size = (base / FILE).stat().st_size
        arguments = (config, copied, loaded, measured)
        family = [context.Process(target=_share, args=arguments) for _ in range(SHARERS)]
        for process in family:
            process.start()
        try:
            loaded.wait()
            without = sum(memory_of(process.pid or 0)["Pss"] for process in family)
            loaded.wait()  # all are measured before any loads
            loaded.wait()
            total = sum(memory_of(process.pid or 0)["Pss"] for process in family)
        except BrokenBarrierError as error:
            raise RuntimeError("a process failed; its error is above") from error
        finally:
            measured.set()
            for process in family:
                process.join()
    return (total - without) / size


def _share(config: RunConfig, copied: bool, loaded: Any, measured: Any) -> None:
    """Load and train; the others do not wait for a process that fails."""
    try:
        _load_and_train(config, copied, loaded, measured)
    except BaseException:
        loaded.abort()
        raise


def _load_and_train(config: RunConfig, copied: bool, loaded: Any, measured: Any) -> None:
    torch.set_num_threads(1)
    splits = load_splits(config.data, 0, SHARERS)
    loaded.wait()
    loaded.wait()
    local_model = load_local_model(
        "client",
        config.clients.model,
        config.clients,
        shared_samples(config.data, 0),
        config.data.max_length,
        0,
    )
    if copied:
        for weight in local_model.lm.model.parameters():
            weight.data = weight.data.clone()
    local_model.learn(local_model.encode(splits.private[0][:4]), config.local, seed=0)
    loaded.wait()
    measured.wait()


def table(raw: Mapping[str, Any]) -> str:
    """The results as docs/scale.md has them."""
    head = "| simulation | base weights, MB | copies of them | predicted over measured peak |"
    rows = [head, "|---|---:|---:|---:|"]
    for name, setting in {**SETTINGS, **FITTED}.items():
        if name in raw["measured"]:
            found, fitted = raw["measured"][name], " (fitted)" * (name in FITTED)
            rows.append(
                f"| {name}, {setting.layers} layers, batch {setting.batch_size}"
                f" | {found['weights'] / 1e6:.0f} | {found['copies']:.2f}"
                f" | {ratio(raw, name):.2f}{fitted} |"
            )
    return "\n".join(rows)


def ratio(raw: Mapping[str, Any], name: str) -> float:
    """Predicted over measured peak of a setting."""
    predicted: int = sum(raw["predicted"][name].values())
    return predicted / int(raw["measured"][name]["peak"]["all"])


def summarize(raw: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of what has been measured."""
    ratios = [ratio(raw, name) for name in raw["measured"]]
    found = {f"plain_processes_{name}": value for name, value in raw["plain"].items()}
    if ratios:
        copies = max(measured["copies"] for measured in raw["measured"].values())
        found["copies_of_the_base_weights"] = copies
        found["least_predicted_over_measured"] = min(ratios)
        found["largest_predicted_over_measured"] = max(ratios)
    return found


@benchmark
def main(file: File) -> Iterator[Measured]:
    """Measure the settings that the file does not have yet, and write it after each."""
    raw: dict[str, Any] = {"measured": {}, "predicted": {}, "plain": {}}
    if file.exists():
        raw = json.loads(file.read_text())["raw"]
    settings = {**FITTED, **SETTINGS}
    # What was measured stays as long as the setting is the same; predictions are always new.
    known = raw["measured"]
    raw["measured"] = {n: known[n] for n in known if known[n]["setting"] == asdict(settings[n])}
    raw["predicted"] = {name: dict(predict(s).parts) for name, s in settings.items()}
    yield Measured(summarize(raw), raw)
    for name, setting in settings.items():
        if name not in raw["measured"]:
            raw["measured"][name] = measure(setting)
            yield Measured(summarize(raw), raw)
    for name, copied in {"copies": False, "copies_unless_shared": True}.items():
        if name not in raw["plain"]:
            raw["plain"][name] = plain_processes(SETTINGS[LARGEST], copied=copied)
            yield Measured(summarize(raw), raw)
