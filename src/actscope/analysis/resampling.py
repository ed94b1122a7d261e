"""Intervals by redrawing: the percentile bootstrap over examples, paired where two are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["Estimate", "bootstrap"]

Int64 = npt.NDArray[np.int64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: Of all examples.
        low: 2.5th percentile over redrawn examples.
        high: 97.5th percentile.
        n: Examples.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        value, low, high = (round(x, 3) + 0.0 for x in (self.value, self.low, self.high))  # no -0
        return f"{value:.3f} ({low:.3f} to {high:.3f})"

    def to_json(self) -> dict[str, float]:
        """A dictionary for JSON, to six decimals."""
        named = (("value", self.value), ("low", self.low), ("high", self.high))
        return {**{name: round(float(value), 6) for name, value in named}, "n": self.n}


def bootstrap(
    measure: Callable[[Int64], float], n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """A figure of n examples with its percentile interval (Efron & Tibshirani, 1993).

    For a paired comparison the measure reads both sides at the same places. Draws on which the
    measure is NaN (a class that was not drawn) are left out.

    Args:
        measure: The figure of some examples, given their places; a place may occur several times.
        n: How many examples there are.
        resamples: How many draws.
        seed: Of the draws.

    Raises:
        BadInputError: no example, or a figure that is NaN on nearly every draw.
    """
    if n < 1 or resamples < 1:
        raise BadInputError("a bootstrap needs examples and draws", got=f"{n}, {resamples}")
    rng = np.random.default_rng(seed)
    draws = np.array([measure(rng.integers(0, n, n)) for _ in range(resamples)])
    known = draws[~np.isnan(draws)]
    if len(known) < resamples // 10:
        raise BadInputError("the figure cannot be computed on redrawn examples", got=f"n = {n}")
    low, high = np.quantile(known, [0.025, 0.975]).tolist()
    return Estimate(float(measure(np.arange(n))), low, high, n)
