"""The mean over the kept tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from actscope.strategies._base import PlainStrategy, weighted_sum

if TYPE_CHECKING:
    import torch


class MeanStrategy(PlainStrategy):
    """The mean over the kept tokens, summed in float32."""

    name: ClassVar[str] = "mean"

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32."""
        return weighted_sum(hidden, mask, mask.float() / mask.sum(1, keepdim=True))


STRATEGY = MeanStrategy
