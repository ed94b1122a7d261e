"""Find a model's blocks by verification.

The blocks are the items of a ``ModuleList``, in the order in which they run, where each receives
bitwise what the one before returned. No name plays a part. Items may run several times (a shared
block) or not at all (a block for images, on text).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from actscope.backends.hf.constants import exact_constants, ratio
from actscope.backends.hf.layout import PLAIN, Layout, layout_of
from actscope.backends.hf.probe import ALTERED, PROBE_TOKENS, Probe
from actscope.backends.hf.trace import Call, Trace
from actscope.core.errors import ModelLoadError

__all__ = ["Blocks", "differ", "find_blocks", "same"]


@dataclass(frozen=True)
class Blocks:
    """The chain of blocks.

    Attributes:
        paths: Path of the module that receives the stream, for each block.
        exits: Path of the module that returns it: the same one, where a block is a module.
        turns: Which call of the module it is; not 0 only where a module runs several times.
        inputs: Which of the floating-point inputs is the residual stream.
        entered: The stream entering each block in the probe, ``[n, pos, d]``.
        left: The stream leaving it.
        links: What the next block's input is bitwise: the output times this.
        skipped: Blocks that did not run in the probe; the stream passes them by unchanged.
        layout: How the model's own tensors become ``[n, pos, d]``.
    """

    paths: tuple[str, ...]
    exits: tuple[str, ...]
    turns: tuple[int, ...]
    inputs: tuple[int, ...]
    entered: tuple[torch.Tensor, ...]
    left: tuple[torch.Tensor, ...]
    links: tuple[float, ...]
    skipped: frozenset[int] = frozenset()
    layout: Layout = PLAIN

    @property
    def ran(self) -> tuple[int, ...]:
        """The blocks that ran, in order."""
        return tuple(i for i in range(len(self.paths)) if i not in self.skipped)

    @property
    def last(self) -> int:
        """The last block that ran."""
        return self.ran[-1]

    def pre(self, layer: int) -> torch.Tensor:
        """The residual stream entering a block, ``[n, pos, d_model]``."""
        return self.layout.tokens(self.entered[layer])

    def post(self, layer: int) -> torch.Tensor:
        """The residual stream leaving a block, ``[n, pos, d_model]``."""
        return self.layout.tokens(self.left[layer])

    def times(self, layer: int) -> int:
        """How often the block's module runs in one pass."""
        return self.paths.count(self.paths[layer])

    def is_module(self, layer: int) -> bool:
        """Whether one module is the whole block."""
        return self.paths[layer] == self.exits[layer]

    def contains(self, path: str) -> bool:
        """Whether a module lies inside a block, or is one."""
        return any(path == p or path.startswith(p + ".") for p in {*self.paths, *self.exits})


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bitwise equal values of one dtype, a flattened token axis allowed."""
    if a.dtype != b.dtype or a.numel() != b.numel() or a.shape[-1] != b.shape[-1]:
        return False
    return torch.equal(a.reshape(-1), b.reshape(-1).to(a.device))


def differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which rows of ``[..., d]`` differ by more than rounding, ``[...]`` bool.

    Altering one token can change the rounding of others without their seeing it: a mixture of
    experts then multiplies matrices of other shapes.
    """
    half = a.dtype in (torch.bfloat16, torch.float16)
    tolerance = (2 if half else 64) * torch.finfo(a.dtype).eps
    x, y = a.float(), b.float()
    return (x - y).abs().amax(-1) > tolerance * torch.maximum(x.abs(), y.abs()).amax(-1)


@dataclass(frozen=True)
class _Visit:
    """One call of one item of a list."""

    index: int
    turn: int
    path: str
    exit: str
    call: Call
    returned: torch.Tensor


def find_blocks(probe: Probe, is_whole: Callable[[Blocks], bool]) -> Blocks:
    """The longest verified chain that carries all of the model's state.

    Args:
        probe: The probe.
        is_whole: Whether the last block's output determines what the model returns.

    Raises:
        ModelLoadError: there is none, with what was tried.
    """
    chains = list(_chains(probe)) or list(_open_chains(probe))
    sizes = [(len(blocks.ran), _size(probe.model, blocks)) for blocks in chains]
    tried: list[str] = []
    for place in sorted(range(len(chains)), key=lambda i: sizes[i], reverse=True):
        blocks = chains[place]
        name = f"{blocks.paths[0]} to {blocks.paths[-1]}"
        if not _is_aligned(blocks, probe.altered):
            tried.append(f"the rows of {name} are no tokens, or not in their order")
        elif not is_whole(blocks):
            tried.append(f"what {name} return does not determine the model's output")
        else:
            around = [c for c in chains if _is_part_of_a_block(probe.model, blocks, c)]
            whole = [c for c in around if _is_aligned(c, probe.altered) and is_whole(c)]
            return max(whole, key=lambda c: len(c.ran), default=blocks)
    raise ModelLoadError(
        "no chain of blocks was found that carries one residual stream of token rows",
        got="; ".join(tried[:2])
        or "no module list whose items receive bitwise what the one before returned",
        expected="blocks whose last one returns all that the model's output depends on",
        next_step="if a part of the model is such a model (an encoder, a text decoder), wrap that "
        "part: actscope.wrap_model(model.part, tokenizer)",
    )


def _is_part_of_a_block(model: nn.Module, inner: Blocks, outer: Blocks) -> bool:
    """Whether a chain is what one block of another chain is made of.

    The parts of a block hand a stream on too, and in a model of few blocks they are the longer
    chain. A list of one item may also hold the whole model: then the items inside are all alike.
    """
    inside = [path for path in outer.paths if all(p.startswith(path + ".") for p in inner.paths)]
    if not inside:
        return False
    kinds = {type(model.get_submodule(path)) for path in inner.paths}
    return len(outer.paths) > 1 or len(kinds) > 1


def _size(model: nn.Module, blocks: Blocks) -> int:
    modules = [model.get_submodule(p) for p in {*blocks.paths, *blocks.exits}]
    return sum(p.numel() for m in modules for p in m.parameters())


def _chains(probe: Probe) -> Iterator[Blocks]:
    """Chains of whole modules, one after the other."""
    for path, module in probe.model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
            continue
        paths = _items(path, module)
        visits = _visits(probe.plain, paths, paths)
        turns = Counter(v.index for v in visits)
        if max(turns.values(), default=0) > 1:  # shared blocks: one layer for each call
            chain = _follow([replace(v, index=i) for i, v in enumerate(visits)], probe.numbers)
            count = len(visits)
        else:
            in_order = [v.index for v in visits] == sorted(turns)
            chain = _follow(visits, probe.numbers) if in_order else None
            count = len(module)
        if chain is not None:
            yield _with_skipped(chain, visits, paths, count)


def _open_chains(probe: Probe) -> Iterator[Blocks]:
    """Chains whose blocks are no modules: one list's items receive what another's return."""
    lists = [
        _items(path, module)
        for path, module in probe.model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    for entries in lists:
        for exits in lists:
            if entries == exits or len(entries) != len(exits):
                continue
            visits = _visits(probe.plain, entries, exits)
            if len(visits) == len(entries):
                chain = _follow(visits, probe.numbers)
                if chain is not None:
                    yield chain


def _items(path: str, module: nn.ModuleList | nn.Sequential) -> list[str]:
    return [f"{path}.{i}" if path else str(i) for i in range(len(module))]


def _visits(trace: Trace, entries: Sequence[str], exits: Sequence[str]) -> list[_Visit]:
    """Every call of the items that returned a tensor, in the order in which they returned."""
    found: list[_Visit] = []
    for index, (entry, leaving) in enumerate(zip(entries, exits, strict=True)):
        calls = trace.calls.get(entry, [])
        ends = trace.calls.get(leaving, [])
        if len(calls) != len(ends):
            return []
        for turn, (call, end) in enumerate(zip(calls, ends, strict=True)):
            if end.output is None or not call.inputs or call.order > end.order:
                return []
            found.append(_Visit(index, turn, entry, leaving, call, end.output))
    return sorted(found, key=lambda v: v.call.order)


def _follow(visits: Sequence[_Visit], numbers: tuple[float, ...]) -> Blocks | None:
    """The chain of these calls, if each receives what the one before returned."""
    if not visits:
        return None
    shape = tuple(visits[0].returned.shape)
    layout = layout_of(shape, 1, PROBE_TOKENS)
    if layout is None:
        return None
    first = visits[0].call.inputs
    places = [next((i for i, t in enumerate(first) if tuple(t.shape) == shape), None)]
    links: list[float] = []
    for before, visit in pairwise(visits):
        place, link = _continued(before.returned, visit.call.inputs, numbers)
        places.append(place)
        links.append(link)
    if any(place is None for place in places):
        return None
    inputs = tuple(place for place in places if place is not None)
    entered = [v.call.inputs[i] for v, i in zip(visits, inputs, strict=True)]
    return Blocks(
        tuple(v.path for v in visits),
        tuple(v.exit for v in visits),
        tuple(v.turn for v in visits),
        inputs,
        tuple(layout.arranged(t) for t in entered),
        tuple(layout.arranged(v.returned) for v in visits),
        (*links, 1.0),
        layout=layout,
    )


def _continued(
    returned: torch.Tensor, inputs: Sequence[torch.Tensor], numbers: tuple[float, ...]
) -> tuple[int | None, float]:
    """Which input continues what was returned, and times which constant."""
    alike = [i for i, t in enumerate(inputs) if t.shape == returned.shape]
    for index in alike:
        if same(inputs[index], returned):
            return index, 1.0
    for index in alike:
        estimate = ratio(inputs[index], returned)
        for _, factor in exact_constants(estimate, numbers, 1e-3):
            if same(inputs[index], returned * factor):
                return index, factor
    return None, 1.0


def _with_skipped(
    chain: Blocks, visits: Sequence[_Visit], paths: Sequence[str], count: int
) -> Blocks:
    """The chain with a place for every block that did not run."""
    if len(chain.paths) == count:
        return chain
    place = {v.index: i for i, v in enumerate(visits)}
    skipped = frozenset(range(count)) - place.keys()
    # A skipped block hands on what the block before it returned, or what the next one receives.
    entered, left = list[torch.Tensor](), list[torch.Tensor]()
    stream = chain.entered[0]
    for index in range(count):
        if index in skipped:
            entered.append(stream)
        else:
            entered.append(chain.entered[place[index]])
            stream = chain.left[place[index]]
        left.append(stream)
    return replace(
        chain,
        paths=tuple(paths),
        exits=tuple(paths),
        turns=(0,) * count,
        inputs=tuple(chain.inputs[place[i]] if i in place else 0 for i in range(count)),
        entered=tuple(entered),
        left=tuple(left),
        links=tuple(chain.links[place[i]] if i in place else 1.0 for i in range(count)),
        skipped=skipped,
    )


def _is_aligned(blocks: Blocks, altered: Trace) -> bool:
    """Whether positions that are no tokens stand before the tokens: one token alters one row."""
    if not blocks.layout.before:
        return True
    first = blocks.ran[0]
    call = altered.turn(blocks.paths[first], 0, blocks.times(first))
    if call is None:
        return False
    other = blocks.layout.arranged(call.inputs[blocks.inputs[first]])
    if other.shape != blocks.entered[first].shape:
        return False
    changed = differ(blocks.entered[first], other)[0].nonzero().flatten().tolist()
    return changed == [blocks.layout.before + ALTERED]
