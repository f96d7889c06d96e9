"""Models load from folders, learn in adapters alone, and adapters survive on disk."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel

from fedfuse.builtin.architectures import tiny_causal_lm
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import (
    UNLIMITED_LENGTH,
    CausalLM,
    adapter_state,
    add_lora,
    load_adapter_state,
    load_causal_lm,
    save_adapter,
)
from fedfuse.models.loading import load_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer

MATERIAL = Path(__file__).parents[3] / "shared" / "material"
TEXTS = ["a nurse gave the patient aspirin", "the court granted bail", "copper rose on monday"] * 4
LINEAR = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each architecture, saved as a Hugging Face folder."""
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    folders = {}
    for architecture in LINEAR:
        folder = tmp_path_factory.mktemp("models") / architecture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Some rows more than the tokenizer has tokens, as in many published models.
            vocab_size = len(tokenizer) + 5
            tiny_causal_lm(architecture, vocab_size=vocab_size, width=16, layers=2).save_pretrained(
                folder
            )
        tokenizer.save_pretrained(folder)
        folders[architecture] = folder
    return folders


@pytest.fixture(params=list(LINEAR))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lm(base_folders: dict[str, Path], architecture: str) -> CausalLM:
    return load_causal_lm(str(base_folders[architecture]), device="cpu")


@pytest.fixture
def folder(base_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A Llama folder to spoil."""
    return Path(shutil.copytree(base_folders["llama"], tmp_path / "base"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.tensor([[0, 5, 6, 7]])).logits
    return result


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def train_a_little(model: PeftModel) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    for _ in range(3):
        ids = torch.tensor([[0, 5, 6, 7]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_load(lm: CausalLM, base_folders: dict[str, Path], architecture: str) -> None:
    assert lm.name == str(base_folders[architecture])
    assert lm.max_length == 128
    assert lm.vocab_size == lm.tokenizer.vocab_size
    assert logits(lm.model).shape[-1] == lm.vocab_size + 5
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert lm.tokenizer.special_ids == {"bos": 0, "eos": 1, "pad": 2, "unk": 3}


def test_nothing_is_left_on_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add_lora(load_causal_lm(str(folder), device="cpu"), AdapterConfig())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder: Path, dtype: str) -> None:
    lm = load_causal_lm(str(folder), dtype=dtype)
    assert lm.model.dtype == getattr(torch, dtype)
    state = adapter_state(add_lora(lm, AdapterConfig(rank=2)).model)
    assert {a.dtype for a in state.values()} == {np.dtype(np.float32)}


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_causal_lm("~/base", device="cpu").name == "~/base"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(lm: CausalLM, architecture: str, checkpointing: bool) -> None:
    before = logits(lm.model)
    weights = {n: p.clone() for n, p in lm.model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        state_before = torch.get_rng_state()
        model = add_lora(lm, AdapterConfig(rank=2), gradient_checkpointing=checkpointing).model
        assert torch.equal(torch.get_rng_state(), state_before)
    assert torch.equal(logits(model), before)  # a fresh adapter changes nothing
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trainable} == LINEAR[architecture]
    assert all("lora_" in name for name in trainable)
    train_a_little(model)
    assert not torch.allclose(logits(model), before)
    for name, value in model.base_model.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, weights[name.replace(".base_layer", "")])


def test_checkpointing_gives_the_same_gradients(base_folders: dict[str, Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        lm = load_causal_lm(str(base_folders["llama"]), device="cpu")
        model = add_lora(lm, AdapterConfig(), gradient_checkpointing=checkpointing).model
        model.train()
        ids = torch.tensor([[0, 5, 6, 7]])
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_seed_is_all_that_matters(base_folders: dict[str, Path]) -> None:
    def fresh(seed: int) -> dict[str, np.ndarray]:
        lm = load_causal_lm(str(base_folders["gpt2"]), device="cpu")
        return adapter_state(add_lora(lm, AdapterConfig(rank=2), seed=seed).model)

    first, same, other = fresh(1), fresh(1), fresh(2)
    assert first.keys() == other.keys()
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_chosen_targets(base_folders: dict[str, Path]) -> None:
    lm = load_causal_lm(str(base_folders["llama"]), device="cpu")
    model = add_lora(lm, AdapterConfig(rank=3, targets="q_proj, v_proj")).model
    shapes = {n.split("layers.")[1]: a.shape for n, a in adapter_state(model).items()}
    assert shapes["0.self_attn.q_proj.lora_A.weight"] == (3, 16)
    assert shapes["1.self_attn.v_proj.lora_B.weight"] == (16, 3)
    assert len(shapes) == 2 * 2 * 2


@pytest.mark.parametrize("targets", ["q_proj,nope", "lm_head", "all-linear,q_proj"])
def test_unknown_targets(base_folders: dict[str, Path], targets: str) -> None:
    lm = load_causal_lm(str(base_folders["llama"]), device="cpu")
    with pytest.raises(FedfuseError) as caught:
        add_lora(lm, AdapterConfig(targets=targets))
    for word in (targets, lm.name, "down_proj, gate_proj, k_proj"):
        assert word in str(caught.value)


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(FedfuseError) as caught:
        AdapterConfig(rank=0, alpha=-1.0, dropout=1.0, targets=" ,")
    for word in ("least 1, got 0", "got -1.0", "got 1.0", "got ' ,'"):
        assert word in str(caught.value)


def test_adapter_state_round_trip(lm: CausalLM) -> None:
    model = add_lora(lm, AdapterConfig(rank=2)).model
    fresh, untrained = adapter_state(model), logits(model)
    parameters = [id(p) for p in model.parameters()]
    train_a_little(model)
    learnt, trained = adapter_state(model), logits(model)
    load_adapter_state(model, fresh)
    assert torch.equal(logits(model), untrained)
    load_adapter_state(model, learnt)
    assert torch.equal(logits(model), trained)
    # In place: an optimizer goes on with the same parameters.
    assert [id(p) for p in model.parameters()] == parameters
    # Copies on both ways.
    for array in learnt.values():
        array[:] = 9.0
    assert torch.equal(logits(model), trained)


def test_adapter_states_of_renamed_modules(tmp_path: Path) -> None:
    """Of a family some of whose modules PEFT looks for under other names than it gives them."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "num_hidden_layers": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = AutoConfig.for_model(
        "laguna", vocab_size=96, num_attention_heads=2, num_key_value_heads=1, **sizes, **experts
    )
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    tokenizer = TextTokenizer.from_pretrained(train_tokenizer("byte-level-bpe", 280, TEXTS))
    model = add_lora(CausalLM(base, tokenizer, "laguna", 96, 64), AdapterConfig(rank=2)).model
    other = {name: array + 1 for name, array in adapter_state(model).items()}
    assert any("shared_experts" in name for name in other)
    load_adapter_state(model, other)
    for name, array in adapter_state(model).items():
        np.testing.assert_array_equal(array, other[name])


def test_bad_adapter_states(base_folders: dict[str, Path]) -> None:
    lm = load_causal_lm(str(base_folders["opt"]), device="cpu")
    model = add_lora(lm, AdapterConfig(rank=2)).model
    state = adapter_state(model)
    name = next(iter(state))
    with pytest.raises(FedfuseError, match=r"\['extra'\]"):
        load_adapter_state(model, {**state, "extra": state[name]})
    with pytest.raises(FedfuseError, match=name):
        load_adapter_state(model, {n: a for n, a in state.items() if n != name})
    with pytest.raises(FedfuseError, match=r"expected shape \(2, 16\), got \(1, 16\)"):
        load_adapter_state(model, {**state, name: state[name][:1]})


def test_saved_adapters_load_with_peft(lm: CausalLM, tmp_path: Path) -> None:
    model = add_lora(lm, AdapterConfig(rank=2, alpha=3.0)).model
    target = tmp_path / "run" / "adapters" / "server"
    save_adapter(model, target)
    train_a_little(model)
    save_adapter(model, target)  # replaces
    assert sorted(p.name for p in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    assert [p.name for p in target.parent.iterdir()] == ["server"]
    base = AutoModelForCausalLM.from_pretrained(lm.name, local_files_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        loaded = PeftModel.from_pretrained(base, str(target)).eval()
    assert torch.equal(logits(loaded), logits(model))


def test_a_failed_save_leaves_the_old_adapter(
    base_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_causal_lm(str(base_folders["opt"]), device="cpu")
    model = add_lora(lm, AdapterConfig(rank=2)).model
    target = tmp_path / "adapter"
    save_adapter(model, target)
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self.suffix == ".new":
            raise OSError("disk full")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(FedfuseError, match="disk full"):
        save_adapter(model, target)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (target / "adapter_model.safetensors").exists()


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

    from fedfuse.models.loading import quantization_options

    place = torch.device("cuda", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FedfuseError, match="needs bitsandbytes"):
        quantization_options("4bit", place, torch.bfloat16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    four = quantization_options("4bit", place, torch.bfloat16)
    assert four["device_map"] == {"": place}
    assert four["quantization_config"].load_in_4bit
    assert four["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_options("8bit", place, torch.float16)["quantization_config"].load_in_8bit


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
