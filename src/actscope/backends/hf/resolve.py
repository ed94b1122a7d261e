"""Find every site of a model once, by verification on a tiny probe, and say what was verified.

A few forward passes over seven tokens are enough; see ``blocks``, ``contributions``, ``norms`` and
``unembedding`` for what is compared, and docs/design/0003-the-resolver.md for why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.attention import LayerAttention, solve_attention
from actscope.backends.hf.attention_route import Route
from actscope.backends.hf.blocks import Blocks, differ, find_blocks
from actscope.backends.hf.contributions import Contributions, solve_blocks
from actscope.backends.hf.embedding import find_embedding
from actscope.backends.hf.layout import PLAIN, Layout
from actscope.backends.hf.mlp import LayerMlp, solve_mlp
from actscope.backends.hf.norms import FinalNorm, find_final_norm
from actscope.backends.hf.probe import ALTERED, PROBE_TOKENS, Probe, probe_ids, take_probe
from actscope.backends.hf.reruns import determines_output, is_whole_stream
from actscope.backends.hf.router import Experts
from actscope.backends.hf.sums import Sum
from actscope.backends.hf.trace import Trace
from actscope.backends.hf.unembedding import Unembedding, find_unembedding, output_logits
from actscope.core.protocols import SiteStatus
from actscope.core.sites import SITE_KINDS, Site

__all__ = ["PROBE_TOKENS", "ModelMap", "Tap", "known_sites", "probe_ids", "resolve"]


@dataclass(frozen=True)
class Tap:
    """Where a site's tensor is read.

    Attributes:
        path: Module path; empty for the model's own output.
        side: ``input``, ``output``, ``result`` (a field of the model's output), ``attention`` or
            ``sum`` (of ``parts``).
        index: Which floating-point input, for ``input``.
        name: The output field, for ``result``; the part of the operation, for ``attention``.
        scale: Multiplied in the model's dtype, as the model itself does before adding.
        route: How the operation is seen, for ``attention``.
        turn: Which call of the module, where it runs several times in one pass.
        layout: How the module's own tensor becomes ``[n, pos, d]``.
        parts: What is added up, for ``sum``.
    """

    path: str
    side: str
    index: int = 0
    name: str = ""
    scale: float = 1.0
    route: Route | None = None
    turn: int = 0
    layout: Layout = PLAIN
    parts: tuple[Tap, ...] = ()


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
        experts: How the experts of a layer are chosen, where it has any.
        unembedding: How logits come from the final norm.
        norm: The final norm, or None.
        causal: Whether no token sees a later one.
        calls: How often each module was called in the probe, and the shape it returned.
    """

    blocks: Blocks
    unembedding: Unembedding
    norm: FinalNorm | None
    causal: bool
    taps: dict[Site, Tap] = field(default_factory=dict[Site, Tap])
    statuses: dict[Site, SiteStatus] = field(default_factory=dict[Site, SiteStatus])
    widths: dict[Site, int] = field(default_factory=dict[Site, int])
    dtypes: dict[Site, torch.dtype] = field(default_factory=dict[Site, torch.dtype])
    heads: dict[Site, int] = field(default_factory=dict[Site, int])
    experts: dict[int, Experts] = field(default_factory=dict[int, Experts])
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

    def calls_of(self, path: str) -> int:
        """How often a module runs in one pass."""
        return self.calls[path][0] if path in self.calls else 1

    def unavailable(self, site: Site, reason: str) -> None:
        """Record a site that has no verified tensor."""
        self.statuses[site] = SiteStatus(site, False, reason)


def resolve(model: nn.Module) -> ModelMap:
    """Probe a model and map its sites.

    Raises:
        ModelLoadError: the probe does not run or no chain of blocks is found.
    """
    probe = take_probe(model)
    blocks = find_blocks(probe, lambda chain: is_whole_stream(probe, chain))
    norm = find_final_norm(probe, blocks)
    unembedding = find_unembedding(probe, blocks, norm)
    found = ModelMap(blocks, unembedding, norm, _is_causal(probe, blocks))
    _map_calls(found, probe.plain)
    _map_residuals(found)
    solved = solve_blocks(probe, blocks)
    _map_contributions(found, probe.plain, solved)
    _map_attention(found, solve_attention(probe, blocks, solved, causal=found.causal))
    _map_mlp(found, solve_mlp(probe, blocks, solved))
    _map_ends(found, probe)
    return found


def _is_causal(probe: Probe, blocks: Blocks) -> bool:
    last = blocks.last
    other = probe.altered.turn(blocks.exits[last], blocks.turns[last], blocks.times(last))
    if other is None or other.output is None:
        return False
    rows = blocks.layout.rows(other.output)
    return not bool(differ(blocks.post(last)[:, :ALTERED], rows[:, :ALTERED]).any())


def _map_calls(found: ModelMap, trace: Trace) -> None:
    for path, calls in trace.calls.items():
        output = calls[0].output
        if path and output is not None:
            found.calls[path] = (len(calls), tuple(output.shape), output.dtype)


def _map_residuals(found: ModelMap) -> None:
    blocks = found.blocks
    said = f" ({blocks.layout})" if str(blocks.layout) else ""
    for layer in range(found.n_layers):
        pre, post = Site("resid_pre", layer), Site("resid_post", layer)
        if layer in blocks.skipped:
            how = f"the block does not run on text alone: the stream passes it by{said}"
            found.verified(pre, _passing(blocks, layer), blocks.pre(layer), how)
            found.verified(post, _passing(blocks, layer), blocks.post(layer), how)
            continue
        how = "input of the block" if layer == 0 else "output of the block before, bitwise"
        if layer and blocks.links[layer - 1] != 1.0:
            how = f"output of the block before times {blocks.links[layer - 1]:g}, bitwise"
        tap = _block_tap(blocks, layer, "input")
        found.verified(pre, tap, blocks.pre(layer), how + said)
        how = "output of the block"
        if layer < blocks.last:
            link = blocks.links[layer]
            how = f"{'' if link == 1.0 else f'times {link:g} '}input of the next block, bitwise"
        elif found.norm:
            how = "input of the final norm, bitwise"
        tap = _block_tap(blocks, layer, "output")
        found.verified(post, tap, blocks.post(layer), how + said)


def _block_tap(blocks: Blocks, layer: int, side: str) -> Tap:
    turn, layout = blocks.turns[layer], blocks.layout
    if side == "input":
        return Tap(blocks.paths[layer], side, blocks.inputs[layer], turn=turn, layout=layout)
    return Tap(blocks.exits[layer], side, turn=turn, layout=layout)


def _passing(blocks: Blocks, layer: int) -> Tap:
    """Where the stream is that passes a block by: at the next block that runs, else before."""
    later = [i for i in blocks.ran if i > layer]
    if later:
        return _block_tap(blocks, later[0], "input")
    return _block_tap(blocks, blocks.last, "output")


def _map_contributions(found: ModelMap, trace: Trace, solved: list[Contributions]) -> None:
    blocks = found.blocks
    for layer, block in enumerate(solved):
        for kind in ("attn_out", "mlp_out"):
            site, added = Site(kind, layer), block.added.get(kind)
            if added is None:
                found.unavailable(site, block.missing.get(kind) or block.reason)
                continue
            how = f"{block.how}; {added}"
            tap = _sum_tap(added, blocks, layer)
            found.verified(site, tap, blocks.layout.tokens(added.value()), how)
        site = Site("resid_mid", layer)
        if block.mid is None:
            found.unavailable(site, block.missing.get("resid_mid") or block.reason)
            continue
        call = trace.calls[block.mid][blocks.turns[layer]]
        tensor = call.inputs[0] if block.mid_side == "input" else call.output
        assert tensor is not None
        how = f"{block.mid_sum}, the input of {block.mid}"
        if block.mid_side == "output":
            how = f"{block.mid} returns the normalised sum; {block.how}"
        tap = Tap(block.mid, block.mid_side, turn=blocks.turns[layer], layout=blocks.layout)
        found.verified(site, tap, blocks.pre(layer), how)


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
            if part == "z" and attention.out_proj:
                tap = Tap(attention.out_proj, "input", turn=found.blocks.turns[layer])
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
        if mlp.experts is not None:
            found.experts[layer] = mlp.experts
        for kind, reason in mlp.refused.items():
            found.unavailable(Site(kind, layer), reason)
        for kind, inside in mlp.found.items():
            tap = Tap(inside.path, inside.side, turn=inside.turn, layout=inside.layout)
            found.verified(Site(kind, layer), tap, inside.tensor, inside.how)


def _sum_tap(added: Sum, blocks: Blocks, layer: int) -> Tap:
    taps = tuple(
        Tap(part.path, "output", scale=scale, turn=blocks.turns[layer], layout=blocks.layout)
        for part, scale in zip(added.parts, added.scales, strict=True)
    )
    if len(taps) == 1:
        return replace(taps[0], scale=taps[0].scale * added.scale)
    return Tap("", "sum", scale=added.scale, parts=taps)


def _map_ends(found: ModelMap, probe: Probe) -> None:
    embedding = find_embedding(probe)
    if embedding is None:
        found.unavailable(Site("embed"), "no embedding module returns its rows for the token ids")
    else:
        tap = Tap(embedding.path, "output", layout=embedding.layout)
        found.verified(Site("embed"), tap, embedding.tensor, embedding.how)
    _map_final_norm(found, probe)
    logits = output_logits(probe.plain.result)
    if logits is None:
        found.unavailable(Site("logits"), found.unembedding.reason)
    else:
        how = found.unembedding.how or "the model's own output"
        found.verified(Site("logits"), Tap("", "result", name="logits"), logits, how)
    pooler = _field(probe.plain.result, "pooler_output")
    if pooler is None:
        found.unavailable(Site("pooler"), "the model returns no pooler_output")
    else:
        tap = Tap("", "result", name="pooler_output")
        found.verified(Site("pooler"), tap, pooler, "the model's own pooler_output")


def _map_final_norm(found: ModelMap, probe: Probe) -> None:
    norm, site = found.norm, Site("ln_final")
    if norm is None:
        found.unavailable(site, "no module outside the blocks normalises the last block's output")
        return
    times = len(probe.plain.calls[norm.path])
    layout = found.blocks.layout
    if norm.output.shape[:2] == probe.ids.shape:
        layout = PLAIN
    how = found.unembedding.how
    if not how:
        if not determines_output(probe, norm.path, norm.turn, times, layout):
            found.unavailable(site, f"{norm.path} is a norm, but the model's output needs more")
            return
        how = "normalises the last block's output, and determines the model's output"
    tap = Tap(norm.path, "output", turn=norm.turn, layout=layout)
    found.verified(site, tap, layout.rows(norm.output), how)


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
