"""Models whose weights are spread over devices, or fetched when a layer runs.

The machine's memory stands for accelerators: accelerate moves weights and inputs all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from fedfuse.config.model import AdapterConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.extract import ModelSource, extract
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.placement import main_device, placement_options
from fedfuse.models.trial import check_trains
from fedfuse.tokenizers.dataset import TokenizedDataset

SAMPLES = [Sample("Who is here?", "the clerk"), Sample("Where?", "a small red door is here")]


@pytest.fixture
def folder(base_folders: dict[str, Path]) -> Path:
    return base_folders["llama"]


def asked(lm: CausalLM, folder: Path) -> np.ndarray:
    data = TokenizedDataset(lm.tokenizer, SAMPLES, 64)
    knowledge, contexts = ModelSource(lm).knowledge(data, 8)
    found = extract(lm, data, 8)
    assert np.array_equal(found.indices, knowledge.indices)
    assert len(contexts) == len(SAMPLES)
    return np.concatenate([knowledge.label_logprob, contexts])


def test_a_device_map_of_one_device_changes_nothing(folder: Path) -> None:
    spread = load_causal_lm(str(folder), device_map="auto")
    np.testing.assert_allclose(
        asked(spread, folder), asked(load_causal_lm(str(folder)), folder), rtol=1e-5
    )
    check_trains(add_lora(spread, AdapterConfig(rank=2)))


def test_layers_that_are_fetched_when_they_run(folder: Path) -> None:
    right = asked(load_causal_lm(str(folder), device="cpu"), folder)
    lm = load_causal_lm(str(folder), device="cpu")
    cpu_offload(lm.model, torch.device("cpu"))
    assert {weight.device.type for weight in lm.model.parameters()} == {"meta"}
    assert lm.device == torch.device("cpu")
    np.testing.assert_allclose(asked(lm, folder), right, rtol=1e-5)
    with pytest.raises(FedfuseError, match=r"with device-map: expected all weights on accelerat"):
        add_lora(lm, AdapterConfig(rank=2))


def test_some_layers_are_fetched_from_disk(folder: Path, tmp_path: Path) -> None:
    """The head stays, and is used apart from the model."""
    right = asked(load_causal_lm(str(folder), device="cpu"), folder)
    lm = load_causal_lm(str(folder), device="cpu")
    places = {"model.layers.0": "disk", "model.layers.1": "cpu"}
    rest = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    dispatch_model(
        lm.model,
        {**places, **rest, "lm_head": "cpu"},
        main_device="cpu",
        offload_dir=str(tmp_path),
        force_hooks=True,
    )
    away = [n for n, weight in lm.model.named_parameters() if weight.device.type == "meta"]
    assert away
    assert all("layers.0" in name for name in away)
    np.testing.assert_allclose(asked(lm, folder), right, rtol=1e-5)
    with pytest.raises(FedfuseError, match=f"{len(away)} weights that are not"):
        add_lora(lm, AdapterConfig(rank=2))


def test_batches_go_where_the_head_is(lm: CausalLM) -> None:
    assert main_device(lm.model) == lm.model.get_output_embeddings().weight.device
    assert main_device(torch.nn.ModuleList().append(lm.model)[0]) == torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu", torch.float32, "", "auto"), "device with device-map 'auto': expected auto, got"),
        (("auto", torch.float32, "", "balanced"), "device-map: expected '', 'auto', got 'balanc"),
        (("nowhere", torch.float32), "device: expected auto, cpu"),
    ],
)
def test_what_does_not_go_together(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        placement_options(*arguments)  # type: ignore[arg-type]


def test_an_adapter_is_not_merged_into_what_is_spread(
    base_folders: dict[str, Path], tmp_path: Path
) -> None:
    lm = load_causal_lm(str(base_folders["gpt2"]), device="cpu")
    add_lora(lm, AdapterConfig(rank=2)).model.save_pretrained(tmp_path)
    with pytest.raises(FedfuseError, match="neither quantized nor spread over devices, got device"):
        load_causal_lm(str(tmp_path), device_map="auto")
