"""From the final norm to logits, checked against the model's own logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.blocks import same
from actscope.backends.hf.trace import Trace
from actscope.families import Family

__all__ = ["Unembedding", "find_unembedding", "output_logits"]

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Unembedding:
    """The head and what is done to its output.

    Attributes:
        head: Path of the unembedding module.
        transform: The family's scale or soft-cap, or the identity.
        how: What was checked.
        reason: Why it is unavailable; empty where it is verified.
    """

    head: str = ""
    transform: Transform | None = None
    how: str = ""
    reason: str = ""


def output_logits(result: Any) -> torch.Tensor | None:
    """The logits of a model output ``[n, pos, d_vocab]``, or None."""
    logits = getattr(result, "logits", None)
    return logits if isinstance(logits, torch.Tensor) and logits.ndim == 3 else None


def find_unembedding(
    model: nn.Module, trace: Trace, norm: str | None, family: Family, config: object
) -> Unembedding:
    """Check that ``transform(head(ln_final)) == logits`` and return what closes it."""
    logits = output_logits(trace.result)
    if logits is None:
        return Unembedding(reason="the model returns no logits (it was loaded without a head)")
    if norm is None:
        return Unembedding(reason="the model has no final norm after the last block")
    normed = trace.single(norm)
    heads = _heads(trace, logits, normed.output if normed else None)
    if not heads:
        return Unembedding(reason="no module turns the final norm's output into logits")
    for head, raw in heads:
        for how, transform in _transforms(family, config):
            if same(transform(raw), logits):
                return Unembedding(head, transform, f"{how} == logits, bitwise")
    return Unembedding(reason="the unembedding's output is not the model's logits")


def _heads(
    trace: Trace, logits: torch.Tensor, normed: torch.Tensor | None
) -> list[tuple[str, torch.Tensor]]:
    """(path, output) of the modules from the final norm to the shape of logits.

    There may be several: an adapter's layer holds the plain head, and both are called.
    """
    found: list[tuple[str, torch.Tensor]] = []
    for path, calls in trace.calls.items():
        call = calls[0]
        if len(calls) != 1 or call.output is None or normed is None or not call.inputs:
            continue
        if call.output.shape == logits.shape and same(call.inputs[0], normed):
            found.append((path, call.output))
    return found


def _transforms(family: Family, config: object) -> list[tuple[str, Transform]]:
    """The identity first, then what the family file names, in the order models apply it."""
    steps: list[tuple[str, Transform]] = [("unembed(ln_final)", lambda x: x)]
    scale = _constant(config, family.logit_scale)
    if scale is not None:
        steps.append((f"unembed(ln_final) * {scale:g}", lambda x: x * scale))
    divisor = _constant(config, family.logit_divisor)
    if divisor is not None:
        steps.append((f"unembed(ln_final) / {divisor:g}", lambda x: x / divisor))
    cap = _constant(config, family.logit_softcap)
    if cap is not None:
        name = f"{cap:g} * tanh(unembed(ln_final) / {cap:g})"
        steps.append((name, lambda x: torch.tanh(x / cap) * cap))
    return steps


def _constant(config: object, name: str | None) -> float | None:
    value = getattr(config, name, None) if name else None
    return float(value) if isinstance(value, (int, float)) else None
