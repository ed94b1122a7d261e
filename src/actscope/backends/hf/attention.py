"""Find what attention computes inside a block, and prove it by values.

What was seen of an attention operation is checked before any of it becomes a site:

    pattern @ v == the operation's output        finds v and the pattern
    softmax(q k^T ...) == pattern                finds q and k
    out_proj(output) == attn_out                 finds z

Where one of these does not hold, that site is unavailable, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from actscope.backends.hf.attention_call import (
    AttentionCall,
    PatternBlock,
    pattern_block,
    tolerance,
)
from actscope.backends.hf.attention_probe import AttentionProbe
from actscope.backends.hf.attention_route import Route, softmax_call
from actscope.backends.hf.attention_watch import (
    Event,
    sdpa_call,
)
from actscope.backends.hf.blocks import Blocks, same
from actscope.backends.hf.contributions import Contributions
from actscope.backends.hf.linear import is_affine, is_row_wise
from actscope.backends.hf.probe import PROBE_TOKENS, Probe
from actscope.backends.hf.trace import Call

__all__ = ["LayerAttention", "solve_attention"]

PARTS = ("q", "k", "v", "pattern")


@dataclass
class LayerAttention:
    """The attention of one block.

    Attributes:
        route: How it is seen, or None where nothing was found.
        call: The operation of the probe.
        found: Part (``q``, ``k``, ``v``, ``pattern``, ``z``) -> what was checked.
        refused: Part -> why it is unavailable.
        out_proj: Path of the module that reads ``z``; empty where there is none.
    """

    route: Route | None = None
    call: AttentionCall | None = None
    found: dict[str, str] = field(default_factory=dict[str, str])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    out_proj: str = ""


def solve_attention(
    probe: Probe, blocks: Blocks, contributions: Sequence[Contributions], *, causal: bool
) -> list[LayerAttention]:
    """Find and verify the attention of every block.

    Args:
        probe: The probe.
        blocks: The chain.
        contributions: What each block adds to the residual.
        causal: Whether no token may see a later one.
    """
    return [
        _solve_layer(probe, blocks, contributions[layer], layer, causal)
        for layer in range(len(blocks.paths))
    ]


def _solve_layer(
    probe: Probe, blocks: Blocks, contribution: Contributions, layer: int, causal: bool
) -> LayerAttention:
    if layer in blocks.skipped or not blocks.is_module(layer):
        return _refused(_no_module(blocks, layer))
    solved = _locate(probe.attention[0], blocks, layer, PROBE_TOKENS)
    if solved.call is None or solved.route is None:
        return solved
    _check_pattern(solved, causal)
    _check_output(solved, probe, blocks, layer, contribution)
    if "pattern" in solved.found:
        _check_query_and_key(solved, probe.attention)
    else:
        solved.refused |= dict.fromkeys(("q", "k", "v"), solved.refused["pattern"])
    return solved


def _no_module(blocks: Blocks, layer: int) -> str:
    if layer in blocks.skipped:
        return "the block does not run on text alone"
    return "the block is no module of its own: its parts stand in lists side by side"


def _locate(probe: AttentionProbe, blocks: Blocks, layer: int, length: int) -> LayerAttention:
    """The one attention operation of a block."""
    block, turn, times = blocks.paths[layer], blocks.turns[layer], blocks.times(layer)
    if times > 1:
        probe = probe.turn(turn, times)
    found = _by_interface(probe, block) or _by_functions(probe, block, length)
    found = [(replace(route, turn=turn, times=times), call) for route, call in found]
    if not found:
        return _refused(
            "no attention operation was seen in the block: it calls neither a transformers "
            "attention function nor scaled_dot_product_attention, and has no softmax between two "
            "matrix products"
        )
    # A decoder with an encoder also attends to the encoder's tokens, which are of another number.
    own = [(route, call) for route, call in found if call.key.shape[-2] == length]
    found = own if len(own) == 1 else found
    if len(found) > 1:
        return _refused(f"the block runs {len(found)} attention operations")
    route, call = found[0]
    shape = tuple(call.query.shape)
    if shape[0] != 1 or shape[2] != length or call.key.shape[2] != length:
        return _refused(
            f"its queries have shape {list(shape)} and its keys {list(call.key.shape)} for a probe "
            f"of {length} tokens"
        )
    heads, expected = call.n_heads, (1, length, call.n_heads, call.value.shape[-1])
    if heads % call.n_kv_heads or tuple(call.output.shape) != expected:
        return _refused(
            f"{heads} query heads, {call.n_kv_heads} key heads and an output of shape "
            f"{list(call.output.shape)} do not fit together"
        )
    return LayerAttention(route, call)


def _refused(reason: str) -> LayerAttention:
    return LayerAttention(refused=dict.fromkeys((*PARTS, "z"), reason))


def _by_interface(probe: AttentionProbe, block: str) -> list[tuple[Route, AttentionCall]]:
    return [
        (Route(path, "interface"), call)
        for path, calls in probe.calls.items()
        if path == block or path.startswith(block + ".")
        for call in calls
    ]


def _by_functions(
    probe: AttentionProbe, block: str, length: int
) -> list[tuple[Route, AttentionCall]]:
    """Operations of the deepest modules that hold all of their events."""
    found: dict[str, list[tuple[Route, AttentionCall]]] = {}
    for path, events in probe.events.items():
        if path != block and not path.startswith(block + "."):
            continue
        fused = [
            (Route(path, "sdpa", (i,)), sdpa_call(event))
            for i, event in enumerate(events)
            if event.kind == "sdpa"
        ]
        operations = [*fused, *_spelled_out(path, events, length)]
        if operations:
            found[path] = operations
    deepest = [p for p in found if not any(other.startswith(p + ".") for other in found)]
    return [operation for path in deepest for operation in found[path]]


def _spelled_out(
    path: str, events: Sequence[Event], length: int
) -> list[tuple[Route, AttentionCall]]:
    """A square softmax, the product whose scores it normalises, and the one that reads it."""
    found: list[tuple[Route, AttentionCall]] = []
    for at, event in enumerate(events):
        if event.kind != "softmax" or tuple(event.output.shape[-2:]) != (length, length):
            continue
        before = [i for i in range(at) if _makes_scores(events[i], event)]
        after = [i for i in range(at + 1, len(events)) if _reads(events[i], event)]
        if before and after:
            route = Route(path, "softmax", (before[-1], at, after[0]))
            found.append((route, softmax_call(events[before[-1]], event, events[after[0]], 1)))
    return found


def _makes_scores(product: Event, softmax: Event) -> bool:
    scores = softmax.inputs[0]
    same_size = product.kind == "product" and product.output.numel() == scores.numel()
    return same_size and product.output.shape[-2:] == scores.shape[-2:]


def _reads(product: Event, softmax: Event) -> bool:
    if product.kind != "product":
        return False
    left, weights = product.inputs[0], softmax.output
    if left.numel() != weights.numel() or left.shape[-2:] != weights.shape[-2:]:
        return False
    return torch.equal(left.reshape(-1), weights.to(left.dtype).reshape(-1))


def _check_pattern(solved: LayerAttention, causal: bool) -> None:
    """``pattern @ v`` is the output, rows sum to one, no later key is seen."""
    call, route = solved.call, solved.route
    assert call is not None and route is not None
    block = _whole_pattern(call)
    most, allowed = float(block.error), tolerance(call.query.dtype)
    sums = block.values.sum(-1)
    off = float((sums - 1).abs().amax())
    half = call.query.dtype in (torch.bfloat16, torch.float16)
    later = torch.triu(block.values, diagonal=1).abs().amax()
    reason = ""
    if not most <= allowed:
        reason = f"pattern @ v misses the attention output by {most:.2g} of the largest value"
    elif call.rules.sinks is None and not off <= (0.05 if half else 1e-4):
        reason = f"the pattern's rows sum to {float(sums.min()):.4g} to {float(sums.max()):.4g}"
    elif causal and float(later) > 0:
        reason = "the pattern puts weight on later tokens in a model that is causal"
    if reason:
        solved.refused |= {"pattern": f"{reason}; {route.path}"}
        return
    made = "the model's own weights" if call.weights is not None else "softmax(q k^T) recomputed"
    rows = "rows and sink sum to 1" if call.rules.sinks is not None else "rows sum to 1"
    how = f"{made}: {rows}, pattern @ v == the output within {allowed:g}; {route.path}"
    solved.found["pattern"] = how
    solved.found["v"] = f"pattern @ v == the attention output within {allowed:g}; {route.path}"


def _whole_pattern(call: AttentionCall, *, recompute: bool = False) -> PatternBlock:
    device = call.query.device
    heads = torch.arange(call.n_heads, device=device)
    queries = torch.arange(call.query.shape[2], device=device)
    return pattern_block(call, 0, heads, queries, slice(None), recompute=recompute)


def _check_query_and_key(
    solved: LayerAttention, probes: tuple[AttentionProbe, AttentionProbe]
) -> None:
    """The pattern follows from q and k."""
    call, route = solved.call, solved.route
    assert call is not None and route is not None
    if route.kind == "softmax":
        reason = _scores_follow(route, probes)
        how = "the softmax's input moves with q k^T and nothing else that depends on tokens"
    else:
        allowed = tolerance(call.query.dtype)
        off = float(_whole_pattern(call, recompute=True).error)
        how = f"softmax(q k^T) @ v == the attention output within {allowed:g}"
        reason = "" if off <= allowed else f"softmax(q k^T) @ v misses the output by {off:.2g}"
    for part in ("q", "k"):
        if reason:
            solved.refused[part] = f"{reason}; {route.path}"
        else:
            solved.found[part] = f"{how}; {route.path}"


def _scores_follow(route: Route, probes: tuple[AttentionProbe, AttentionProbe]) -> str:
    """Whether altering a token moves the scores by a constant times how it moves ``q k^T``.

    What is added to the scores (a mask, ALiBi) is unknown here, but it is the same in both probes.

    Returns:
        Why not; empty where it does.
    """
    moved: list[tuple[torch.Tensor, torch.Tensor]] = []
    for probe in (p.turn(route.turn, route.times) for p in probes):
        events = probe.events.get(route.path, [])
        if len(events) <= route.events[-1]:
            return "the two probes went different ways through the module"
        product, softmax = events[route.events[0]], events[route.events[1]]
        plain = _exact(product.inputs[0]) @ _exact(product.inputs[1])
        moved.append((_exact(softmax.inputs[0]), plain.reshape(softmax.inputs[0].shape)))
    (scores, plain), (scores2, plain2) = moved
    hidden = min(float(scores.min()), float(scores2.min()))
    least = hidden / 2 if hidden < -1e4 else hidden - 1  # below it a mask has hidden the key
    visible = (scores > least) & (scores2 > least)
    d_scores, d_plain = (scores2 - scores)[visible], (plain2 - plain)[visible]
    if not len(d_plain) or float(d_plain.abs().max()) <= 1e-3 * float(plain.abs().max()):
        return "altering a token hardly moves q k^T: nothing can be shown"
    slope = float((d_scores * d_plain).sum() / d_plain.pow(2).sum())
    off = float((d_scores - slope * d_plain).abs().max())
    half = probes[0].events[route.path][route.events[0]].inputs[0].dtype == torch.bfloat16
    if slope <= 0 or off > (0.02 if half else 1e-4) * float(scores[visible].abs().max()):
        return "the softmax's input depends on tokens beyond q k^T"
    return ""


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU: some accelerators have none."""
    return tensor.to("cpu", torch.float64)


def _check_output(
    solved: LayerAttention, probe: Probe, blocks: Blocks, layer: int, contribution: Contributions
) -> None:
    """A linear module reads the output, heads side by side, or the output is the pattern times v.

    Where a gate or a norm lies between attention and the projection, no module receives ``z``: it
    is then read where attention returns it.
    """
    call, route = solved.call, solved.route
    assert call is not None and route is not None
    flat = call.output.reshape(*call.output.shape[:2], -1)
    turn, times = blocks.turns[layer], blocks.times(layer)
    readers = _readers(probe, blocks, layer, flat)
    target = probe.plain.turn(contribution.attn, turn, times) if contribution.attn else None
    made = {path: _makes(probe.plain.calls[path][turn], target) for path in readers if target}
    path = next((path for path in readers if made.get(path) or target is None), "")
    if path:
        solved.out_proj = path
        what = made.get(path) or "a linear module reads the attention output"
        solved.found["z"] = f"{what}, bitwise; {path}"
    elif "pattern" in solved.found:
        solved.out_proj = readers[0] if readers else ""
        lies = (
            f"{readers[0]} reads it" if readers else "a gate or a norm lies before the projection"
        )
        solved.found["z"] = f"what attention returns, pattern @ v; {lies}; {route.path}"
    else:
        solved.refused["z"] = (
            f"{readers[0]} reads it, but what it returns is not attn_out" if readers else
            "no linear module reads the attention output as it is (a gate or a norm lies between)"
        )  # fmt: skip


def _readers(probe: Probe, blocks: Blocks, layer: int, tensor: torch.Tensor) -> list[str]:
    """The linear modules of a block that receive a tensor, outermost ones first.

    Several do where one wraps another, as an adapter's layer wraps the plain projection.
    """
    block, turn, times = blocks.paths[layer], blocks.turns[layer], blocks.times(layer)
    found: list[str] = []
    for path in probe.plain.calls:
        call = probe.plain.turn(path, turn, times) if path.startswith(block + ".") else None
        if call is None or not call.inputs or not same(call.inputs[0], tensor):
            continue
        given = call.inputs[0]
        if given.shape[:2] != tensor.shape[:2] and given.ndim != 2:
            continue  # tokens first: with more examples than one its rows stand in another order
        if is_affine(probe.model, path, given) and is_row_wise(probe.model, path, given):
            found.append(path)
    return sorted(found, key=lambda path: path.count("."))


def _makes(call: Call, target: Call) -> str:
    """How a module that reads ``z`` makes ``attn_out`` of it; empty if it does not."""
    if call.output is None or target.output is None:
        return ""
    if same(call.output, target.output):
        return "out_proj(z) == attn_out"
    if target.inputs and same(call.output, target.inputs[0]):
        return "post_norm(out_proj(z)) == attn_out"
    return ""
