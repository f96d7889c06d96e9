"""The exchange on real text: ``python -m experiments.realtext.run --material FOLDER``.

Server: stories260K, a small pretrained Llama. Clients: stories260K and three small models around
the real tokenizers of GPT-2, Llama 2 and BERT. Data: TREC and SST-2. Results are reported as they
are: models of this size know little, and what counts is that everything works on real text and real
tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from experiments import harness
from experiments.federations import Federations
from fedfuse.builtin.architectures import MAX_LENGTH, tiny_causal_lm
from fedfuse.config.training import TrainingConfig
from fedfuse.data.records import load_records
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer
from fedfuse.tracking.run import RunFolder

SOURCES = ("trec", "sst2")
TEXTS_PER_SOURCE = 2000
# Small models by name: architecture, and tokenizer of the material.
RECIPES = {
    "gpt2-tiny": ("gpt2", "gpt2"),
    "llama2-tiny": ("llama", "llama2"),
    "bert-neox-tiny": ("gpt_neox", "bert_uncased"),
}
STEPS, BATCH, WIDTH, LAYERS = 200, 8, 48, 2


def build_models(material: Path, sources: Sequence[str], folder: Path) -> list[Path]:
    """Pretrain every recipe that is not in ``folder`` yet; only unlabelled text is used."""
    texts = [
        str(record.get("text") or record.get("question"))
        for source in sources
        for _, record in load_records(source, "train")[:TEXTS_PER_SOURCE]
    ]
    return [_build(name, material, texts, folder / name) for name in RECIPES]


def _build(name: str, material: Path, texts: Sequence[str], target: Path) -> Path:
    if (target / "config.json").exists():
        return target
    architecture, kind = RECIPES[name]
    loaded = AutoTokenizer.from_pretrained(
        str(material / "tokenizers" / kind), local_files_only=True
    )
    tokenizer = TextTokenizer.from_pretrained(loaded)
    size = tokenizer.vocab_size
    torch.manual_seed(0)
    model = tiny_causal_lm(architecture, vocab_size=size, width=WIDTH, layers=LAYERS)
    data = TokenizedDataset(tokenizer, [Sample("", text) for text in texts], MAX_LENGTH // 2)
    print(f"pretraining {name} on {len(texts)} texts", flush=True)
    lm = CausalLM(model, tokenizer, name, size, MAX_LENGTH)
    loss, _ = train(lm, data, TrainingConfig(STEPS, BATCH, 3e-3), seed=0)
    print(f"pretrained {name}: {loss:.3f} nats per token", flush=True)
    harness.save_pretrained(target, loaded, model)
    return target


def summarize(runs: list[RunFolder]) -> dict[str, float]:
    """Loss (nats/byte) and accuracy per model and stage: mean and standard deviation over seeds."""
    summary: dict[str, float] = {}
    for model in runs[0].measured:
        for stage in runs[0].stages:
            found = [m for run in runs if (m := run.overall(model, stage))]
            values = {
                "loss": [m.loss for m in found],
                "accuracy": [m.accuracy for m in found if m.accuracy is not None],
            }
            for kind, measured in values.items():
                if measured:
                    summary |= harness.mean_and_std(f"{model}/{stage}/{kind}", measured)
    return summary


@harness.experiment("results.json")
def main(
    material: harness.Material,
    seeds: harness.Seeds = "0,1,2",
    output: harness.Output = harness.RUNS,
    parallel: harness.Parallel = 2,
) -> Federations:
    """Run all seeds and write results.json beside this file."""
    material, folder = material.resolve(), output.resolve() / "experiment-realtext"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [str(material / "datasets" / name) for name in SOURCES]
    stories = str(material / "models" / "stories260K")
    clients = [stories, *map(str, build_models(material, sources, folder))]
    arguments = (
        *("--config", str(Path(__file__).with_name("realtext.toml"))),
        *("--set", f"data.source={'+'.join(sources)}"),
        *("--set", f"server.model={stories}"),
        *("--set", f"clients.model={','.join(clients)}"),
    )
    return Federations(
        cells={("realtext", seed): arguments for seed in harness.numbers(seeds)},
        folder="realtext",
        summarize=lambda runs: summarize(list(runs.values())),
        parallel=parallel,
    )
