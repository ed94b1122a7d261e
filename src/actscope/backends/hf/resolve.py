"""Find every site of a model once, by verification on a tiny probe, and say what was verified.

One probe forward pass and one with a single token altered are enough; see ``blocks``,
``contributions`` and ``unembedding`` for what is compared, and docs/design/0003-the-resolver.md
for why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.attention import LayerAttention, probing_attention, solve_attention
from actscope.backends.hf.attention_route import Route
from actscope.backends.hf.blocks import (
    Blocks,
    differ,
    find_blocks,
    find_embedding,
    find_final_norm,
)
from actscope.backends.hf.contributions import Contributions, solve_blocks
from actscope.backends.hf.forward import forward, token_embedding
from actscope.backends.hf.mlp import LayerMlp, solve_mlp
from actscope.backends.hf.placement import input_device
from actscope.backends.hf.trace import Trace, trace_forward
from actscope.backends.hf.unembedding import Unembedding, find_unembedding, output_logits
from actscope.core.errors import ModelLoadError
from actscope.core.protocols import SiteStatus
from actscope.core.sites import SITE_KINDS, Site
from actscope.families import facts_for

__all__ = ["ModelMap", "Tap", "known_sites", "probe_ids", "resolve"]

PROBE_TOKENS = 7
ALTERED = 3


@dataclass(frozen=True)
class Tap:
    """Where a site's tensor is read.

    Attributes:
        path: Module path; empty for the model's own output.
        side: ``input``, ``output``, ``result`` (a field of the model's output) or ``attention``.
        index: Which floating-point input, for ``input``.
        name: The output field, for ``result``; the part of the operation, for ``attention``.
        scale: Multiplied in the model's dtype, as the model itself does before adding.
        route: How the operation is seen, for ``attention``.
    """

    path: str
    side: str
    index: int = 0
    name: str = ""
    scale: float = 1.0
    route: Route | None = None


@dataclass
class ModelMap:
    """What the resolver found.

    Attributes:
        blocks: The verified chain.
        taps: Where each verified site is read.
        statuses: Every site of the table that has a meaning for this model.
        widths: Size of the last axis of each verified site.
        dtypes: dtype of each verified site's tensor.
        heads: Number of heads of each verified site that has heads.
        unembedding: How logits come from the final norm.
        norm: Path of the final norm, or None.
        causal: Whether no token sees a later one.
        calls: How often each module was called in the probe, and the shape it returned.
    """

    blocks: Blocks
    unembedding: Unembedding
    norm: str | None
    causal: bool
    taps: dict[Site, Tap] = field(default_factory=dict[Site, Tap])
    statuses: dict[Site, SiteStatus] = field(default_factory=dict[Site, SiteStatus])
    widths: dict[Site, int] = field(default_factory=dict[Site, int])
    dtypes: dict[Site, torch.dtype] = field(default_factory=dict[Site, torch.dtype])
    heads: dict[Site, int] = field(default_factory=dict[Site, int])
    calls: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = field(
        default_factory=dict[str, tuple[int, tuple[int, ...], torch.dtype]]
    )

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks.paths)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.blocks.post(0).shape[-1]

    def verified(self, site: Site, tap: Tap, tensor: torch.Tensor, how: str) -> None:
        """Record a site whose tensor was found."""
        self.taps[site] = tap
        self.widths[site] = tensor.shape[-1]
        self.dtypes[site] = tensor.dtype
        self.statuses[site] = SiteStatus(site, True, how)

    def width(self, site: Site) -> int:
        """Values in a row, of the heads or neurons chosen; of a pattern, its heads."""
        width, parts = self.widths[site.whole], len(site.parts)
        return width * parts // self.parts(site) if parts else width

    def parts(self, site: Site) -> int:
        """How many heads or neurons a site has to choose from."""
        return self.heads.get(site.whole, self.widths[site.whole])

    def unavailable(self, site: Site, reason: str) -> None:
        """Record a site that has no verified tensor."""
        self.statuses[site] = SiteStatus(site, False, reason)


def resolve(model: nn.Module) -> ModelMap:
    """Probe a model and map its sites.

    Raises:
        ModelLoadError: the probe does not run or no chain of blocks is found.
    """
    ids = probe_ids(model)
    with probing_attention(model) as attention:
        trace = _traced(model, ids)
    changed = ids.clone()
    changed[0, ALTERED] = ids[0, ALTERED - 1]
    with probing_attention(model) as altered_attention:
        altered = _traced(model, changed)
    config = getattr(model, "config", None)
    family = facts_for(str(getattr(config, "model_type", "")))
    scale = getattr(config, family.residual_scale, 1.0) if family.residual_scale else 1.0
    blocks = find_blocks(model, trace)
    norm = find_final_norm(model, trace, blocks)
    found = ModelMap(
        blocks,
        find_unembedding(model, trace, norm, family, config),
        norm,
        _is_causal(trace, altered, blocks.paths[-1]),
    )
    _map_calls(found, trace)
    _map_residuals(found)
    solved = solve_blocks(trace, altered, blocks, ALTERED, float(scale))
    _map_contributions(found, trace, solved)
    seen = (attention, altered_attention)
    _map_attention(found, solve_attention(model, trace, blocks, seen, solved, causal=found.causal))
    _map_mlp(found, solve_mlp(model, trace, blocks, solved))
    _map_ends(found, model, trace, ids)
    return found


def probe_ids(model: nn.Module) -> torch.Tensor:
    """Seven token ids of the vocabulary, ``[1, 7]``, always the same for one model."""
    embedding = token_embedding(model)
    vocab = int(embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    # Low ids are often padding, BOS and other marks that embeddings treat apart.
    low = min(8, max(vocab - PROBE_TOKENS - 1, 0))
    ids = low + torch.randperm(max(vocab - low, 1), generator=generator)[:PROBE_TOKENS]
    return ids.unsqueeze(0).to(input_device(model))


def _traced(model: nn.Module, ids: torch.Tensor) -> Trace:
    try:
        return trace_forward(model, lambda: forward(model, ids, torch.ones_like(ids)))
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise ModelLoadError(
            f"a probe of {ids.shape[-1]} tokens does not run through {type(model).__name__}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a model that takes input_ids and an attention mask",
        ) from error


def _is_causal(trace: Trace, altered: Trace, last_block: str) -> bool:
    a, b = trace.single(last_block), altered.single(last_block)
    if a is None or b is None or a.output is None or b.output is None:
        return False
    return not bool(differ(a.output[:, :ALTERED], b.output[:, :ALTERED]).any())


def _map_calls(found: ModelMap, trace: Trace) -> None:
    for path, calls in trace.calls.items():
        output = calls[0].output
        if path and output is not None:
            found.calls[path] = (len(calls), tuple(output.shape), output.dtype)


def _map_residuals(found: ModelMap) -> None:
    blocks = found.blocks
    for layer, path in enumerate(blocks.paths):
        how = "input of the block" if layer == 0 else "output of the block before, bitwise"
        tap = Tap(path, "input", blocks.inputs[layer])
        found.verified(Site("resid_pre", layer), tap, blocks.pre(layer), how)
        how = "output of the block"
        if layer + 1 < found.n_layers:
            how = "input of the next block, bitwise"
        elif found.norm:
            how = "input of the final norm, bitwise"
        found.verified(Site("resid_post", layer), Tap(path, "output"), blocks.post(layer), how)


def _map_contributions(found: ModelMap, trace: Trace, solved: list[Contributions]) -> None:
    for layer, block in enumerate(solved):
        sites = {kind: Site(kind, layer) for kind in ("attn_out", "mlp_out", "resid_mid")}
        if block.reason:
            for site in sites.values():
                found.unavailable(site, block.reason)
            continue
        for kind, path in (("attn_out", block.attn), ("mlp_out", block.mlp)):
            tensor = trace.calls[path][0].output
            assert tensor is not None
            tap = Tap(path, "output", scale=block.scale)
            found.verified(sites[kind], tap, tensor, f"{block.how}; {path}")
        if block.mid is None:
            reason = "the block is parallel: attention and MLP read one input, nothing lies between"
            found.unavailable(sites["resid_mid"], reason)
        else:
            how = f"resid_pre + attn_out, bitwise the input of {block.mid}"
            tensor = trace.calls[block.mid][0].inputs[0]
            found.verified(sites["resid_mid"], Tap(block.mid, "input"), tensor, how)


def _map_attention(found: ModelMap, solved: list[LayerAttention]) -> None:
    for layer, attention in enumerate(solved):
        for part, reason in attention.refused.items():
            found.unavailable(Site(part, layer), reason)
        call, route = attention.call, attention.route
        if call is None or route is None:
            continue
        tensors = {"q": call.query, "k": call.key, "v": call.value, "z": call.output}
        for part, how in attention.found.items():
            site = Site(part, layer)
            tap = Tap(route.path, "attention", name=part, route=route)
            if part == "z":
                tap = Tap(attention.out_proj, "input")
            tensor = tensors.get(part, call.query)
            found.verified(site, tap, tensor, how)
            found.heads[site] = call.n_kv_heads if part in ("k", "v") else call.n_heads
            if part == "pattern":
                found.widths[site] = call.n_heads
                found.dtypes[site] = torch.promote_types(tensor.dtype, torch.float32)
            else:
                found.widths[site] = found.heads[site] * tensor.shape[-1]


def _map_mlp(found: ModelMap, solved: list[LayerMlp]) -> None:
    for layer, mlp in enumerate(solved):
        for kind, reason in mlp.refused.items():
            found.unavailable(Site(kind, layer), reason)
        for kind, inside in mlp.found.items():
            tap = Tap(inside.path, inside.side)
            found.verified(Site(kind, layer), tap, inside.tensor, inside.how)


def _map_ends(found: ModelMap, model: nn.Module, trace: Trace, ids: torch.Tensor) -> None:
    embedding = find_embedding(model, trace, ids)
    if embedding is None:
        found.unavailable(Site("embed"), "no embedding module returns its rows for the token ids")
    else:
        path, how = embedding
        tensor = trace.calls[path][0].output
        assert tensor is not None
        found.verified(Site("embed"), Tap(path, "output"), tensor, how)
    _map_head(found, trace)
    pooler = _field(trace.result, "pooler_output")
    if pooler is None:
        found.unavailable(Site("pooler"), "the model returns no pooler_output")
    else:
        tap = Tap("", "result", name="pooler_output")
        found.verified(Site("pooler"), tap, pooler, "the model's own pooler_output")


def _map_head(found: ModelMap, trace: Trace) -> None:
    logits = output_logits(trace.result)
    unembedding = found.unembedding
    if found.norm is None:
        found.unavailable(
            Site("ln_final"), "no module outside the blocks normalises the last block's output"
        )
    elif logits is not None and unembedding.reason:
        found.unavailable(Site("ln_final"), unembedding.reason)
    else:
        tensor = trace.calls[found.norm][0].output
        assert tensor is not None
        how = unembedding.how or "reads the last block's output bitwise and ignores its scale"
        found.verified(Site("ln_final"), Tap(found.norm, "output"), tensor, how)
    if logits is None:
        found.unavailable(Site("logits"), unembedding.reason)
    else:
        how = unembedding.how or "the model's own output"
        found.verified(Site("logits"), Tap("", "result", name="logits"), logits, how)


def _field(result: Any, name: str) -> torch.Tensor | None:
    value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
    return value if isinstance(value, torch.Tensor) else None


def known_sites(n_layers: int) -> list[Site]:
    """Every site of the closed table for a model of that depth, in reading order."""
    sites: list[Site] = []
    for kind in SITE_KINDS.values():
        layers = range(n_layers) if kind.per_layer else [None]
        sites += [Site(kind.name, layer) for layer in layers]
    return sites
