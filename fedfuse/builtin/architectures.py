"""Small language models of public architectures, from scratch: transformers' classes, our sizes."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)

HEADS = 4
MAX_LENGTH = 128


def tiny_causal_lm(
    architecture: str, *, vocab_size: int, width: int, layers: int, tied: bool = True
) -> PreTrainedModel:
    """A model of hidden size ``width``, initialised from torch's global random generator.

    ``tied``: the output head shares the embeddings' weights, where the architecture's usually does.
    """
    config = _CONFIGS[architecture](vocab_size, width, layers)
    config.tie_word_embeddings &= tied
    return _initialised(AutoModelForCausalLM, config)


def tiny_masked_lm(
    architecture: str, *, vocab_size: int, width: int, layers: int
) -> PreTrainedModel:
    """A masked language model, in all else as ``tiny_causal_lm``; the one architecture is BERT."""
    return _initialised(AutoModelForMaskedLM, _MASKED[architecture](vocab_size, width, layers))


def _initialised(factory: Any, config: PretrainedConfig) -> PreTrainedModel:
    # Token ids of the built-in tokenizers' special tokens: see tokenizers.SPECIALS.
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    model: PreTrainedModel = factory.from_config(config)
    return model


def _gpt2(vocab_size: int, width: int, layers: int) -> PretrainedConfig:
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=width,
        n_layer=layers,
        n_head=HEADS,
        n_positions=MAX_LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _llama(vocab_size: int, width: int, layers: int) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
    )


def _opt(vocab_size: int, width: int, layers: int) -> PretrainedConfig:
    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        dropout=0.0,
    )


def _gpt_neox(vocab_size: int, width: int, layers: int) -> PretrainedConfig:
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
    )


def _bert(vocab_size: int, width: int, layers: int) -> PretrainedConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # At BERT's own 0.02 so narrow a model hardly learns in so few steps.
        initializer_range=0.05,
    )


_CONFIGS = {"gpt2": _gpt2, "llama": _llama, "opt": _opt, "gpt_neox": _gpt_neox}
ARCHITECTURES = tuple(_CONFIGS)
_MASKED = {"bert": _bert}
