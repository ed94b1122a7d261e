"""Attention and MLP of six families, written by hand in numpy float64 from the papers.

Each function takes the plain Hugging Face model, a layer, and the residual stream of one unpadded
example, and returns the site tensors of that layer. No code of transformers runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def weights(module: Any, name: str) -> Array:
    return module.get_parameter(name).detach().double().numpy()


def linear(x: Array, module: Any, name: str) -> Array:
    """A torch Linear: the weight is [out, in]."""
    y = x @ weights(module, f"{name}.weight").T
    has_bias = module.get_submodule(name).bias is not None
    return y + weights(module, f"{name}.bias") if has_bias else y


def layer_norm(x: Array, module: Any, name: str, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return unit * weights(module, f"{name}.weight") + weights(module, f"{name}.bias")


def rms_norm(x: Array, module: Any, name: str, eps: float, offset: float = 0.0) -> Array:
    unit = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return unit * (weights(module, f"{name}.weight") + offset)


def rotary(x: Array, theta: float, dims: int) -> Array:
    """Rotate the pairs (i, i + dims / 2) of the first ``dims`` entries of ``[pos, head, d]``."""
    half = dims // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
    bias: Array | None = None,
) -> dict[str, Array]:
    """Causal attention of ``[pos, head, d]``; every group of query heads shares one key head."""
    length, heads = q.shape[:2]
    group = heads // k.shape[1]
    pattern = np.zeros((heads, length, length))
    z = np.zeros((length, heads, v.shape[-1]))
    for h in range(heads):
        for i in range(length):
            first = 0 if window is None else max(0, i - window + 1)
            scores = np.array([q[i, h] @ k[j, h // group] for j in range(first, i + 1)]) * scale
            if cap is not None:
                scores = cap * np.tanh(scores / cap)
            if bias is not None:
                scores = scores + bias[h, first : i + 1]
            pattern[h, i, first : i + 1] = softmax(scores)
            z[i, h] = pattern[h, i] @ v[:, h // group]
    return {"q": q, "k": k, "v": v, "pattern": pattern, "z": z}


def split(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1)


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def llama(hf: Any, layer: int, pre: Array, mid: Array) -> dict[str, Array]:
    block, c = hf.model.layers[layer], hf.config
    x = rms_norm(pre, block, "input_layernorm", c.rms_norm_eps)
    theta = c.rope_parameters["rope_theta"]
    q = split(linear(x, block, "self_attn.q_proj"), c.num_attention_heads)
    k = split(linear(x, block, "self_attn.k_proj"), c.num_key_value_heads)
    v = split(linear(x, block, "self_attn.v_proj"), c.num_key_value_heads)
    q, k = rotary(q, theta, c.head_dim), rotary(k, theta, c.head_dim)
    y = rms_norm(mid, block, "post_attention_layernorm", c.rms_norm_eps)
    gate, up = linear(y, block, "mlp.gate_proj"), linear(y, block, "mlp.up_proj")
    inside = {"mlp_pre": gate, "mlp_post": silu(gate) * up}
    return attend(q, k, v, scale=c.head_dim**-0.5) | inside


def gpt2(hf: Any, layer: int, pre: Array, mid: Array) -> dict[str, Array]:
    block, c = hf.transformer.h[layer], hf.config
    x = layer_norm(pre, block, "ln_1", c.layer_norm_epsilon)
    fused = x @ weights(block, "attn.c_attn.weight") + weights(block, "attn.c_attn.bias")
    q, k, v = (split(part, c.n_head) for part in np.split(fused, 3, axis=-1))
    y = layer_norm(mid, block, "ln_2", c.layer_norm_epsilon)
    mlp_pre = y @ weights(block, "mlp.c_fc.weight") + weights(block, "mlp.c_fc.bias")
    inside = {"mlp_pre": mlp_pre, "mlp_post": gelu_tanh(mlp_pre)}
    return attend(q, k, v, scale=(c.n_embd // c.n_head) ** -0.5) | inside


def gpt_neox(hf: Any, layer: int, pre: Array, mid: Array) -> dict[str, Array]:
    block, c = hf.gpt_neox.layers[layer], hf.config
    d_head = c.hidden_size // c.num_attention_heads
    x = layer_norm(pre, block, "input_layernorm", c.layer_norm_eps)
    fused = split(linear(x, block, "attention.query_key_value"), c.num_attention_heads)
    q, k, v = np.split(fused, 3, axis=-1)
    dims = int(d_head * c.rope_parameters["partial_rotary_factor"])
    theta = c.rope_parameters["rope_theta"]
    y = layer_norm(pre, block, "post_attention_layernorm", c.layer_norm_eps)  # parallel
    mlp_pre = linear(y, block, "mlp.dense_h_to_4h")
    inside = {"mlp_pre": mlp_pre, "mlp_post": gelu_exact(mlp_pre)}
    return attend(rotary(q, theta, dims), rotary(k, theta, dims), v, scale=d_head**-0.5) | inside


def gemma2(hf: Any, layer: int, pre: Array, mid: Array) -> dict[str, Array]:
    block, c = hf.model.layers[layer], hf.config
    x = rms_norm(pre, block, "input_layernorm", c.rms_norm_eps, offset=1.0)
    theta = c.rope_parameters["rope_theta"]
    q = split(linear(x, block, "self_attn.q_proj"), c.num_attention_heads)
    k = split(linear(x, block, "self_attn.k_proj"), c.num_key_value_heads)
    v = split(linear(x, block, "self_attn.v_proj"), c.num_key_value_heads)
    y = rms_norm(mid, block, "pre_feedforward_layernorm", c.rms_norm_eps, offset=1.0)
    gate, up = linear(y, block, "mlp.gate_proj"), linear(y, block, "mlp.up_proj")
    inside = {"mlp_pre": gate, "mlp_post": gelu_tanh(gate) * up}
    sliding = c.layer_types[layer] == "sliding_attention"
    return inside | attend(
        rotary(q, theta, c.head_dim),
        rotary(k, theta, c.head_dim),
        v,
        scale=c.query_pre_attn_scalar**-0.5,
        window=c.sliding_window if sliding else None,
        cap=c.attn_logit_softcapping,
    )


def bloom(hf: Any, layer: int, pre: Array, mid: Array) -> dict[str, Array]:
    block, c = hf.transformer.h[layer], hf.config
    d_head = c.hidden_size // c.n_head
    x = layer_norm(pre, block, "input_layernorm", c.layer_norm_epsilon)
    fused = split(linear(x, block, "self_attention.query_key_value"), c.n_head)
    q, k, v = np.split(fused, 3, axis=-1)
    slopes = 2.0 ** (-8.0 / c.n_head * np.arange(1, c.n_head + 1))  # Press et al. 2022
    bias = slopes[:, None] * np.arange(len(pre))[None, :]
    y = layer_norm(mid, block, "post_attention_layernorm", c.layer_norm_epsilon)
    mlp_pre = linear(y, block, "mlp.dense_h_to_4h")
    inside = {"mlp_pre": mlp_pre, "mlp_post": gelu_tanh(mlp_pre)}
    return attend(q, k, v, scale=d_head**-0.5, bias=bias) | inside


def opt(hf: Any, layer: int, pre: Array, mid: Array) -> dict[str, Array]:
    block, c = hf.model.decoder.layers[layer], hf.config
    d_head = c.hidden_size // c.num_attention_heads
    x = layer_norm(pre, block, "self_attn_layer_norm", 1e-5)
    q, k, v = (
        split(linear(x, block, f"self_attn.{name}_proj"), c.num_attention_heads) for name in "qkv"
    )
    y = layer_norm(mid, block, "final_layer_norm", 1e-5)
    mlp_pre = linear(y, block, "fc1")
    inside = {"mlp_pre": mlp_pre, "mlp_post": np.maximum(mlp_pre, 0)}
    return attend(q * d_head**-0.5, k, v, scale=1.0) | inside  # OPT scales its queries


REFERENCES: dict[str, Callable[[Any, int, Array, Array], dict[str, Array]]] = {
    "llama": llama, "gpt2": gpt2, "gpt_neox": gpt_neox, "gemma2": gemma2, "bloom": bloom,
    "opt": opt,
}  # fmt: skip
