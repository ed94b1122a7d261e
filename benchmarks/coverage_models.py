"""Every causal type of the installed transformers, shrunk to a tiny model with random weights.

A configuration is shrunk by general rules on field names (``RULES``), its sub-configurations
too. ``CARE`` holds the few fields that the rules cannot know, per type, with the reason. Constants
that a type multiplies with are set away from 1, so that a tensor taken before such a
multiplication cannot pass for one taken after it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = ["ENCODERS", "ENCODER_DECODERS", "VOCAB", "all_types", "tiny_config", "tiny_model"]

VOCAB = 96
WIDTH = 32
LAYERS = 3
LAYERS_OF_TYPE = object()
PARAMETERS_AT_MOST = 60_000_000

ENCODERS = (
    "albert", "bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert", "mpnet",
)  # fmt: skip
"""Encoders, built without a head. In the tables they are called ``encoder/bert``."""

ENCODER_DECODERS = ("t5", "bart")
"""Encoder-decoders, with their head as ``seq2seq/t5``, their encoder alone as ``encoder-of/t5``."""

RULES: tuple[tuple[str, Any], ...] = (
    (r"(\w+_)?vocab_size(_\w+)?|n_vocab|segment_types|prompt_types", VOCAB),
    (r"type_vocab_size|task_type_vocab_size", 2),
    (r"rotary_dim", 4),
    (r"chunk_size_feed_forward|chunk_size_lm_head|clamp_len", 0),
    (r"qk_head_dim", 16),
    (r"patch_size|num_channels|n_langs|num_codebooks|expand|mamba_expand|ngram", None),
    (r"num_kv_shared_layers|num_nextn_predict_layers|num_mtp_layers", 0),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"moe_layer_end_index", LAYERS - 1),
    (r"num_layers_per_stack", 2),
    (
        r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers"
        r"|num_blocks|depth|num_hidden_layers_\w+|max_window_layers",
        LAYERS_OF_TYPE,
    ),
    (r"(swa_)?(num_|multi_query_)?(key_value|kv)_heads|(\w+_)?num_key_value_heads|indexer_kv_heads",
     2),
    (r"num_key_value_heads_per_\w+|num_query_groups", 2),
    (
        r"(num_|n_)?(\w+_)?(attention_heads?|heads?)|num_head|(\w+_)?num_(key|value)_heads"
        r"|mamba_(n|num)_heads|(\w+_)?n_heads|n_mamba_heads|num_heads_\w+",
        4,
    ),
    (r"(linear_|mamba_|moe_|hc_)?(\w+_)?head_dim|d_kv|d_head|dim_head|head_size"
     r"|attention_head_size|kv_channels|mamba_d_head|mamba_headdim|attention_head_dim|head_dim_\w+",
     8),
    (r"(\w+_)?(q|kv|o|gate|adapter|low)_?(lora_)?rank|laurel_rank|hc_lowrank|gated_norm_rank", 8),
    (r"(\w+_)?(intermediate|ffn_hidden|ffn|feed_forward|ff)_(size|dim)|dim_ff|dff|d_ff|d_inner"
     r"|n_inner|(\w+_)?intermediate_size(_\w+)?|(\w+_)?ffn_hidden_size|ffn_dim|hidden_dim|d_ffn"
     r"|prompt_mid_dim",
     48),
    (r"adapter_input_size|adapter_out_dim", WIDTH),
    (r"(\w+_)?(hidden_size|d_model|n_embd|emb_dim|embedding_dim|embed_dim|embedding_size|dim"
     r"|proj_dim|projection_dim|output_proj_dims|lru_width)", WIDTH),
    (r"word_embed_proj_dim|hidden_size_per_layer_input|backbone_hidden_size|\w+_embed_dim", WIDTH),
    (r"num_shared_experts|n_shared_experts|moe_num_shared_experts|zero_expert_num", 1),
    (r"(\w+_)?(num|n)_(\w+_)?experts|num_local_experts|moe_num_experts|num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_?k_experts|num_selected_experts"
     r"|experts_per_token",
     2),
    (r"n_groups?|num_expert_group|topk_group|mamba_n_groups|mamba_ngroups|o_groups", 1),
    (r"index_topk|indexer_budget|keep_window_size", 16),
    (r"index_topk_blocks|index_local_blocks", 2),
    (r"index_block_size", 4),
    (r"(\w+_)?(sliding_window(_size)?|window_size|local_attention|attention_window_size"
     r"|attention_chunk_size|local_attention_window_len|context_window)", 8),
    (r"(\w+_)?(max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length"
     r"|max_(source|target)_positions|max_sequence_length|model_max_length|seq_length)", 64),
    (r"(\w+_)?chunk_size|block_size|local_attn_chunk_length|lsh_attn_chunk_length", 4),
    (r"state_size|mamba_d_state|ssm_state_size|d_state", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"block_multiple_of|ffn_round_up_to_multiple_of", 8),
    (r"rel_extent|relative_max_distance|position_bias_max_distance|num_centroids", 32),
    (r"(residual|attention|embedding|ssm_out|attention_out|key|lm_head)_multiplier", 0.7),
    (r"logits_scaling", 4.0),
    (r"(full|linear)_attn_(alpha|beta)_factor|mlp_(alpha|beta)_factor", 1.25),
    (r"dropout|\w*dropout\w*|\w*pdrop|layerdrop|\w+_layerdrop", 0.0),
)  # fmt: skip
"""Field name -> value, first match wins; None leaves the field alone. A field that is None by
default stays None: its type derives it."""

PATTERNS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "block_types")
"""Lists with one word per layer: cut so that every word occurs."""

MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_MLA = {"num_key_value_heads": 4}
"""Multi-head latent attention expands its one latent to every head."""

CARE: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_encoder": {"hidden_size_global": WIDTH},
    "blt_local_decoder": {"hidden_size_global": WIDTH},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
              "num_key_value_heads": 2},
    "dots3_note_text": {
        **_MLA, "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        **{f"swa_{name}": size for name, size in {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 8,
            "kv_lora_rank": 8, "head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
            "v_head_dim": 8}.items()}},
    "falcon_h1": {"mamba_d_head": 16, "attention_out_multiplier": 0.6,
                  "mlp_multipliers": [0.8, 0.6],
                  "ssm_multipliers": [0.9, 0.8, 0.7, 1.2, 1.1]},
    "gemma3n_text": {"intermediate_size": 48, "activation_sparsity_pattern": [0.9, 0.0, 0.0],
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {
        "mamba_d_head": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "hrm_text": {"num_hidden_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"head_dim": 16},
    "ministral": {"head_dim": 8},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8,
                       "indexer_budget": 8, "indexer_compress_ratio": 2},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
                 "attn_layers": ["local", "lsh", "local"], "is_decoder": True},
    "rwkv": {"rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
              "num_hidden_layers": 4, "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
               "num_hidden_layers": 4, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Fields that the rules cannot know, by ``model_type``, of sub-configurations too."""

_DRAFTS = "reads another model's hidden states, keys and values instead of token ids"
NO_TOKENS = {"gemma4_assistant": _DRAFTS, "gemma4_unified_assistant": _DRAFTS}
"""Causal types that take no text, by reading their code."""

DERIVED = {
    "attention_head_dim", "attention_hidden_size", "attention_layers", "d_head", "embedding_dim",
    "full_attn_idxs", "hybrid_layer_ids", "kv_channels", "mamba_headdim", "num_blocks",
    "num_layers_per_stack", "num_query_groups", "number_of_conv_states",
}  # fmt: skip
"""Fields that the configuration computes from others."""


def all_types() -> list[str]:
    """Every name of the tables: causal types, then encoders, then encoder-decoders."""
    causal = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    others = [f"encoder/{name}" for name in ENCODERS]
    parts = [f"{part}/{name}" for part in ("encoder-of", "seq2seq") for name in ENCODER_DECODERS]
    return causal + others + parts


def tiny_config(name: str) -> Any:
    """The shrunk configuration of a type."""
    kind, _, name = name.rpartition("/")
    config = _shrunk(AutoConfig.for_model(name))
    if not kind and hasattr(config, "is_decoder"):
        config.is_decoder = True  # encoders with a causal head attend to every token without it
    return config


def _shrunk(config: Any) -> Any:
    """A configuration of the same class with small values."""
    fields = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    words = {k: list(dict.fromkeys(fields[k])) for k in PATTERNS if _is_words(fields.get(k))}
    depth = max([LAYERS, *(len(kinds) for kinds in words.values())])
    small: dict[str, Any] = {name: (kinds * depth)[:depth] for name, kinds in words.items()}
    marks = iter(range(3, 8))
    for name, value in fields.items():
        if name in DERIVED or name in small:
            continue
        if isinstance(value, PreTrainedConfig):
            small[name] = _shrunk(value)
        elif name in MARKS:
            small[name] = MARKS[name]
        elif re.fullmatch(r"\w+_token(_id|_index)?", name):
            if isinstance(value, int):
                small[name] = next(marks, 7)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rule = next((v for pattern, v in RULES if re.fullmatch(pattern, name)), None)
            if rule is not None:
                small[name] = type(value)(depth if rule is LAYERS_OF_TYPE else rule)
    if fields.get("kv_lora_rank"):
        small |= _MLA
    return type(config)(**small | CARE.get(config.model_type, {}))


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)


def tiny_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model of a type in evaluation mode.

    Raises:
        Exception: whatever the type's own code raises where the rules do not fit it.
    """
    if name in NO_TOKENS:
        raise ValueError(NO_TOKENS[name])
    kind, _, _ = name.rpartition("/")
    loader = {"": AutoModelForCausalLM, "encoder": AutoModel}.get(kind, AutoModelForSeq2SeqLM)
    config = tiny_config(name)
    torch.manual_seed(seed)
    if name in ("musicgen", "musicgen_melody"):  # the causal class takes the decoder's part alone
        model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])(config.decoder)
    else:
        model = loader.from_config(config)
    size = sum(p.numel() for p in model.parameters())
    if size > PARAMETERS_AT_MOST:
        raise ValueError(f"still {size:,} parameters: a field was not shrunk")
    randomise(model)
    model = model.get_encoder() if kind == "encoder-of" else model
    return model.to(dtype).eval()


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """No norm is 1, no bias and no gate 0, and contributions have the size of the stream."""
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        parameter.nan_to_num_(0.0, 0.0, 0.0)
        if parameter.ndim <= 1 or float(parameter.abs().max()) == 0:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        else:
            parameter.mul_(3.0)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # multiplies a block's output; 1 when new
            buffer.fill_(0.8)
