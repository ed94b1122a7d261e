"""The final norm, by behaviour: it normalises the last block's output, and the logits need it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from actscope.backends.hf.blocks import Blocks, same
from actscope.backends.hf.probe import Probe
from actscope.backends.hf.trace import Call, first_tensor

__all__ = ["FinalNorm", "find_final_norm"]


@dataclass(frozen=True)
class FinalNorm:
    """The module after the last block.

    Attributes:
        path: Its path.
        turn: Which of its calls: some models normalise the embedding with the same module.
        output: What it returned in the probe.
    """

    path: str
    turn: int
    output: torch.Tensor


def find_final_norm(probe: Probe, blocks: Blocks) -> FinalNorm | None:
    """The norm outside the blocks that reads the last block's output, or None."""
    last = probe.plain.turn(
        blocks.exits[blocks.last], blocks.turns[blocks.last], blocks.times(blocks.last)
    )
    assert last is not None and last.output is not None  # it was followed through this call
    calls: list[tuple[int, str, int, Call]] = [
        (call.order, path, turn, call)
        for path, made in probe.plain.calls.items()
        for turn, call in enumerate(made)
        if call.order > last.order and not blocks.contains(path)
    ]
    for _, path, turn, call in sorted(calls, key=lambda item: item[0]):
        if call.output is None or not call.inputs or call.inputs[0].shape != call.output.shape:
            continue
        if not same(call.inputs[0], last.output.to(call.inputs[0].dtype)):
            continue
        if _is_norm(probe.model.get_submodule(path), call.inputs[0]):
            return FinalNorm(path, turn, call.output)
    return None


@torch.no_grad()
def _is_norm(module: nn.Module, like: torch.Tensor) -> bool:
    """Whether a module standardises each row and then acts on each feature alone.

    A row's size must not matter, and each feature must be an affine function of the row divided by
    its root mean square, or of the row less its mean divided by its deviation. A dense layer
    before a norm, as in the heads of masked language models, fails.
    """
    width = like.shape[-1]
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(1, 64, width, generator=generator).to(like.device, like.dtype) * 100
    try:
        outputs = [first_tensor(module(x)) for x in (rows, rows * 8)]
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it takes more than a stream of any length
    if any(out is None or out.shape != rows.shape for out in outputs):
        return False
    out, larger = (x[0].to("cpu", torch.float64) for x in outputs if x is not None)
    half = like.dtype in (torch.bfloat16, torch.float16)
    allowed = (0.03 if half else 1e-3) * float(out.abs().max().clamp_min(1e-12))
    if float((out - larger).abs().max()) > allowed:
        return False
    x = rows[0].to("cpu", torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    by_size = x / x.pow(2).mean(-1, keepdim=True).sqrt()
    kinds = (by_size, centred / centred.pow(2).mean(-1, keepdim=True).sqrt())
    return any(float(_misfit(unit, out).abs().max()) <= allowed for unit in kinds)


def _misfit(unit: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What is left of each output feature after the best affine fit to the same input feature."""
    x, y = unit - unit.mean(0), out - out.mean(0)
    return y - x * ((x * y).sum(0) / x.pow(2).sum(0))
