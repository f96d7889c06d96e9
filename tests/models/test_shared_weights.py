"""Frozen base weights are the model's files, mapped into memory: one copy for all processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory import memory_of
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.models.causal_lm import CausalLM, adapter_state, add_lora, load_causal_lm
from fedfuse.tokenizers.dataset import TokenizedDataset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")

# For three processes to import their libraries, however busy the machine is.
SECONDS = 600.0
TEXTS = ["a nurse gave the patient aspirin", "the court granted bail", "copper rose on monday"] * 4


def save(
    folder: Path, *, rows: int, dtype: str = "float32", shard: str = "5GB", **config: Any
) -> Path:
    """A Llama with random weights, most of which are in its embedding and head."""
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "max_position_embeddings": 128}
        settings = {"tie_word_embeddings": False, **shape, **heads, **config}
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=rows, **settings))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 105 MB."""
    return save(tmp_path_factory.mktemp("models") / "large", rows=102_000)


def places(folder: Path) -> list[range]:
    """Where the files of a folder are mapped into this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            start, _, end = line.partition(" ")[0].partition("-")
            found.append(range(int(start, 16), int(end, 16)))
    return found


def mapped(lm: CausalLM, folder: Path) -> set[bool]:
    """Whether the base's weights lie in the folder's files."""
    where = places(folder)
    weights = [p for name, p in lm.model.named_parameters() if "lora_" not in name]
    return {any(weight.data_ptr() in place for place in where) for weight in weights}


def learn(lm: CausalLM) -> tuple[float, dict[str, Any]]:
    """The loss and the adapter after three steps."""
    data = TokenizedDataset(lm.tokenizer, [Sample("", text) for text in TEXTS], 32)
    model = add_lora(lm, AdapterConfig(rank=2))
    settings = TrainingConfig(steps=3, batch_size=4, learning_rate=1e-2)
    loss, _ = train(model, data, settings, seed=0)
    return loss, adapter_state(model.model)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("one file", {}),
        ("some files", {"shard": "300KB"}),
        ("tied", {"tie_word_embeddings": True}),
        ("bfloat16", {"dtype": "bfloat16"}),
    ],
)
def test_weights_are_the_files_own_pages(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(tmp_path / "base", rows=1000, **options)
    assert len(list(folder.glob("*.safetensors"))) > (kind == "some files")
    lm = load_causal_lm(str(folder), dtype=options.get("dtype", "float32"), device="cpu")
    assert mapped(lm, folder) == {True}
    untyped: Any = lm.model
    head, embedding = untyped.lm_head.weight, untyped.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == (kind == "tied")
    stored: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight, stored[name])


def test_another_dtype_is_a_copy(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", rows=1000, dtype="bfloat16")
    lm = load_causal_lm(str(folder), dtype="float32", device="cpu")
    assert mapped(lm, folder) == {False}
    stored = load_file(folder / "model.safetensors")
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight, stored[name].float())


def test_training_is_that_of_a_copy_and_writes_nothing(large: Path) -> None:
    lm = load_causal_lm(str(large), device="cpu")
    loss, adapter = learn(lm)
    assert mapped(lm, large) == {True}
    assert memory_of(os.getpid(), str(large / "model.safetensors"))["Anonymous"] == 0
    copied = load_causal_lm(str(large), device="cpu")
    for weight in copied.model.parameters():
        weight.data = weight.data.clone()
    assert mapped(copied, large) == {False}
    other_loss, other = learn(copied)
    assert loss == other_loss
    assert all((adapter[name] == other[name]).all() for name in adapter)


def work(folder: str, started: Any, measured: Any) -> None:
    """A client's process: load, learn, wait."""
    torch.set_num_threads(1)
    lm = load_causal_lm(folder, device="cpu")
    started.wait()
    learn(lm)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.sum()  # every page is here now
    started.wait()
    measured.wait()


@pytest.fixture
def family(large: Path) -> Iterator[list[int]]:
    """Process ids of three clients that have trained."""
    context = multiprocessing.get_context("spawn")
    started, measured = context.Barrier(4), context.Event()
    members = [context.Process(target=work, args=(str(large), started, measured)) for _ in range(3)]
    for member in members:
        member.start()
    try:
        started.wait(SECONDS)
        started.wait(SECONDS)
        yield [member.pid or 0 for member in members]
        measured.set()
    finally:
        for member in members:
            member.join(10)
            member.kill()


def test_processes_hold_one_copy_together(large: Path, family: list[int]) -> None:
    file = large / "model.safetensors"
    found = [memory_of(pid, str(file)) for pid in family]
    size = file.stat().st_size
    assert size > 100e6
    # The kernel may take pages back that nobody has read for a while.
    assert sum(each["Rss"] for each in found) / size > 2.4
    assert 0.8 < sum(each["Pss"] for each in found) / size < 1.01
    assert sum(each["Anonymous"] for each in found) == 0
