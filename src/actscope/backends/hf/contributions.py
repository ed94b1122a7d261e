"""Find what attention and the MLP add to the residual stream by solving the sum.

Among the tensors returned inside a block, those whose sum is ``resid_post - resid_pre`` are the
contributions. Which one is attention is decided by behaviour: attention mixes tokens. Where no sum
closes, nothing is guessed: the sites are unavailable, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch

from actscope.backends.hf.blocks import Blocks, same
from actscope.backends.hf.probe import Probe
from actscope.backends.hf.reruns import (
    adds_to_its_input,
    fed_alone,
    fed_another_text,
    mixes_tokens,
)
from actscope.backends.hf.stacks import reads_two_texts
from actscope.backends.hf.sums import ULPS, Part, Sum, is_multiple, one_part, two_parts
from actscope.backends.hf.trace import Call, Trace

__all__ = ["Contributions", "solve_blocks"]

_PATHS = "; module paths still work as sites"


@dataclass(frozen=True)
class Contributions:
    """The residual algebra of one block.

    Attributes:
        attn: Path of the one module that returns what attention adds, before it is scaled or the
            sum normalised; empty where there is none or more than one.
        mlp: Path of the one module that returns what the MLP adds, or empty.
        mid: Path of a module that receives or returns the residual after attention, or None.
        mid_side: ``input``: the module's first input is it; ``output``: it returns it.
        mid_sum: What it is the sum of.
        added: ``attn_out`` and ``mlp_out``, those that are there: what is added, with constants.
        how: What was checked, in words.
        reason: Why nothing closes; empty where something does.
        missing: Why one of ``attn_out``, ``mlp_out``, ``resid_mid`` is not there.
    """

    attn: str = ""
    mlp: str = ""
    mid: str | None = None
    mid_side: str = "input"
    mid_sum: str = "resid_pre + attn_out"
    added: Mapping[str, Sum] = field(default_factory=dict[str, Sum])
    how: str = ""
    reason: str = ""
    missing: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class _Read:
    """A module that received a stream-shaped tensor, and what it made of it."""

    order: int
    path: str
    received: torch.Tensor
    returned: torch.Tensor | None


@dataclass(frozen=True)
class _Inside:
    """One block of the probe.

    Attributes:
        pre: The stream entering it, with positions that are no tokens.
        post: The stream leaving it.
        parts: Stream-shaped outputs inside it, in order; of equal tensors the outermost module.
        reads: The modules inside it that received another stream-shaped tensor.
        after: What the modules returned when the block was fed with one token's row exchanged.
        crossing: The modules whose output depends on the encoder's text; None without an encoder.
    """

    pre: torch.Tensor
    post: torch.Tensor
    parts: tuple[Part, ...]
    reads: tuple[_Read, ...]
    after: dict[str, torch.Tensor]
    crossing: frozenset[str] | None = None


def solve_blocks(probe: Probe, blocks: Blocks) -> list[Contributions]:
    """Solve every block."""
    alone = fed_alone(probe, blocks)
    other = fed_another_text(probe, blocks) if reads_two_texts(probe.model) else None
    insides = [
        _inside((probe.plain, alone, other), blocks, layer) for layer in range(len(blocks.paths))
    ]
    solved = [
        Contributions(reason=_cannot(blocks, layer))
        if inside is None
        else _solve(inside, blocks, probe.numbers)
        for layer, inside in enumerate(insides)
    ]
    if any(not s.how and not s.reason for s in solved):
        adds = adds_to_its_input(probe, blocks)
        solved = [
            s if s.how or s.reason else _unsolved(insides[i], adds=adds[i])
            for i, s in enumerate(solved)
        ]
    return solved


def _cannot(blocks: Blocks, layer: int) -> str:
    if layer in blocks.skipped:
        return "the block does not run on text alone: the stream passes it by unchanged"
    return "the block is no module of its own: its parts stand in lists side by side" + _PATHS


def _inside(
    traces: tuple[Trace, Trace, Trace | None], blocks: Blocks, layer: int
) -> _Inside | None:
    trace, alone, other = traces
    if layer in blocks.skipped or not blocks.is_module(layer):
        return None
    block, turn, times = blocks.paths[layer], blocks.turns[layer], blocks.times(layer)
    pre = blocks.entered[layer]
    calls: dict[str, Call] = {}
    for path in trace.calls:
        call = trace.turn(path, turn, times) if path.startswith(block + ".") else None
        if call is not None:
            calls[path] = call
    parts: list[Part] = []
    for path in sorted(calls, key=lambda p: (p.count("."), calls[p].order)):
        shaped = _shaped(calls[path].output, pre, blocks)
        if shaped is None or any(is_multiple(shaped, end) for end in (pre, blocks.left[layer])):
            continue  # the stream itself: resid_post is resid_pre less resid_pre plus resid_post
        if not any(same(shaped, p.tensor) for p in parts):
            parts.append(Part(path, calls[path].order, shaped))
    reads: list[_Read] = []
    for path in sorted(calls, key=lambda p: calls[p].order):
        inputs = calls[path].inputs
        shaped = _shaped(inputs[0], pre, blocks) if inputs else None
        if shaped is not None and not same(shaped, pre):
            made = _shaped(calls[path].output, pre, blocks)
            reads.append(_Read(calls[path].order, path, shaped, made))
    after: dict[str, torch.Tensor] = {}
    for part in parts:
        call = alone.turn(part.path, turn, times)
        if call is not None and call.output is not None:
            after[part.path] = call.output
    ordered = tuple(sorted(parts, key=lambda p: p.order))
    crossing = None if other is None else _crossing(calls, other, turn, times)
    return _Inside(pre, blocks.left[layer], ordered, tuple(reads), after, crossing)


def _crossing(calls: dict[str, Call], other: Trace, turn: int, times: int) -> frozenset[str]:
    """The modules of a block that return something else when the encoder reads another text."""
    found: set[str] = set()
    for path, call in calls.items():
        again = other.turn(path, turn, times)
        if again is None or again.output is None or call.output is None:
            continue
        if not same(call.output, again.output):
            found.add(path)
    return frozenset(found)


def _shaped(
    tensor: torch.Tensor | None, stream: torch.Tensor, blocks: Blocks
) -> torch.Tensor | None:
    """The tensor in the stream's shape, or None."""
    if tensor is None or tensor.numel() != stream.numel():
        return None
    if blocks.layout.plain:
        return tensor.reshape(stream.shape) if tensor.shape[-1] == stream.shape[-1] else None
    if tensor.ndim != blocks.layout.ndim:
        return None
    arranged = blocks.layout.arranged(tensor)
    return arranged if arranged.shape == stream.shape else None


def _solve(inside: _Inside, blocks: Blocks, numbers: tuple[float, ...]) -> Contributions:
    if inside.crossing is not None:
        return _with_cross_attention(inside, blocks, numbers) or Contributions()
    return (
        _sequential(inside, blocks, numbers)
        or _at_once(inside, blocks, numbers)
        or _normed(inside)
        or Contributions()
    )


def _sequential(
    inside: _Inside, blocks: Blocks, numbers: tuple[float, ...]
) -> Contributions | None:
    """Attention first, then an MLP that reads the sum: some module receives that sum."""
    mids: list[tuple[str, torch.Tensor, list[Part], list[Part]]] = []
    for read in inside.reads:
        if not any(same(read.received, other) for _, other, _, _ in mids):
            before = [p for p in inside.parts if p.order < read.order]
            after = [p for p in inside.parts if p.order >= read.order]
            mids.append((read.path, read.received, before, after))
    for first_by, second_by in product((one_part, two_parts), repeat=2):
        for reader, mid, before, after in mids:
            first = first_by(inside.pre, mid, before, numbers)
            second = second_by(mid, inside.post, after, numbers) if first else None
            if first and second and all(_mixes(inside, p, blocks) for p in first.parts):
                words = f"(resid_pre + attn_out) + mlp_out == resid_post, {_exact(first, second)}"
                return _solved({"attn_out": first, "mlp_out": second}, words, mid=reader)
    return None


def _with_cross_attention(
    inside: _Inside, blocks: Blocks, numbers: tuple[float, ...]
) -> Contributions | None:
    """Attention, then attention to the encoder's text, then an MLP that reads the sum."""
    assert inside.crossing is not None
    for first, reads in _steps(inside, inside.pre, inside.reads, numbers):
        mixing = all(_mixes(inside, p, blocks) for p in first.parts)
        if not mixing or any(p.path in inside.crossing for p in first.parts):
            continue
        for second, later in _steps(inside, reads[0].received, reads[1:], numbers):
            if any(p.path not in inside.crossing for p in second.parts):
                continue
            mid = later[0]
            after = [p for p in inside.parts if p.order >= mid.order]
            third = one_part(mid.received, inside.post, after, numbers)
            if third is not None:
                words = (
                    f"resid_pre + attn_out + {second} (attention to the encoder's text) + mlp_out "
                    f"== resid_post, {_exact(first, second, third)}"
                )
                found = _solved({"attn_out": first, "mlp_out": third}, words, mid=mid.path)
                return replace(found, mid_sum=f"resid_pre + attn_out + {second}")
    return None


def _steps(
    inside: _Inside,
    stream: torch.Tensor,
    reads: Sequence[_Read],
    numbers: tuple[float, ...],
) -> Iterator[tuple[Sum, Sequence[_Read]]]:
    """Sums of the stream and one part that a module receives, and the reads from there on."""
    for place, read in enumerate(reads):
        if same(read.received, stream):
            continue
        before = [p for p in inside.parts if p.order < read.order]
        found = one_part(stream, read.received, before, numbers)
        if found is not None:
            yield found, reads[place:]


def _at_once(inside: _Inside, blocks: Blocks, numbers: tuple[float, ...]) -> Contributions | None:
    """All parts read the block's input: attention and MLP side by side, or one of them alone."""
    pair = two_parts(inside.pre, inside.post, inside.parts, numbers)
    found = pair or one_part(inside.pre, inside.post, inside.parts, numbers)
    if found is None:
        return None
    mixing = [_mixes(inside, part, blocks) for part in found.parts]
    if len(set(mixing)) == 1:
        kind, other = ("attn_out", "mlp_out") if mixing[0] else ("mlp_out", "attn_out")
        acts = "mixes tokens" if mixing[0] else "sees one token at a time"
        alone = f"the block adds one thing, which {acts}: {found}"
        words = f"resid_pre + {kind} == resid_post, {_exact(found)}"
        return _solved({kind: found}, words, missing={other: alone, "resid_mid": alone})
    attn, mlp = (
        Sum((part,), (scale,), found.scale, found.exact)
        for _, part, scale in sorted(
            zip((not m for m in mixing), found.parts, found.scales, strict=True),
            key=lambda item: item[0],
        )
    )
    words = f"resid_pre + attn_out + mlp_out == resid_post, {_exact(found)}"
    first = any(same(read.received, inside.pre + mlp.value()) for read in inside.reads)
    why = _MLP_FIRST if first else _PARALLEL
    return _solved({"attn_out": attn, "mlp_out": mlp}, words, missing={"resid_mid": why})


_PARALLEL = "the block is parallel: attention and MLP read one input, nothing lies between"
_MLP_FIRST = "the MLP comes first: the residual after attention is resid_post"


def _mixes(inside: _Inside, part: Part, blocks: Blocks) -> bool:
    after = inside.after.get(part.path)
    shaped = None if after is None else _shaped(after, inside.pre, blocks)
    return shaped is not None and mixes_tokens(part.tensor, shaped, blocks)


def _exact(*sums: Sum) -> str:
    return "bitwise" if all(s.exact for s in sums) else f"within {ULPS} ulp"


def _solved(
    added: Mapping[str, Sum],
    words: str,
    *,
    mid: str | None = None,
    missing: Mapping[str, str] | None = None,
) -> Contributions:
    alone = {kind: s.parts[0].path if len(s.parts) == 1 else "" for kind, s in added.items()}
    return Contributions(
        attn=alone.get("attn_out", ""),
        mlp=alone.get("mlp_out", ""),
        mid=mid,
        added=added,
        how=words,
        missing=missing or {},
    )


def _normed(inside: _Inside) -> Contributions | None:
    """A norm after each sum: ``mid = norm(pre + a)`` and ``post = norm(mid + m)``."""
    for attn, first in _after_sum(inside, inside.pre):
        if first.returned is None:
            continue
        for mlp, second in _after_sum(inside, first.returned):
            if mlp.order < first.order or second.returned is None:
                continue
            if same(second.returned, inside.post):
                why = (
                    f"the block normalises after adding: {attn.path} is added to resid_pre and "
                    f"{first.path} normalises the sum, then {mlp.path} and {second.path}; nothing "
                    f"adds up to resid_post - resid_pre{_PATHS}"
                )
                return Contributions(
                    attn=attn.path,
                    mlp=mlp.path,
                    mid=first.path,
                    mid_side="output",
                    how=f"{second.path}(resid_mid + {mlp.path}) == resid_post, bitwise",
                    missing={"attn_out": why, "mlp_out": why},
                )
    return None


def _after_sum(inside: _Inside, stream: torch.Tensor) -> list[tuple[Part, _Read]]:
    """Parts, and the modules that received ``stream + part``."""
    return [
        (part, read)
        for read in inside.reads
        for part in inside.parts
        if part.order < read.order and same(stream + part.tensor, read.received)
    ]


def _unsolved(inside: _Inside | None, *, adds: bool) -> Contributions:
    tried = len(inside.parts) if inside else 0
    if adds:
        return Contributions(
            reason=f"no one or two tensors inside the block add up to resid_post - resid_pre "
            f"({tried} tried): what is added is returned by no module{_PATHS}"
        )
    return Contributions(
        reason="the block normalises or rescales the stream: with its parts held still it does not "
        f"hand a change of its input on unchanged, so nothing adds up to resid_post - resid_pre"
        f"{_PATHS}"
    )
