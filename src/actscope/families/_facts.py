"""The shape of a family file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """What the code of a model type knows and neither its configuration nor its tensors show.

    Attributes:
        constants: Numbers that the type multiplies or divides contributions, residuals or logits
            by, or caps logits with, and that its configuration does not hold.
    """

    constants: tuple[float, ...] = ()
