"""A tiny configuration of every family of causal language models, and random weights that matter.

The sizes are the same for all: every attribute of a family's configuration that means a width, a
number of layers, heads or experts gets a small value, wherever it has such an attribute. What a
family needs beyond that is in ``OWN``, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WIDTH, HEADS, LAYERS, LENGTH, EXPERTS = 32, 4, 4, 96, 4
# Most weights of a model beside embedding and head: one that has more is not tiny.
MOST_WEIGHTS = 8_000_000

# Value of a setting where a family's configuration has it.
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim_model", "embed_dim"), WIDTH),
    **dict.fromkeys(("n_embed", "emb_dim", "embedding_size", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("decoder_hidden_size", "attention_hidden_size", "lru_width"), WIDTH),
    **dict.fromkeys(("hidden_size_global", "input_embedding_size", "output_embedding_size"), WIDTH),
    **dict.fromkeys(("conv_dim", "block_dim", "audio_embed_dim", "embedding_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("dff", "dim_ff", "n_inner", "intermediate_size_mlp", "ffn_hidden_size"), 48),
    **dict.fromkeys(("prefix_dense_intermediate_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("moe_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_blocks", "attention_blocks"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "depth", "num_global_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "q_lora_rank", "kv_lora_rank", "o_lora_rank"), 8),
    # Of more positions than any sample here: indexers break ties between positions by the length of
    # the row, and a row is longer for padding.
    "index_topk": LENGTH,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), EXPERTS),
    **dict.fromkeys(("moe_num_experts", "n_experts", "ffn_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("num_experts_per_token", "moe_k", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(
        ("num_expert_group", "n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"),
        1,
    ),
    **dict.fromkeys(("num_shared_experts", "moe_num_shared_experts", "decoder_sparse_step"), 1),
    **dict.fromkeys(("state_size", "mamba_d_state", "time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), HEADS),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("expand", "mamba_expand"), 2),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "attention_chunk_size"), 8),
    **dict.fromkeys(("sliding_window", "local_window_size", "attention_window_size"), 8),
    **dict.fromkeys(("sliding_window_size", "window_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), LENGTH),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "seq_length"), LENGTH),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    "num_nextn_predict_layers": 0,
    **dict.fromkeys(("swa_num_attention_heads",), HEADS),
    **{"swa_num_key_value_heads": 2, "swa_head_dim": 8, "rel_extent": 16},
    # Images and sounds, which nothing here has.
    "image_size": 16,
    "patch_size": 8,
}
# What a family must be given before it has any configuration.
GIVEN: Mapping[str, Mapping[str, Any]] = {
    # All its layers use keys of the model that it drafts for, and the default has parts that it
    # must not have.
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "num_hidden_layers": LAYERS,
            "num_kv_shared_layers": LAYERS,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
}
# What a family that leaves it None does without.
OPTIONAL = ("q_lora_rank", "n_inner", "sliding_window", "attention_chunk_size", "num_layers")
# Parts of the names of settings by which a model draws numbers in training; they must repeat.
DROPOUT = ("dropout", "pdrop", "layerdrop", "jitter")
TOKENS = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}

SLIDING, FULL, MLP = "sliding_attention", "full_attention", "mlp"
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"]
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": LENGTH,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 1,
    "hc_lowrank": 8,
}
# What else a family needs, and why.
OWN: Mapping[str, Mapping[str, Any]] = {
    # By default no layer has attention, though published models have.
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    # Byte groups have embeddings of their own.
    "blt": {"encoder_hash_byte_group_vocab": 64},
    # The default leaves out what its layers ask for.
    "cohere_compass_text": {"rope_parameters": {SLIDING: _ROPE, FULL: _ROPE}},
    # Its parts name their settings differently, and read some that they no longer have.
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    # Layers of attention and of feed-forward nets alternate, in three stages.
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": [SLIDING, MLP, FULL, MLP, SLIDING, MLP],
    },
    # By default some layers have sizes of their own; a head is the sum of its two parts.
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16},
    # Eyes and ears end in the width of the text; experts are by layer.
    "dots3_note_vision_encoder": {
        "adapter_in_dim": WIDTH,
        "adapter_out_dim": WIDTH,
        "mlp_layer_types": ["dense", "dense", "dense", "sparse"],
        "per_layer_config": {},
    },
    "dots3_note_audio_encoder": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    # Tokens of images are words of its vocabulary; its painter has sizes of its own.
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "emu3_vqgan": {"base_channels": 32, "embed_dim": 4, "codebook_size": 64, "num_res_blocks": 1},
    # The last layers use the keys of the first, of each kind; some sizes are lists by layer.
    "gemma3n_text": {
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
    },
    # Kinds of layers are runs of a pattern.
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    # The default names no kinds of layers.
    "lfm2_moe": {"layer_types": ["conv", FULL, "conv", FULL], "num_dense_layers": 1},
    # Its eyes end in widths of their own.
    "llama4_vision_model": {
        "projector_input_dim": WIDTH,
        "projector_output_dim": WIDTH,
        "vision_output_dim": WIDTH,
    },
    # Heads times their size is twice the width.
    "mamba2": {"num_heads": HEADS, "head_dim": 16},
    # The default leaves its indexer undefined.
    "qwen4_exp_text": _INDEXER,
    # Position embeddings are a sum of two parts; the kinds of layers are a list.
    "reformer": {
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [8, 12],
        "attn_layers": ["local", "lsh"] * 2,
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    # Two more inputs, a character's shape and its sound.
    "roc_bert": {"shape_embed_dim": 8, "pronunciation_embed_dim": 8},
    # Layers share a transformer, which needs two of them.
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": _HYBRID,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": _HYBRID,
        "adapter_rank": 8,
        "mamba_headdim": 16,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    # Made with a tied head it is not tied, until transformers loads it.
    "youtu": {"tie_word_embeddings": False},
    # It has a part for each language, and must be told which.
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    # It knows one expert a token.
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def tiny_config(family: str, vocab_size: int) -> Any:
    """The configuration of a family in small."""
    default = AutoConfig.for_model(family, **GIVEN.get(family, {}))
    small = _small(default, vocab_size)
    for part, settings in GIVEN.get(family, {}).items():
        small[part] |= settings
    config = AutoConfig.for_model(family, **small)
    kinds = _all_kinds(default, config, small)
    return AutoConfig.for_model(family, **small | kinds) if kinds else config


def _small(default: Any, vocab_size: int) -> dict[str, Any]:
    """Settings of a configuration and its parts, as they are here."""
    settings = default.to_dict()
    names = ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size")
    known = SIZES | dict.fromkeys(names, vocab_size) | TOKENS
    if "kv_lora_rank" in settings:  # latent attention has no groups of heads
        known["num_key_value_heads"] = HEADS
    small = {
        name: known[name]
        for name, value in settings.items()
        if name in known and not (value is None and name in OPTIONAL)
    }
    small |= {
        name: 0.0
        for name, value in settings.items()
        if isinstance(value, float) and any(part in name for part in DROPOUT)
    }
    if "is_decoder" in settings:
        small["is_decoder"] = True
    for part in default.sub_configs:
        own = getattr(default, part, None)
        if own is not None:
            small[part] = {"model_type": own.model_type} | _small(own, vocab_size)
    return small | OWN.get(default.model_type, {})


def _all_kinds(default: Any, config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of the kinds of layers, where few layers would leave out a kind."""
    found = {}
    for name, value in default.to_dict().items():
        if name in given or not name.endswith(("layer_types", "layers_block_type")) or not value:
            continue
        kinds = list(dict.fromkeys(value))
        if not set(kinds) <= set(getattr(config, name) or ()) and len(kinds) <= LAYERS:
            found[name] = [kinds[0]] * (LAYERS - len(kinds)) + kinds
    return found


def tiny_model(family: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """A random model of a family as its checkpoints have it, float32, in evaluation mode.

    Where a causal LM is loaded from a part of a larger model, this is the larger one.
    """
    config = tiny_config(family, vocab_size)
    factory = AutoModelForMultimodalLM if is_part(config) else AutoModelForCausalLM
    return random_model(config, factory, 2 * WIDTH * vocab_size, seed)


def random_model(config: Any, factory: Any, words: int = 0, seed: int = 0) -> PreTrainedModel:
    """A model of a configuration with random weights; ``words`` of them are of its tokens."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in factory.from_config(config).parameters())
    if weights - words > MOST_WEIGHTS:
        raise ValueError(f"{weights:,} weights are not tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = factory.from_config(config).eval()
        draw_weights(model)
    return model


def is_part(config: Any) -> bool:
    """Whether a family's causal LM is made of a part of its configuration, that of the text."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].config_class
    return found is not type(config) and found is type(config.get_text_config())


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM inside a larger model, if it is one; otherwise the model, which answers too."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)]
    return next((module for module in model.modules() if isinstance(module, kind)), model)


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Draw weights such that every part matters, and logits have a deviation of a few nats.

    Families begin with small weights and biases of zero, with which a broken part changes nothing.
    Decays and steps of recurrent layers are kept about where their family puts them.
    """
    untyped: Any = model
    head, kinds = untyped.get_output_embeddings(), {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            kinds.setdefault(id(parameter), module)
    for parameter in model.parameters():
        module, wide = kinds[id(parameter)], parameter.dim() > 1
        if isinstance(module, nn.Embedding):
            parameter.normal_(std=0.5)
        elif wide and isinstance(module, nn.Linear | Conv1D):
            width = parameter.shape[0] if isinstance(module, Conv1D) else parameter.shape[1]
            parameter.normal_(std=(2 if module is head else 1) / math.sqrt(width))
        elif not parameter.isfinite().all() or (wide and parameter.std() < 0.05):
            parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
