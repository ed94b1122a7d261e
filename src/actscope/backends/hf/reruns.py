"""Passes over the probe with something held or exchanged: what depends on what, seen by behaviour.

Whether a chain of blocks is the whole stream, whether a part of a block looks at other tokens, and
whether a block adds to its stream or rescales it: each is one forward pass with hooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.blocks import Blocks, differ
from actscope.backends.hf.exclusive import OneThread, on_entering
from actscope.backends.hf.layout import Layout
from actscope.backends.hf.probe import ALTERED, Probe
from actscope.backends.hf.trace import (
    Trace,
    first_tensor,
    float_inputs,
    with_first_tensor,
    with_float_input,
)

__all__ = [
    "adds_to_its_input",
    "determines_output",
    "fed_alone",
    "fed_another_text",
    "is_whole_stream",
    "mixes_tokens",
]

SEEN_INSTEAD = 1
"""Whose row the altered token gets in ``fed_alone``."""


def is_whole_stream(probe: Probe, blocks: Blocks) -> bool:
    """Whether the last block's token rows determine the model's output, each row its own.

    A stack that is only a part of the model, or one of two streams, fails.
    """
    last = blocks.last
    return determines_output(
        probe, blocks.exits[last], blocks.turns[last], blocks.times(last), blocks.layout
    )


def determines_output(probe: Probe, path: str, turn: int, times: int, layout: Layout) -> bool:
    """Whether each token row that a module returns determines that row of the model's output.

    The module returns one row of the altered probe; then the model must return its own row of the
    altered probe there, and what it returned in the plain probe at all other tokens. A model that
    returns something else than token rows (a class of the text) gets all rows of the altered probe
    and must return what it returned there.
    """
    other = probe.altered.turn(path, turn, times)
    expected, plain = _answer(probe.altered.result), _answer(probe.plain.result)
    if other is None or other.output is None:
        return False
    if expected is None or plain is None or expected.shape != plain.shape:
        return True  # what it returns cannot be compared, and nothing speaks against it
    rows = layout.rows(other.output)
    if expected.shape[:2] == probe.ids.shape:
        wanted = plain.clone()
        wanted[:, ALTERED] = expected[:, ALTERED]
        change = _rows_from(rows, layout, slice(ALTERED, ALTERED + 1))
        if not bool(differ(wanted, plain).any()):
            return False  # the token does not reach its own row of the output
    else:
        wanted, change = expected, _rows_from(rows, layout, slice(None))
    with _hooks(probe.model) as place:
        place.output(path, turn, change)
        found = _answer(probe.run().result)
    return found is not None and not bool(differ(found, wanted).any())


def _answer(result: Any) -> torch.Tensor | None:
    """What a model is there to return."""
    for name in ("logits", "last_hidden_state"):
        tensor = getattr(result, name, None)
        if isinstance(tensor, torch.Tensor):
            return tensor
    return first_tensor(result)


def fed_alone(probe: Probe, blocks: Blocks) -> Trace:
    """Every block gets its own input of the plain probe with the altered token's row exchanged.

    What changes in a block at other tokens is then what the block itself carried over.
    """
    with _hooks(probe.model) as place:
        for layer in blocks.ran:
            exchanged = blocks.entered[layer].clone()
            at, other = (blocks.layout.before + p for p in (ALTERED, SEEN_INSTEAD))
            exchanged[:, at] = blocks.entered[layer][:, other]
            place.input(
                blocks.paths[layer],
                blocks.turns[layer],
                blocks.inputs[layer],
                _all_from(exchanged, blocks.layout),
            )
        return probe.run()


def fed_another_text(probe: Probe, blocks: Blocks) -> Trace:
    """Every block gets its own input of the plain probe while the encoder reads another text.

    What changes in a block is then what it took from the encoder.
    """
    with _hooks(probe.model) as place:
        for layer in blocks.ran:
            place.input(
                blocks.paths[layer],
                blocks.turns[layer],
                blocks.inputs[layer],
                _all_from(blocks.entered[layer], blocks.layout),
            )
        return probe.run_on_another_text()


def mixes_tokens(before: torch.Tensor, after: torch.Tensor, blocks: Blocks) -> bool:
    """Whether a part's output changed at tokens other than the exchanged one."""
    if before.shape != after.shape:
        return True
    rows = [x.reshape(-1, x.shape[-1]) for x in (before, after)]
    others = torch.ones(len(rows[0]), dtype=torch.bool, device=before.device)
    others[blocks.layout.before + ALTERED] = False
    return bool(differ(rows[0][others], rows[1][others]).any())


def adds_to_its_input(probe: Probe, blocks: Blocks) -> tuple[bool, ...]:
    """Whether each block, with all its parts held still, hands a change of its input on unchanged.

    A block that normalises or rescales the stream does not, and then no part of it adds up to
    ``resid_post - resid_pre``.
    """
    steps = [_step(a, b) for a, b in zip(blocks.entered, blocks.left, strict=True)]
    with _hooks(probe.model) as place:
        for layer in blocks.ran:
            moved = blocks.entered[layer] + steps[layer]
            place.input(
                blocks.paths[layer],
                blocks.turns[layer],
                blocks.inputs[layer],
                _all_from(moved, blocks.layout),
            )
            for path in _inside(probe.plain, blocks.paths[layer]):
                calls = probe.plain.calls[path]
                for turn, call in enumerate(calls):
                    if call.output is not None:
                        place.output(path, turn, _constant(call.output))
        held = probe.run()
    return tuple(
        layer not in blocks.skipped and _moved_by(held, blocks, layer, steps[layer])
        for layer in range(len(blocks.paths))
    )


def _inside(trace: Trace, block: str) -> list[str]:
    return [path for path in trace.calls if path.startswith(block + ".")]


def _step(entered: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """A change larger than the stream, exact in every dtype: signs times a power of two."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, entered.shape, generator=generator) * 2 - 1
    largest = max(float(x.float().abs().max()) for x in (entered, left))
    return signs.to(entered.device, entered.dtype) * 2.0 ** (round(math.log2(largest or 1.0)) + 3)


def _moved_by(held: Trace, blocks: Blocks, layer: int, step: torch.Tensor) -> bool:
    call = held.turn(blocks.exits[layer], blocks.turns[layer], blocks.times(layer))
    if call is None or call.output is None:
        return False
    left, plain = blocks.layout.arranged(call.output).float(), blocks.left[layer].float()
    if left.shape != plain.shape:
        return False
    eps = torch.finfo(blocks.left[layer].dtype).eps
    size = torch.maximum(left.abs(), plain.abs()).amax(-1, keepdim=True)
    return bool(((left - plain - step.float()).abs() <= 8 * eps * size).all())


_Change = Callable[[torch.Tensor], torch.Tensor]


def _constant(tensor: torch.Tensor) -> _Change:
    return lambda _: tensor


def _all_from(arranged: torch.Tensor, layout: Layout) -> _Change:
    return lambda like: layout.restored(arranged, like)


def _rows_from(rows: torch.Tensor, layout: Layout, tokens: slice) -> _Change:
    """Exchange the rows of some tokens."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        arranged = layout.arranged(tensor).clone()
        layout.tokens(arranged)[:, tokens] = rows[:, tokens]
        return layout.restored(arranged, tensor)

    return change


class _Places:
    """Hooks that exchange tensors at chosen calls of modules."""

    def __init__(self, model: nn.Module) -> None:
        self.handles: list[Any] = []
        self._model = model
        self._thread = OneThread()

    def input(self, path: str, turn: int, index: int, change: _Change) -> None:
        """Exchange a floating-point input of one call."""
        count = [0]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._thread.here:
                return None
            count[0] += 1
            if count[0] - 1 != turn:
                return None
            tensor = float_inputs(args, kwargs)[index]
            return with_float_input(args, kwargs, index, change(tensor))

        module = self._model.get_submodule(path)
        self.handles.append(on_entering(module, hook))

    def output(self, path: str, turn: int, change: _Change) -> None:
        """Exchange the first tensor that one call returns."""
        count = [0]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not self._thread.here:
                return None
            count[0] += 1
            tensor = first_tensor(output)
            if count[0] - 1 != turn or tensor is None:
                return None
            return with_first_tensor(output, change(tensor))

        self.handles.append(self._model.get_submodule(path).register_forward_hook(hook))


@contextmanager
def _hooks(model: nn.Module) -> Generator[_Places]:
    places = _Places(model)
    try:
        yield places
    finally:
        for handle in places.handles:
            handle.remove()
