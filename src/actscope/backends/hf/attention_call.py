"""What one attention operation was given and returned, and the pattern that follows from it.

    pattern = softmax(cap(q k^T * scaling) + bias + mask)            (Vaswani et al. 2017)

``cap`` is Gemma 2's ``c * tanh(x / c)``; a sink (gpt-oss) is one more column in the softmax that is
left out afterwards, so rows then sum to less than one. Whatever a model's attention does beyond
that makes ``pattern @ value`` miss the output the model itself computed, and that is checked every
time a pattern is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AttentionCall", "PatternBlock", "Rules", "pattern_block", "tolerance"]


@dataclass(frozen=True)
class Rules:
    """What stands between ``q k^T`` and the softmax.

    Attributes:
        scaling: Multiplies the scores; None is ``d_head ** -0.5``.
        mask: ``[n, head, query_pos, key_pos]`` (axes of size 1 are shared) added where it is
            float, false where a key is hidden where it is boolean; ``[n, key_pos]`` marks the keys
            that exist; None hides nothing by itself.
        causal: Whether later keys are hidden where there is no four-dimensional mask.
        window: How many keys up to its own a query sees, where there is no four-dimensional mask.
        softcap: The cap of the scores.
        bias: Added to the scores, such as ALiBi's; shaped like the mask.
        sinks: One more score for every head, ``[head]``.
    """

    scaling: float | None = None
    mask: torch.Tensor | None = None
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    bias: torch.Tensor | None = None
    sinks: torch.Tensor | None = None


@dataclass(frozen=True)
class AttentionCall:
    """One attention operation as the model ran it.

    Attributes:
        query: ``[n, head, query_pos, d_head]``, after norm and rotary embedding.
        key: ``[n, kv_head, key_pos, d_head]``, likewise.
        value: ``[n, kv_head, key_pos, d_value]``.
        output: ``[n, query_pos, head, d_value]``, before the output projection.
        weights: ``[n, head, query_pos, key_pos]`` where the model made its pattern itself.
        rules: How the pattern follows from query and key where it did not.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    weights: torch.Tensor | None
    rules: Rules

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.query.shape[1]

    @property
    def n_kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.key.shape[1]


@dataclass(frozen=True)
class PatternBlock:
    """The pattern of some heads and queries of one example.

    Attributes:
        values: ``[head, query, key]``, at least float32.
        error: The largest ``|pattern @ value - output|`` over the largest ``|value|``, a scalar
            tensor: reading it is left to the caller, who may not want to wait for the device.
        outside: The largest weight of a query on keys that were not asked for.
    """

    values: torch.Tensor
    error: torch.Tensor
    outside: torch.Tensor


def tolerance(dtype: torch.dtype) -> float:
    """How far ``pattern @ value`` may lie from the output, as a share of the largest value.

    A kernel that computes in half precision rounds its scores, and a score of 10 in bfloat16 is
    off by 0.04; in float32 only the order of sums differs.
    """
    return 0.05 if dtype in (torch.bfloat16, torch.float16) else 2e-4


@torch.no_grad()
def pattern_block(
    call: AttentionCall,
    example: int,
    heads: torch.Tensor,
    queries: torch.Tensor,
    keys: slice,
    *,
    recompute: bool = False,
) -> PatternBlock:
    """The pattern of some heads and queries, checked against the output.

    Args:
        call: The operation.
        example: Which example of the batch.
        heads: ``[h]`` int64, query heads.
        queries: ``[q]`` int64, positions in the padded row.
        keys: The example's own tokens in the padded row.
        recompute: Leave the model's own weights aside.
    """
    kind = torch.promote_types(call.query.dtype, torch.float32)
    kv_heads = heads // (call.n_heads // call.n_kv_heads)
    if call.weights is not None and not recompute:
        rows = call.weights[example].index_select(0, heads).index_select(1, queries).to(kind)
    else:
        rows = _softmax_rows(call, example, heads, queries)
    value = call.value[example].index_select(0, kv_heads).to(kind)
    theirs = call.output[example].index_select(0, queries).index_select(1, heads).to(kind)
    ours = (rows @ value).transpose(0, 1)
    size = value.abs().amax().clamp_min(torch.finfo(kind).tiny)
    kept = rows[:, :, keys]
    return PatternBlock(
        kept,
        (ours - theirs).abs().amax() / size,
        (rows.sum(-1) - kept.sum(-1)).amax(),
    )


def _softmax_rows(
    call: AttentionCall, example: int, heads: torch.Tensor, queries: torch.Tensor
) -> torch.Tensor:
    """``[h, q, key_pos]`` from query and key alone."""
    rules = call.rules
    kind = torch.promote_types(call.query.dtype, torch.float32)
    kv_heads = heads // (call.n_heads // call.n_kv_heads)
    query = call.query[example].index_select(0, heads).index_select(1, queries).to(kind)
    key = call.key[example].index_select(0, kv_heads).to(kind)
    scaling = query.shape[-1] ** -0.5 if rules.scaling is None else rules.scaling
    scores = query @ key.transpose(-1, -2) * scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if rules.bias is not None:
        scores = scores + _of_example(rules.bias, call, example, heads, queries).to(kind)
    scores = _masked(scores, call, example, heads, queries)
    if rules.sinks is None:
        return torch.softmax(scores, dim=-1)
    sinks = rules.sinks.index_select(0, heads).to(kind)[:, None, None]
    with_sink = torch.cat([scores, sinks.expand(*scores.shape[:2], 1)], dim=-1)
    return torch.softmax(with_sink, dim=-1)[..., :-1]


def _masked(
    scores: torch.Tensor,
    call: AttentionCall,
    example: int,
    heads: torch.Tensor,
    queries: torch.Tensor,
) -> torch.Tensor:
    rules, mask = call.rules, call.rules.mask
    if mask is not None and mask.ndim == 4:
        part = _of_example(mask, call, example, heads, queries)
        if part.dtype == torch.bool:
            return scores.masked_fill(~part, -torch.inf)
        return scores + part.to(scores.dtype)
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    own = (queries + (n_keys - n_queries))[:, None]
    places = torch.arange(n_keys, device=scores.device)[None, :]
    seen = torch.ones((len(queries), n_keys), dtype=torch.bool, device=scores.device)
    if rules.causal and n_queries > 1:
        seen &= places <= own
    if rules.window is not None:
        seen &= own - places < rules.window
        if not rules.causal:
            seen &= places - own < rules.window
    if mask is not None:
        seen &= mask[example, :n_keys].bool()[None, :]
    return scores.masked_fill(~seen, -torch.inf)


def _of_example(
    tensor: torch.Tensor,
    call: AttentionCall,
    example: int,
    heads: torch.Tensor,
    queries: torch.Tensor,
) -> torch.Tensor:
    """The part of a mask or bias, shared axes kept at size 1."""
    part: Any = tensor[example if tensor.shape[0] > 1 else 0]
    if part.shape[0] > 1:
        part = part.index_select(0, heads)
    if part.shape[1] > 1:
        part = part.index_select(1, queries)
    return part[..., : call.key.shape[2]]
