"""The shape of a family file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """Names of configuration fields that hold a constant of the residual algebra.

    Attributes:
        residual_scale: Multiplies what attention and MLP return before it is added.
        logit_scale: Multiplies the unembedding's output.
        logit_divisor: Divides the unembedding's output.
        logit_softcap: ``c * tanh(logits / c)`` after the unembedding.
    """

    residual_scale: str | None = None
    logit_scale: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
