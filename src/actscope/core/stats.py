"""Moments that can be merged in any order and grouping (Chan, Golub & LeVeque 1979)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a sample of numbers, in float64."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Moments:
        """The moments of some numbers; non-finite ones are left out."""
        numbers = np.asarray(values, dtype=np.float64).ravel()
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            return cls()
        mean = float(numbers.mean())
        return cls(int(numbers.size), mean, float(((numbers - mean) ** 2).sum()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both samples together."""
        count = self.count + other.count
        if not count:
            return Moments()
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        m2 = self.m2 + other.m2 + delta * delta * self.count * other.count / count
        return Moments(count, mean, m2)

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1); 0 for fewer than two numbers."""
        return float(np.sqrt(self.m2 / (self.count - 1))) if self.count > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Moments:
        """Read what ``to_json`` wrote."""
        return cls(int(data["count"]), float(data["mean"]), float(data["m2"]))
