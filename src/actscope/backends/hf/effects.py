"""What an intervention did: counted and measured in the hook, read when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actscope.core.sites import Site

__all__ = ["Effect", "Tally"]


@dataclass(frozen=True)
class Effect:
    """What one intervention did at one site.

    Attributes:
        intervention: Its words.
        site: Where.
        passes: Forward passes in which its hook fired and found tokens to change.
        rows: Token rows it wrote.
        changed: How many of these have another value than before.
        projection: Mean change of a row's projection on the intervention's unit direction, in the
            model's dtype; None without a direction or without rows.
        distance: Mean length of a row's change; None without rows.
    """

    intervention: str
    site: Site
    passes: int
    rows: int
    changed: int
    projection: float | None
    distance: float | None

    def __str__(self) -> str:
        what = f"{self.intervention} at {self.site}"
        if not self.passes:
            return f"{what}: never fired"
        text = f"{what}: {self.passes} passes, {self.changed} of {self.rows} rows changed"
        if self.projection is not None:
            text += f", projection moved by {self.projection:+.4g}"
        return f"{text}, mean distance {self.distance:.4g}"


class Tally:
    """Sums that stay on the device: reading them would stop the pass.

    Args:
        axis: ``[width]`` the direction to measure along, or None.
    """

    def __init__(self, axis: object) -> None:
        self._axis = axis
        self.passes = 0
        self.rows = 0
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Count rows ``[k, width]`` in float32 or float64 and what became of them."""
        step = after - before
        along = step.sum(-1) * 0
        if self._axis is not None:
            if not isinstance(self._axis, torch.Tensor) or self._axis.device != step.device:
                self._axis = step.new_tensor(self._axis)
            along = step @ self._axis.to(step.dtype)
        changed = (before != after).any(-1)
        found = torch.stack([changed.float().sum(), along.sum(), step.norm(dim=-1).sum()])
        self._sums = found if self._sums is None else self._sums + found
        self.passes += 1
        self.rows += len(before)

    def effect(self, intervention: str, site: Site) -> Effect:
        """What was counted so far."""
        if self._sums is None:
            return Effect(intervention, site, 0, 0, 0, None, None)
        changed, along, distance = (float(x) for x in self._sums.cpu())
        mean = None if self._axis is None else along / self.rows
        return Effect(
            intervention, site, self.passes, self.rows, round(changed), mean, distance / self.rows
        )
