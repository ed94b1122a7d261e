"""Tiny random models of many families, built from config alone, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

__all__ = ["DECODERS", "ENCODERS", "VOCAB", "tiny_model"]

VOCAB = 96

_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    **_MARKS,
}
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **_MARKS
    },
    "llama": _USUAL,
    "mistral": _USUAL,
    "qwen2": _USUAL,
    "qwen3": _USUAL,
    "phi": _USUAL,
    "phi3": _USUAL,
    "gemma2": _USUAL,
    "gemma3_text": _USUAL,
    "gpt_neox": _USUAL,
    "falcon": {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        **_MARKS,
    },
    "bloom": {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4, **_MARKS},
    "opt": {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64, **_MARKS,
    },
    "olmo2": _USUAL,
    "granite": {**_USUAL, "residual_multiplier": 0.22, "logits_scaling": 8.0,
                "embedding_multiplier": 12.0},
    "cohere": {**_USUAL, "logit_scale": 0.0625},
    "cohere2": {**_USUAL, "logit_scale": 0.0625},
    "mixtral": {**_USUAL, "num_local_experts": 4},
    "olmoe": {**_USUAL, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_USUAL, "num_experts": 4, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 16},
}  # fmt: skip
"""Configurations of causal families, each with every one of its constants away from 1."""

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "distilbert": {"vocab_size": VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48,
                   "max_position_embeddings": 64},
}  # fmt: skip
"""Configurations of encoder families."""


def tiny_model(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any
) -> Any:
    """A random model of a family in evaluation mode: 3 blocks, d_model 32, under 100,000 weights.

    Norms and biases are random too, so that a tensor taken before a norm cannot pass for one taken
    after it.

    Args:
        family: A name of ``DECODERS`` or ``ENCODERS``.
        dtype: Compute dtype.
        seed: Of the weights.
        config: Fields that replace the family's tiny ones.
    """
    torch.manual_seed(seed)
    known, loader = (
        (ENCODERS, AutoModel) if family in ENCODERS else (DECODERS, AutoModelForCausalLM)
    )
    model = loader.from_config(AutoConfig.for_model(family, **{**known[family], **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3.0)  # contributions of the size of the stream, as after training
    return model.to(dtype).eval()
