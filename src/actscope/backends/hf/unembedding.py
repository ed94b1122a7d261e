"""From the last block to logits, checked against the model's own logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.blocks import Blocks, same
from actscope.backends.hf.constants import exact_constants, ratio
from actscope.backends.hf.norms import FinalNorm
from actscope.backends.hf.probe import Probe
from actscope.backends.hf.trace import Call

__all__ = ["Unembedding", "find_unembedding", "output_logits"]

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Unembedding:
    """The way from a residual row to logits.

    Attributes:
        norm: Path of the final norm, empty where there is none.
        scale: Multiplies what the head reads.
        divides: Whether the model divides by its inverse, which rounds otherwise.
        head: Path of the unembedding module.
        transform: What is done to the head's output: a scale, a soft-cap, unused columns cut off.
        how: What was checked.
        reason: Why it is unavailable; empty where it is verified.
    """

    norm: str = ""
    scale: float = 1.0
    divides: bool = False
    head: str = ""
    transform: Transform | None = None
    how: str = ""
    reason: str = ""

    def logits(self, model: nn.Module, resid: torch.Tensor) -> torch.Tensor:
        """``[..., d_vocab]`` of ``[..., d_model]``; only for a verified unembedding."""
        assert self.transform is not None
        hidden = model.get_submodule(self.norm)(resid) if self.norm else resid
        return self.transform(self.read(model.get_submodule(self.head), hidden))

    def read(self, head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What the head makes of the final norm's output, before ``transform``."""
        return head(_scaled(hidden, self.scale, divides=self.divides))


def _scaled(hidden: torch.Tensor, scale: float, *, divides: bool) -> torch.Tensor:
    if scale == 1.0:
        return hidden
    return hidden / (1 / scale) if divides else hidden * scale


def output_logits(result: Any) -> torch.Tensor | None:
    """The logits of a model output ``[n, pos, d_vocab]``, or None."""
    logits = getattr(result, "logits", None)
    return logits if isinstance(logits, torch.Tensor) and logits.ndim == 3 else None


def find_unembedding(probe: Probe, blocks: Blocks, norm: FinalNorm | None) -> Unembedding:
    """Check that ``transform(head(ln_final * scale)) == logits`` and return what closes it.

    Without a final norm the head reads the last block's output.
    """
    logits = output_logits(probe.plain.result)
    if logits is None:
        return Unembedding(reason="the model returns no logits (it was loaded without a head)")
    read = norm.output if norm else blocks.left[blocks.last]
    name = "ln_final" if norm else "resid_post"
    heads = list(_heads(probe, blocks, logits, read))
    for path, call, scale, divides in heads:
        assert call.output is not None
        reads = name if scale == 1.0 else f"{name} * {scale:.6g}"
        for how, transform in _transforms(call.output, logits, probe.numbers):
            if same(transform(call.output), logits):
                said = how.format(f"unembed({reads})")
                said = f"{said} == logits, bitwise"
                return Unembedding(norm.path if norm else "", scale, divides, path, transform, said)
    if heads:
        return Unembedding(reason="the unembedding's output is not the model's logits")
    what = "the final norm's output" if norm else "the last block's output (there is no final norm)"
    return Unembedding(reason=f"no single module turns {what} into logits")


def _heads(
    probe: Probe, blocks: Blocks, logits: torch.Tensor, read: torch.Tensor
) -> Iterator[tuple[str, Call, float, bool]]:
    """Modules that read the tensor, perhaps times a constant, and return rows of logits' width.

    Yields path, call, the constant, and whether it is divided by its inverse.
    """
    for path, calls in probe.plain.calls.items():
        call = calls[0]
        if len(calls) != 1 or call.output is None or not call.inputs or blocks.contains(path):
            continue
        wide = call.output.ndim == 3 and call.output.shape[-1] >= logits.shape[-1]
        if not wide or call.output.shape[:2] != logits.shape[:2] or not path:
            continue
        received = call.inputs[0]
        rows = read[:, blocks.layout.before :][:, : received.shape[1]]
        if same(received, rows):
            yield path, call, 1.0, False
        elif received.shape == rows.shape:
            near = exact_constants(ratio(received, rows), probe.numbers, 1e-2)
            for (_, scale), divides in product(near, (False, True)):
                if same(received, _scaled(rows, scale, divides=divides)):
                    yield path, call, scale, divides
                    break


def _transforms(
    raw: torch.Tensor, logits: torch.Tensor, numbers: tuple[float, ...]
) -> Iterator[tuple[str, Transform]]:
    """The identity first, then scales and soft-caps that the configuration's numbers make."""
    width = logits.shape[-1]
    yield "{}", lambda x: x[..., :width]
    whole = raw[..., :width]
    for name, scale in exact_constants(ratio(logits, whole), numbers, 1e-2):
        yield f"{{}} * {name}", lambda x, s=scale: x[..., :width] * s
        yield f"{{}} / {1 / scale:g}", lambda x, s=1 / scale: x[..., :width] / s
    largest = float(logits.abs().max())
    for cap in numbers:
        if cap >= largest:
            name = f"{cap:g} * tanh({{}} / {cap:g})"
            yield name, lambda x, c=cap: torch.tanh(x[..., :width] / c) * c
            yield name, lambda x, c=cap: c * torch.tanh(x[..., :width] / c)
