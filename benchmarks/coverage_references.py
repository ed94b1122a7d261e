"""Attention and MLP of eighteen families, written by hand in numpy float64 from the papers.

Each function takes the plain Hugging Face model, a layer, and the residual stream that enters it
for one unpadded example, ``[pos, d_model]``, and returns the site tensors of that layer. No code of
transformers runs.
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
    scaled = unit * weights(module, f"{name}.weight")
    has_bias = getattr(module.get_submodule(name), "bias", None) is not None
    return scaled + weights(module, f"{name}.bias") if has_bias else scaled


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


def rotary_pairs(x: Array, theta: float, dims: int) -> Array:
    """Rotate the neighbouring pairs (2 i, 2 i + 1) of the first ``dims`` entries."""
    half = dims // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b, rest = x[..., 0:dims:2], x[..., 1:dims:2], x[..., dims:]
    turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return np.concatenate([turned.reshape(*x.shape[:-1], dims), rest], axis=-1)


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


def conv1d(x: Array, module: Any, name: str) -> Array:
    """GPT-2's linear map: the weight is [in, out]."""
    return x @ weights(module, f"{name}.weight") + weights(module, f"{name}.bias")


def theta_of(config: Any) -> float:
    return float(config.rope_parameters["rope_theta"])


def merged(z: Array) -> Array:
    return z.reshape(len(z), -1)


def head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def projected(x: Array, block: Any, config: Any) -> tuple[Array, Array, Array]:
    """q, k and v of three projections, split into heads."""
    counts = {"q": config.num_attention_heads}
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    q, k, v = (
        split(linear(x, block, f"self_attn.{name}_proj"), counts.get(name, shared))
        for name in "qkv"
    )
    return q, k, v


def gated(y: Array, block: Any, act: Callable[[Array], Array]) -> dict[str, Array]:
    gate, up = linear(y, block, "mlp.gate_proj"), linear(y, block, "mlp.up_proj")
    return {"mlp_pre": gate, "mlp_post": act(gate) * up}


def usual(
    hf: Any, layer: int, pre: Array, *, act: Callable[[Array], Array] = silu, offset: float = 0.0,
    window: int | None = None, times: float = 1.0, scale: float | None = None,
    head_norms: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """RMS norms, rotary embedding of whole heads, a gated MLP (Touvron et al. 2023)."""
    block, c = hf.model.layers[layer], hf.config
    x = rms_norm(pre, block, "input_layernorm", c.rms_norm_eps, offset)
    q, k, v = projected(x, block, c)
    if head_norms:
        q = rms_norm(q, block, "self_attn.q_norm", c.rms_norm_eps)
        k = rms_norm(k, block, "self_attn.k_norm", c.rms_norm_eps)
    q, k = (rotary(t, theta_of(c), head_size(c)) for t in (q, k))
    seen = attend(q, k, v, scale=scale or head_size(c) ** -0.5, window=window)
    mid = pre + linear(merged(seen["z"]), block, "self_attn.o_proj") * times
    y = rms_norm(mid, block, "post_attention_layernorm", c.rms_norm_eps, offset)
    return seen | gated(y, block, act)


def llama(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    return usual(hf, layer, pre)


def mistral(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    return usual(hf, layer, pre, window=hf.config.sliding_window)


def qwen2(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    window = hf.config.sliding_window
    sliding = hf.config.layer_types[layer] == "sliding_attention"
    return usual(hf, layer, pre, window=window if sliding else None)


def qwen3(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    return usual(hf, layer, pre, head_norms=True)


def gemma(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    return usual(hf, layer, pre, act=gelu_tanh, offset=1.0)


def granite(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    c = hf.config
    return usual(hf, layer, pre, times=c.residual_multiplier, scale=c.attention_multiplier)


def olmo2(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    """Norms on what is added, and on queries and keys before they are split."""
    block, c = hf.model.layers[layer], hf.config
    heads, shared, eps = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps
    q = rms_norm(linear(pre, block, "self_attn.q_proj"), block, "self_attn.q_norm", eps)
    k = rms_norm(linear(pre, block, "self_attn.k_proj"), block, "self_attn.k_norm", eps)
    v = split(linear(pre, block, "self_attn.v_proj"), shared)
    q, k = (rotary(split(t, n), theta_of(c), head_size(c)) for t, n in ((q, heads), (k, shared)))
    seen = attend(q, k, v, scale=head_size(c) ** -0.5)
    added = linear(merged(seen["z"]), block, "self_attn.o_proj")
    mid = pre + rms_norm(added, block, "post_attention_layernorm", eps)
    return seen | gated(mid, block, silu)


def phi3(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    """One projection for q, k and v, one for gate and up."""
    block, c = hf.model.layers[layer], hf.config
    x = rms_norm(pre, block, "input_layernorm", c.rms_norm_eps)
    fused, d = linear(x, block, "self_attn.qkv_proj"), head_size(c)
    first, second = c.num_attention_heads * d, (c.num_attention_heads + c.num_key_value_heads) * d
    q, k, v = (t.reshape(len(x), -1, d) for t in np.split(fused, [first, second], axis=-1))
    dims = int(d * c.rope_parameters.get("partial_rotary_factor", 1.0))
    q, k = (rotary(t, theta_of(c), dims) for t in (q, k))
    seen = attend(q, k, v, scale=d**-0.5, window=c.sliding_window)
    mid = pre + linear(merged(seen["z"]), block, "self_attn.o_proj")
    y = rms_norm(mid, block, "post_attention_layernorm", c.rms_norm_eps)
    gate, up = np.split(linear(y, block, "mlp.gate_up_proj"), 2, axis=-1)
    return seen | {"mlp_pre": gate, "mlp_post": silu(gate) * up}


def starcoder2(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    block, c = hf.model.layers[layer], hf.config
    x = layer_norm(pre, block, "input_layernorm", c.norm_epsilon)
    q, k, v = projected(x, block, c)
    q, k = (rotary(t, theta_of(c), head_size(c)) for t in (q, k))
    seen = attend(q, k, v, scale=head_size(c) ** -0.5, window=c.sliding_window)
    mid = pre + linear(merged(seen["z"]), block, "self_attn.o_proj")
    y = layer_norm(mid, block, "post_attention_layernorm", c.norm_epsilon)
    mlp_pre = linear(y, block, "mlp.c_fc")
    return seen | {"mlp_pre": mlp_pre, "mlp_post": gelu_tanh(mlp_pre)}


def stablelm(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    """Layer norms, and a part of each head is rotated."""
    block, c = hf.model.layers[layer], hf.config
    x = layer_norm(pre, block, "input_layernorm", c.layer_norm_eps)
    q, k, v = projected(x, block, c)
    dims = int(head_size(c) * c.rope_parameters["partial_rotary_factor"])
    q, k = (rotary(t, theta_of(c), dims) for t in (q, k))
    seen = attend(q, k, v, scale=head_size(c) ** -0.5)
    mid = pre + linear(merged(seen["z"]), block, "self_attn.o_proj")
    y = layer_norm(mid, block, "post_attention_layernorm", c.layer_norm_eps)
    return seen | gated(y, block, silu)


def cohere(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    """Attention and MLP read one norm; neighbouring entries are rotated together."""
    block, c = hf.model.layers[layer], hf.config
    x = layer_norm(pre, block, "input_layernorm", c.layer_norm_eps)
    q, k, v = projected(x, block, c)
    q, k = (rotary_pairs(t, theta_of(c), head_size(c)) for t in (q, k))
    return attend(q, k, v, scale=head_size(c) ** -0.5) | gated(x, block, silu)


def gptj(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    """Attention and MLP read one norm; neighbours among the first entries are rotated."""
    block, c = hf.transformer.h[layer], hf.config
    x = layer_norm(pre, block, "ln_1", c.layer_norm_epsilon)
    q, k, v = (split(linear(x, block, f"attn.{name}_proj"), c.n_head) for name in "qkv")
    q, k = (rotary_pairs(t, 10000.0, c.rotary_dim) for t in (q, k))
    mlp_pre = linear(x, block, "mlp.fc_in")
    inside = {"mlp_pre": mlp_pre, "mlp_post": gelu_tanh(mlp_pre)}
    return attend(q, k, v, scale=(c.n_embd // c.n_head) ** -0.5) | inside


def mpt(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    """ALiBi, no biases, the exact GELU (Press et al. 2022)."""
    block, c = hf.transformer.blocks[layer], hf.config
    x = layer_norm(pre, block, "norm_1", 1e-5)
    q, k, v = (split(t, c.n_heads) for t in np.split(linear(x, block, "attn.Wqkv"), 3, axis=-1))
    most = c.attn_config.alibi_bias_max
    slopes = 2.0 ** (-most / c.n_heads * np.arange(1, c.n_heads + 1))
    bias = slopes[:, None] * np.arange(len(pre))[None, :]
    seen = attend(q, k, v, scale=(c.d_model // c.n_heads) ** -0.5, bias=bias)
    mid = pre + linear(merged(seen["z"]), block, "attn.out_proj")
    mlp_pre = linear(layer_norm(mid, block, "norm_2", 1e-5), block, "ffn.up_proj")
    return seen | {"mlp_pre": mlp_pre, "mlp_post": gelu_exact(mlp_pre)}


def gpt2(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    block, c = hf.transformer.h[layer], hf.config
    x = layer_norm(pre, block, "ln_1", c.layer_norm_epsilon)
    q, k, v = (split(t, c.n_head) for t in np.split(conv1d(x, block, "attn.c_attn"), 3, axis=-1))
    seen = attend(q, k, v, scale=(c.n_embd // c.n_head) ** -0.5)
    mid = pre + conv1d(merged(seen["z"]), block, "attn.c_proj")
    mlp_pre = conv1d(layer_norm(mid, block, "ln_2", c.layer_norm_epsilon), block, "mlp.c_fc")
    return seen | {"mlp_pre": mlp_pre, "mlp_post": gelu_tanh(mlp_pre)}


def gpt_neox(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    block, c = hf.gpt_neox.layers[layer], hf.config
    d_head = c.hidden_size // c.num_attention_heads
    x = layer_norm(pre, block, "input_layernorm", c.layer_norm_eps)
    fused = split(linear(x, block, "attention.query_key_value"), c.num_attention_heads)
    q, k, v = np.split(fused, 3, axis=-1)
    dims = int(d_head * c.rope_parameters["partial_rotary_factor"])
    q, k = (rotary(t, theta_of(c), dims) for t in (q, k))
    y = layer_norm(pre, block, "post_attention_layernorm", c.layer_norm_eps)  # parallel
    mlp_pre = linear(y, block, "mlp.dense_h_to_4h")
    inside = {"mlp_pre": mlp_pre, "mlp_post": gelu_exact(mlp_pre)}
    return attend(q, k, v, scale=d_head**-0.5) | inside


def gemma2(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    block, c = hf.model.layers[layer], hf.config
    x = rms_norm(pre, block, "input_layernorm", c.rms_norm_eps, offset=1.0)
    q, k, v = projected(x, block, c)
    q, k = (rotary(t, theta_of(c), c.head_dim) for t in (q, k))
    sliding = c.layer_types[layer] == "sliding_attention"
    window, cap = c.sliding_window if sliding else None, c.attn_logit_softcapping
    seen = attend(q, k, v, scale=c.query_pre_attn_scalar**-0.5, window=window, cap=cap)
    added = linear(merged(seen["z"]), block, "self_attn.o_proj")
    mid = pre + rms_norm(added, block, "post_attention_layernorm", c.rms_norm_eps, offset=1.0)
    y = rms_norm(mid, block, "pre_feedforward_layernorm", c.rms_norm_eps, offset=1.0)
    return seen | gated(y, block, gelu_tanh)


def bloom(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    block, c = hf.transformer.h[layer], hf.config
    d_head = c.hidden_size // c.n_head
    x = layer_norm(pre, block, "input_layernorm", c.layer_norm_epsilon)
    fused = split(linear(x, block, "self_attention.query_key_value"), c.n_head)
    q, k, v = np.split(fused, 3, axis=-1)
    slopes = 2.0 ** (-8.0 / c.n_head * np.arange(1, c.n_head + 1))  # Press et al. 2022
    bias = slopes[:, None] * np.arange(len(pre))[None, :]
    seen = attend(q, k, v, scale=d_head**-0.5, bias=bias)
    mid = pre + linear(merged(seen["z"]), block, "self_attention.dense")
    y = layer_norm(mid, block, "post_attention_layernorm", c.layer_norm_epsilon)
    mlp_pre = linear(y, block, "mlp.dense_h_to_4h")
    return seen | {"mlp_pre": mlp_pre, "mlp_post": gelu_tanh(mlp_pre)}


def opt(hf: Any, layer: int, pre: Array) -> dict[str, Array]:
    block, c = hf.model.decoder.layers[layer], hf.config
    d_head = c.hidden_size // c.num_attention_heads
    x = layer_norm(pre, block, "self_attn_layer_norm", 1e-5)
    q, k, v = (
        split(linear(x, block, f"self_attn.{name}_proj"), c.num_attention_heads) for name in "qkv"
    )
    seen = attend(q * d_head**-0.5, k, v, scale=1.0)  # OPT scales its queries
    mid = pre + linear(merged(seen["z"]), block, "self_attn.out_proj")
    mlp_pre = linear(layer_norm(mid, block, "final_layer_norm", 1e-5), block, "fc1")
    return seen | {"mlp_pre": mlp_pre, "mlp_post": np.maximum(mlp_pre, 0)}


REFERENCES: dict[str, Callable[[Any, int, Array], dict[str, Array]]] = {
    f.__name__: f
    for f in (
        llama, gpt2, gpt_neox, gemma2, bloom, opt, mistral, qwen2, qwen3, gemma, granite, olmo2,
        phi3, starcoder2, stablelm, cohere, gptj, mpt,
    )
}  # fmt: skip
"""``model_type`` -> its reference."""
