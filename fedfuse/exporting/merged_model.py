"""A base with an adapter merged into it, in a folder that transformers alone can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from fedfuse.data.hub import library_errors
from fedfuse.errors import check
from fedfuse.models.causal_lm import CausalLM, with_adapter
from fedfuse.models.head import without_cache
from fedfuse.models.loading import ONE_WAY, loading_errors, model_source
from fedfuse.tokenizers.tokenizer import TextTokenizer

# What goes along with the weights: how text becomes tokens and chats become text, how to generate,
# what images and sounds become, and what the base's licence asks to be passed on. None of it runs.
SIDE_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "*processor_config.json",
    "LICEN[CS]E*",
    "NOTICE*",
    "*USE_POLICY*",
)
_CONFIG, _GENERATION = "config.json", "generation_config.json"
# Keys of a config that do not hold for the merged model: code of the base's own does not go along,
# and weights are not quantized.
_NOT_KEPT = ("auto_map", "quantization_config")
_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# Loads tokenizer.json as it is, in every version of transformers.
_VERBATIM = "PreTrainedTokenizerFast"
# Tokens of the input on which what was written is compared with base and adapter.
_TRIED = 32
# Largest difference of a logit, in standard deviations of the logits: room for sums in another
# order, in float32.
_ALLOWED = 0.01


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model in a folder.

    Attributes:
        architecture: class of the model in transformers.
        dtype: dtype of the weights.
        num_bytes: bytes of the weights.
        begin: token that the run puts before every text.
        begins_itself: whether the tokenizer puts it there too.
        revision: commit of a base from the hub; empty for one from a folder.
        source: folder with the base's files, its model card among them.
    """

    architecture: str
    dtype: str
    num_bytes: int
    begin: str
    begins_itself: bool
    revision: str
    source: Path


def write_merged(lm: CausalLM, adapter: Path, folder: Path, dtype: torch.dtype) -> Merged:
    """Merge an adapter into its base and write it, with all that goes along.

    Padded rows of embedding and output head, which the run cuts off, are left out.

    Args:
        lm: the base in float32, on the CPU; it is changed. Where the caller keeps no name of it, no
            two models are in memory at once.
        adapter: adapter folder.
        folder: existing folder to write into.
        dtype: dtype of the written weights.

    Raises:
        FedfuseError: for an adapter of another base, weights that are too large for the dtype, and
            a family whose folder, read back, does not give the logits of base and adapter.
    """
    name, tokenizer, (source, options) = lm.name, lm.tokenizer, model_source(lm.name)
    side = side_folder(source)
    ids = _tried_ids(lm)
    adapted: Any = with_adapter(lm.model, adapter)
    right = _logits(adapted, ids)[:, : lm.vocab_size]
    with loading_errors(name):
        model: PreTrainedModel = adapted.merge_and_unload()
        _cut_padding(model, lm.vocab_size)
    _compare(name, "base and adapter, merged", _logits(model, ids), right)
    round_weights(model, dtype)
    right = _logits(model, ids)
    for weight in _weights(model):
        weight.data = weight.data.to(dtype)
    with loading_errors(name):
        config = AutoConfig.from_pretrained(source, **options)
    _restore(model, config)  # not earlier: RWKV's weights change where it is scored with it
    with library_errors(f"model {name!r}", "one that transformers can write", logging):
        if (side / _GENERATION).is_file():
            plain: Any = GenerationConfig
            model.generation_config = plain()  # the base's own takes its place
        model.save_pretrained(str(folder))
        write_config(side / _CONFIG, config, folder / _CONFIG)
        copy_side_files(side, folder)
        write_tokenizer(name, tokenizer, lm.vocab_size, folder)
    architecture = type(model).__name__
    del lm, adapted, model
    check_folder(folder, ids, right, name)
    begin = tokenizer.bos_id
    return Merged(
        architecture=architecture,
        dtype=str(dtype).removeprefix("torch."),
        num_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        begin=next(token for token, number in tokenizer.vocabulary.items() if number == begin),
        begins_itself=tokenizer.special_prefix_suffix[0][:1] == (begin,),
        revision=str(getattr(config, "_commit_hash", None) or ""),
        source=side,
    )


def side_folder(source: str) -> Path:
    """Folder with a base's files but its weights; of a hub id, they are downloaded."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    with library_errors(f"model {source!r}", "files of a model on the Hugging Face hub", logging):
        return Path(snapshot_download(source, allow_patterns=[*SIDE_FILES, _CONFIG, "README.md"]))


def copy_side_files(source: Path, folder: Path) -> None:
    """Copy ``SIDE_FILES`` of a base."""
    for file in sorted({file for pattern in SIDE_FILES for file in source.glob(pattern)}):
        if file.is_file():
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def write_config(before: Path, base: Any, after: Path) -> None:
    """Write a config as the base has it, with what is new in it.

    transformers 5 names some settings anew, and whoever knows the old names alone would go by
    defaults without a word.

    Args:
        before: the base's file.
        base: config that transformers read from it.
        after: file that transformers wrote of the merged model; it is replaced.
    """
    written = json.loads(after.read_text(encoding="utf-8"))
    kept = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    if kept.get("model_type") == written.get("model_type"):
        known = json.loads(base.to_json_string())
        new = {key: value for key, value in written.items() if known.get(key) != value}
        new |= {"torch_dtype": written["dtype"]} if "torch_dtype" in kept else {}
        written = kept | new
    about = {key: value for key, value in written.items() if key not in _NOT_KEPT}
    text = json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False)
    after.write_text(text + "\n", encoding="utf-8")


def _restore(model: PreTrainedModel, config: Any) -> None:
    """Give the config back what ``one_way`` changed for training."""
    own, before = model.config.get_text_config(), config.get_text_config()
    for name in ONE_WAY:
        if hasattr(own, name):
            vars(own)[name] = getattr(before, name)


def _cut_padding(model: PreTrainedModel, vocab_size: int) -> None:
    """Cut embedding and output head to the tokenizer's vocabulary."""
    embedding: Any = model.get_input_embeddings()
    if embedding.weight.shape[0] > vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round weights to numbers of a dtype; they stay float32, in which they can be computed with.

    Raises:
        FedfuseError: for numbers that are not finite there.
    """
    for weight in _weights(model):
        weight.data = weight.data.to(dtype).to(weight.dtype)
        found = "weights that are not finite in it; bfloat16 has the range of float32"
        finite = torch.isfinite(weight).all()
        check(f"dtype {str(dtype).removeprefix('torch.')}", found, "finite weights", finite)


def _weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """What is saved of a model, but what its family keeps in float32 whatever the dtype."""
    untyped: Any = model
    kept = {
        *(getattr(untyped, "_keep_in_fp32_modules_strict", None) or ()),
        *(getattr(untyped, "_keep_in_fp32_modules", None) or ()),
    }
    for name, weight in model.state_dict(keep_vars=True).items():
        if weight.is_floating_point() and not any(part in name for part in kept):
            yield weight


def write_tokenizer(name: str, tokenizer: TextTokenizer, rows: int, folder: Path) -> None:
    """See to it that AutoTokenizer makes the run's tokens of every text.

    For some families it puts a normalizer and a pre-tokenizer of its own in place of the file's.

    Args:
        name: name of the base.
        tokenizer: the run's.
        rows: embeddings of the model.
        folder: folder with the base's files.

    Raises:
        FedfuseError: where it does not.
    """
    if not (folder / _TOKENIZER).is_file():  # an older format, which it converts
        _auto_tokenizer(folder).save_pretrained(str(folder))
    wanted = _decisive(tokenizer)

    def same() -> bool:
        found = TextTokenizer.from_pretrained(_auto_tokenizer(folder))
        return _decisive(found.within(rows)) == wanted

    if same():
        return
    path = folder / _TOKENIZER_CONFIG
    about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about |= {"tokenizer_class": _VERBATIM}
    about.pop("auto_map", None)
    path.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    check(f"tokenizer of {name!r}", "others", "the run's tokens from AutoTokenizer", same())


def _auto_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def _decisive(tokenizer: TextTokenizer) -> dict[str, Any]:
    """What decides on the tokens of a text, without those that are put around it."""
    spec: dict[str, Any] = json.loads(tokenizer.to_json())["tokenizer"]
    return {**spec, "post_processor": None, "decoder": None}


def _tried_ids(lm: CausalLM) -> Int64[Tensor, "1 length"]:
    """Ids of tokens of text, the same in every call."""
    special = lm.tokenizer.marked_special | set(lm.tokenizer.special_ids.values())
    used = sorted(set(lm.tokenizer.vocabulary.values()) - special)
    drawn = torch.randint(len(used), (_TRIED,), generator=torch.Generator().manual_seed(0))
    ids = [lm.tokenizer.bos_id, *(used[i] for i in drawn.tolist())]
    return torch.tensor([ids[: lm.max_length]])


@torch.no_grad()
def _logits(model: Any, ids: Int64[Tensor, "1 length"]) -> Float[Tensor, "length vocab"]:
    found: Tensor = model(input_ids=ids, **without_cache(model)).logits[0].float()
    return found


def check_folder(
    folder: Path, ids: Int64[Tensor, "1 length"], right: Float[Tensor, "length vocab"], name: str
) -> None:
    """Load what was written with transformers alone and compare its logits.

    Args:
        folder: folder of the model.
        ids: input to try it on.
        right: logits that it must give.
        name: name of the base, for the error.

    Raises:
        FedfuseError: where it gives others, or cannot be loaded.
    """
    with loading_errors(name):
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        found = _logits(read.eval(), ids)
    _compare(name, "the merged model, read back", found, right)


def _compare(
    name: str,
    what: str,
    found: Float[Tensor, "length vocab"],
    right: Float[Tensor, "length vocab"],
) -> None:
    """Refuse logits that are not the right ones."""
    hint = "its family cannot hold this adapter in a folder of its own; use the adapter with PEFT"
    what, expected = f"model {name!r}: {what}", f"the same logits, {list(right.shape)}"
    check(what, list(found.shape), expected, found.shape == right.shape)
    off = float((found - right).abs().max() / right.std())
    check(what, f"ones off by {off:.2g} deviations: {hint}", expected, off <= _ALLOWED)
