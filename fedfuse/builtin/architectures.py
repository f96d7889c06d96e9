"""Small language models of public architectures, from scratch: transformers' classes, our sizes."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

HEADS = 4
MAX_LENGTH = 128
ARCHITECTURES = ("gpt2", "llama", "opt", "gpt_neox")


def tiny_causal_lm(
    architecture: str, *, vocab_size: int, width: int, layers: int, tied: bool = True
) -> PreTrainedModel:
    """A model of hidden size ``width``, initialised from torch's global random generator.

    ``tied``: the output head shares the embeddings' weights, where the architecture's usually does.
    """
    config = _config(architecture, vocab_size, width, layers)
    config.tie_word_embeddings &= tied
    return _initialised(AutoModelForCausalLM, config)


def tiny_masked_lm(
    architecture: str, *, vocab_size: int, width: int, layers: int
) -> PreTrainedModel:
    """A masked language model, in all else as ``tiny_causal_lm``; the one architecture is BERT."""
    config = _config(architecture, vocab_size, width, layers)
    return _initialised(AutoModelForMaskedLM, config)


def _initialised(factory: Any, config: Any) -> PreTrainedModel:
    model: PreTrainedModel = factory.from_config(config)
    return model


def _config(architecture: str, vocab_size: int, width: int, layers: int) -> Any:
    own: dict[str, dict[str, Any]] = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {
            "intermediate_size": 3 * width,
            "num_key_value_heads": HEADS,
            "tie_word_embeddings": True,
        },
        "opt": {"word_embed_proj_dim": width, "ffn_dim": 4 * width, "dropout": 0.0},
        "gpt_neox": {"intermediate_size": 4 * width},
        "bert": {
            "intermediate_size": 2 * width,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            # At BERT's own 0.02 so narrow a model hardly learns in so few steps.
            "initializer_range": 0.05,
        },
    }
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        **own[architecture],
    )
    # Token ids of the built-in tokenizers' special tokens: see tokenizers.SPECIALS.
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    return config
