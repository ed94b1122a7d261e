"""Exponentially decaying weights from the last kept token backwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from actscope.core.errors import BadInputError
from actscope.strategies._base import PlainStrategy, weighted_sum

if TYPE_CHECKING:
    import torch

__all__ = ["ALIASES", "STRATEGY", "ExpWeightedStrategy"]

ALIASES = {"exp_977": 0.023, "exp_933": 0.067, "exp_841": 0.159}


class ExpWeightedStrategy(PlainStrategy):
    """``w_j = 2^(-j / (f L))``, j counted from the last kept token, normalised to sum 1.

    Args:
        f: The half-life as a fraction of the L kept tokens.

    Raises:
        BadInputError: f is not a positive number.
    """

    name: ClassVar[str] = "exp_weighted"

    def __init__(self, f: float) -> None:
        if not (math.isfinite(f) and f > 0):
            raise BadInputError("the half-life f must be a positive number", got=f)
        self.f = float(f)

    @property
    def params(self) -> Mapping[str, Any]:
        """The half-life as a fraction of the document's length."""
        return {"f": self.f}

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32."""
        length = mask.sum(1, keepdim=True)
        back = (length - mask.cumsum(1)).float()  # 0 at the last kept token
        weights = (-back / (self.f * length)).exp2().masked_fill(~mask, 0.0)
        weights = weights / weights.sum(1, keepdim=True)
        return weighted_sum(hidden, mask, weights)


STRATEGY = ExpWeightedStrategy
