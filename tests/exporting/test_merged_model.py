"""Merging and writing: families and tokenizers for which a plain copy would lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from experiments.families.configs import tiny_model
from experiments.families.oracles import draw_adapter
from fedfuse.builtin.architectures import tiny_causal_lm
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.exporting.merged_model import Merged, check_folder, write_merged
from fedfuse.models.causal_lm import add_lora, load_causal_lm, save_adapter
from fedfuse.models.loading import load_tokenizer
from tests.exporting.plain import load
from tests.models.folders import TEXTS, edit, logits


def adapted(
    family: str, folder: Path, kind: str = "byte-level-bpe"
) -> tuple[Path, Path, torch.Tensor]:
    """Folders of a base and of an adapter, and the logits of both together."""
    tokenizer = train_tokenizer(kind, 300, TEXTS)
    tiny_model(family, len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lm = add_lora(load_causal_lm(str(folder / "base"), device="cpu"), AdapterConfig(rank=2))
    draw_adapter(lm)
    save_adapter(lm.model, folder / "adapter")
    return folder / "base", folder / "adapter", logits(lm.model)


def write(base: Path, adapter: Path, folder: Path) -> Merged:
    folder.mkdir()
    return write_merged(load_causal_lm(str(base), device="cpu"), adapter, folder, torch.float32)


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "rwkv", "mamba", "zamba"])
def test_the_folder_gives_the_logits_of_base_and_adapter(family: str, tmp_path: Path) -> None:
    base, adapter, right = adapted(family, tmp_path)
    write(base, adapter, tmp_path / "out")
    model, _ = load(tmp_path / "out")
    torch.testing.assert_close(logits(model), right, rtol=1e-3, atol=1e-3)


def test_weights_that_scoring_changes_are_written_as_they_were(tmp_path: Path) -> None:
    """RWKV divides weights of every so many layers when it is scored."""
    base, adapter, right = adapted("rwkv", tmp_path)
    edit(base / "config.json", rescale_every=1)
    write(base, adapter, tmp_path / "out")
    model, _ = load(tmp_path / "out")
    assert model.config.rescale_every == 1
    torch.testing.assert_close(logits(model), right, rtol=1e-3, atol=1e-3)


def test_a_folder_with_other_weights_is_found(tmp_path: Path) -> None:
    base, _, right = adapted("llama", tmp_path)
    ids = torch.tensor([[0, 5, 6, 7]])
    with pytest.raises(FedfuseError, match="got ones off by"):
        check_folder(base, ids, right[0], "tiny")
    with pytest.raises(FedfuseError, match=r"expected the same logits, \[4, 299\], got \[4, 300\]"):
        check_folder(base, ids, right[0][:, :-1], "tiny")


def test_what_autotokenizer_would_replace_is_read_as_it_is(tmp_path: Path) -> None:
    """LlamaTokenizer puts its own normalizer and pre-tokenizer in place of the file's."""
    base, adapter, _ = adapted("llama", tmp_path, "unigram")
    edit(base / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    right = load_tokenizer(str(base)).encode_ids([TEXTS[0]])[0]
    replaced = AutoTokenizer.from_pretrained(base, local_files_only=True)
    assert replaced(TEXTS[0], add_special_tokens=False)["input_ids"] != right

    write(base, adapter, tmp_path / "out")

    _, tokenizer = load(tmp_path / "out")
    assert tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"] == right
    about = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer.bos_token == "<s>"


def test_code_of_the_base_does_not_go_along(tmp_path: Path) -> None:
    base, adapter, right = adapted("llama", tmp_path)
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    (base / "modeling_own.py").write_text("raise SystemExit\n")
    write(base, adapter, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert list((tmp_path / "out").glob("*.py")) == []
    torch.testing.assert_close(logits(load(tmp_path / "out")[0]), right, rtol=1e-3, atol=1e-3)


def test_settings_keep_the_names_that_the_base_has_for_them(tmp_path: Path) -> None:
    """transformers 5 puts rope_theta into rope_parameters, where others do not look."""
    base, adapter, before = adapted("llama", tmp_path)
    about = json.loads((base / "config.json").read_text())
    for new in ("rope_parameters", "dtype"):
        del about[new]
    about |= {"rope_theta": 50.0, "torch_dtype": "float16"}
    (base / "config.json").write_text(json.dumps(about))

    write(base, adapter, tmp_path / "out")

    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["rope_theta"], found["torch_dtype"]) == (50.0, "float32")
    assert "rope_parameters" not in found
    model, _ = load(tmp_path / "out")
    assert model.dtype == torch.float32
    assert not torch.allclose(logits(model), before, atol=1e-3)  # another theta, other logits
    right = add_lora(load_causal_lm(str(base), device="cpu"), AdapterConfig(rank=2))
    draw_adapter(right)
    torch.testing.assert_close(logits(model), logits(right.model), rtol=1e-3, atol=1e-3)


def test_the_beginning_of_a_text_is_told(tmp_path: Path) -> None:
    base, adapter, _ = adapted("llama", tmp_path)
    found = write(base, adapter, tmp_path / "out")
    assert (found.begin, found.begins_itself) == ("<s>", False)
    file = base / "tokenizer.json"
    spec = json.loads(file.read_text())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    file.write_text(json.dumps(spec))
    assert write(base, adapter, tmp_path / "other").begins_itself
    _, tokenizer = load(tmp_path / "other")
    assert tokenizer("a nurse")["input_ids"][0] == 0


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _, adapter, _ = adapted("llama", tmp_path)
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    tiny_causal_lm("gpt2", vocab_size=len(tokenizer), width=16, layers=1).save_pretrained(
        tmp_path / "gpt2"
    )
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(FedfuseError, match="adapter' cannot be loaded"):
        write(tmp_path / "gpt2", adapter, tmp_path / "out")
