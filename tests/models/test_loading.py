"""Folders that load, formats that are refused with the way out, and what else cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertLMHeadModel

from experiments.families import run
from experiments.families.configs import tiny_model
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import (
    load_causal_lm,
)
from fedfuse.models.dry_run import dry_run
from fedfuse.models.loading import (
    UNLIMITED_LENGTH,
    load_tokenizer,
    longest_input,
    one_way,
    text_prefix,
)
from tests.models.folders import TEXTS, edit, logits

MATERIAL = Path(__file__).parents[3] / "shared" / "material"


@pytest.mark.parametrize("name", ["./no", "/no/such/model", "~/no-such-model", "a/b/c"])
def test_unknown_folders(name: str) -> None:
    with pytest.raises(FedfuseError, match=f"'{name}' does not exist"):
        load_causal_lm(name)


def test_hub_ids_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **options: Any) -> None:
        assert options == {"trust_remote_code": False, "local_files_only": False}
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(FedfuseError, match=r"'owner/name' cannot .*no network for owner/name"):
        load_causal_lm("owner/name")


def test_a_file_is_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(FedfuseError, match=r"expected a folder .*'config\.json' does not exist"):
        load_causal_lm("config.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "expected float32, bfloat16, float16, got 'int8'"),
        ({"device": "gpu"}, "expected auto, cpu.* got 'gpu'"),
        ({"device": "cuda:x"}, "expected auto, cpu.* got 'cuda:x'"),
        ({"device": "cuda:99"}, "expected auto, cpu.* got 'cuda:99'"),
        ({"quantization": "2bit"}, "expected '', '4bit', '8bit', got '2bit'"),
        ({"quantization": "4bit", "device": "cpu"}, "'4bit': expected a GPU, got cpu"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        load_causal_lm(str(folder), **options)


def test_quantization(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of transformers; the quantized layers themselves need a GPU."""
    import importlib.util

    from fedfuse.models.placement import placement_options

    place = torch.device("cuda", 0)
    monkeypatch.setattr("fedfuse.models.placement.resolve_device", lambda _: place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FedfuseError, match="needs bitsandbytes"):
        placement_options("auto", torch.bfloat16, "4bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    four = placement_options("auto", torch.bfloat16, "4bit")
    assert four["device_map"] == {"": place}
    assert four["quantization_config"].load_in_4bit
    assert four["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16
    eight = placement_options("auto", torch.float16, "8bit", "auto")
    assert eight["quantization_config"].load_in_8bit
    assert eight["device_map"] == "auto"


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(
        FedfuseError, match=r"expected safetensors weights, got \*\.bin; to convert"
    ):
        load_causal_lm(str(folder))


def test_gguf_files_say_how_to_convert(folder: Path) -> None:
    file = folder / "model-Q4.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(FedfuseError, match=r"got \*\.gguf; to convert .*gguf_file=FILE"):
        load_causal_lm(str(file))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FedfuseError, match=r"got \*\.gguf; to convert"):
        load_causal_lm(str(folder))


def test_sharded_weights(folder: Path) -> None:
    whole = load_causal_lm(str(folder), device="cpu")
    (folder / "model.safetensors").unlink()
    whole.model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_causal_lm(str(folder), device="cpu").model), logits(whole.model))


def test_remote_code_is_refused(folder: Path) -> None:
    edit(
        folder / "config.json",
        model_type="custom",
        auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    )
    (folder / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(FedfuseError, match="cannot be loaded"):
        load_causal_lm(str(folder))


def test_incomplete_weights_are_refused(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(FedfuseError, match=r"without weights for \['model\.layers\.2"):
        load_causal_lm(str(folder))


def test_a_special_token_beyond_the_embeddings_is_left_out(folder: Path) -> None:
    """As in text models that were cut out of ones that see images."""
    whole = load_causal_lm(str(folder), device="cpu")
    rows = whole.model.get_input_embeddings().weight.shape[0]
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    fill = [f"<fill{n}>" for n in range(rows - whole.vocab_size)]
    for tokens in (fill, ["<image_soft_token>"]):
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, False)
        tokenizer.save_pretrained(folder)
    found = load_causal_lm(str(folder), device="cpu")
    assert len(tokenizer) == rows + 1
    assert found.vocab_size == rows
    [spelled] = found.tokenizer.encode_ids(["see <image_soft_token>"])
    assert max(spelled) < rows
    assert found.tokenizer.decode(spelled) == "see <image_soft_token>"
    # A role that it had is nobody's then.
    edit(folder / "tokenizer_config.json", mask_token="<image_soft_token>")
    assert "mask" not in load_causal_lm(str(folder), device="cpu").tokenizer.special_ids


def test_more_tokens_than_embeddings(folder: Path) -> None:
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    tokenizer.add_tokens([f"<extra{n}>" for n in range(6)])
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer) - 6 + 5
    with pytest.raises(FedfuseError, match=f"embeddings, {rows}, got .* {rows + 1} tokens"):
        load_causal_lm(str(folder))


@pytest.mark.parametrize("family", ["gpt2", "bert", "gemma", "qwen2"])
def test_a_folder_without_its_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """From the config alone transformers makes a tokenizer that knows no word."""
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(FedfuseError, match="got nothing but special tokens"):
        load_tokenizer(str(tmp_path))


def test_slow_tokenizers_are_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="CTRLTokenizer")
    (folder / "vocab.json").write_text(json.dumps({"<unk>": 0, "a</w>": 1}))
    (folder / "merges.txt").write_text("#version\n")
    with pytest.raises(FedfuseError, match=r"CTRLTokenizer.*no fast form"):
        load_causal_lm(str(folder))


def test_older_tokenizer_files_are_converted(folder: Path) -> None:
    expected = load_causal_lm(str(folder)).tokenizer.encode(["the court granted bail"])[0].ids
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    lm = load_causal_lm(str(folder))
    np.testing.assert_array_equal(lm.tokenizer.encode(["the court granted bail"])[0].ids, expected)


def test_the_tokenizer_file_is_taken_as_it_is(folder: Path) -> None:
    """``AutoTokenizer`` would put parts of the class's own in place of the file's."""
    tokenizer = train_tokenizer("unigram", 200, TEXTS)
    tokenizer.save_pretrained(folder)
    expected = load_causal_lm(str(folder)).tokenizer
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    found = load_causal_lm(str(folder)).tokenizer
    text = ["Copper rose, on monday"]
    np.testing.assert_array_equal(found.encode(text)[0].ids, expected.encode(text)[0].ids)
    assert found.special_ids == expected.special_ids


def test_models_that_look_ahead_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    config = BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,  # as decided as a trained model
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertLMHeadModel(config).save_pretrained(folder)
    with pytest.raises(FedfuseError, match=r"BertLMHeadModel that sees later tokens"):
        load_causal_lm(str(folder))


def test_a_model_too_large_for_float16_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FedfuseError, match=r"finite logits, got others in float16; dtype bfloat16"):
        load_causal_lm(str(folder), dtype="float16", device="cpu")
    load_causal_lm(str(folder), dtype="bfloat16", device="cpu")


def test_models_without_a_largest_position(folder: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    (folder / "model.safetensors").unlink()
    BloomForCausalLM(
        BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2)
    ).save_pretrained(folder)
    assert load_causal_lm(str(folder)).max_length == UNLIMITED_LENGTH


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="../shared/material is not here")
def test_a_real_model() -> None:
    lm = load_causal_lm(str(MATERIAL / "models" / "stories260K"), device="cpu")
    assert (lm.vocab_size, lm.max_length) == (512, 512)
    ids = [1, *lm.tokenizer.encode(["Once upon a time, there was a little girl"])[0].ids.tolist()]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    words = b"".join(lm.tokenizer.token_bytes[i] for i in ids[-3:])
    assert words.startswith(b" named")


@pytest.mark.parametrize(
    ("family", "length"),
    [("roberta", 93), ("bert", 96), ("whisper", 96), ("mpt", 96), ("opt", 96), ("git", 96)],
)
def test_the_longest_input_is_one_that_runs(family: str, length: int) -> None:
    """RoBERTa's positions begin after its padding's number; git's others are of an image."""
    model = tiny_model(family, 64)
    assert longest_input(model) == length
    ids = torch.arange(length)[None] % 61 + 3
    assert model(input_ids=ids).logits.isfinite().all()


def test_gemma_3n_trains_what_is_scored() -> None:
    """When it trains it clips weights, which it reads past their adapter."""
    model = tiny_model("gemma3n_text", 64)
    one_way(model)
    assert model.config.altup_coef_clip is None


@pytest.mark.parametrize("family", ["mllama", "emu3"])
def test_the_text_part_of_a_larger_checkpoint(family: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    whole = tiny_model(family, len(tokenizer))
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_causal_lm(str(tmp_path), device="cpu")
    assert torch.allclose(logits(lm.model), logits(whole), atol=1e-5)


def test_gemma_3n_needs_no_library_for_images(tmp_path: Path) -> None:
    """Its images pass through a model of timm; text alone does without."""
    part = run.save("gemma3n", "gpt2", tmp_path, None)
    lm = load_causal_lm(str(tmp_path), device="cpu")
    assert type(lm.model).__name__ == "Gemma3nForCausalLM"
    assert torch.equal(logits(lm.model), logits(part))
    sizes = {"samples": 1, "scored": 1, "length": 8, "vocab_size": lm.vocab_size}
    needs = dry_run(str(tmp_path), dtype="float32", lora=AdapterConfig(rank=2), **sizes)
    assert needs.base == 4 * sum(weight.numel() for weight in lm.model.parameters())


def test_a_prefix_needs_all_that_is_missing_behind_it() -> None:
    info = {"missing_keys": {"a.w", "b.w"}, "unexpected_keys": {"text.a.w", "text.b.w", "eye.a.w"}}
    assert text_prefix(info) == "text."
    assert text_prefix(info | {"missing_keys": {"a.w", "b.w", "c.w"}}) == ""
    assert text_prefix(info | {"missing_keys": set()}) == ""


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("musicgen", r"expected a family that writes text, got musicgen, which makes audio"),
        ("gemma4_assistant", r"expected gemma4_assistant to compute logits of tokens alone in "),
    ],
)
def test_families_whose_inputs_or_outputs_are_no_text(
    family: str, message: str, tmp_path: Path
) -> None:
    run.save(family, "gpt2", tmp_path, None)
    with pytest.raises(FedfuseError, match=message):
        load_causal_lm(str(tmp_path), device="cpu")


def test_what_a_family_raises_is_one_line_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AttributeError("no such\nthing")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    with pytest.raises(FedfuseError, match=r"cannot be loaded: .*AttributeError: no such thing"):
        load_causal_lm(str(folder), device="cpu")
