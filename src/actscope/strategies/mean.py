"""The mean over the kept tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from actscope.strategies._base import PlainStrategy

if TYPE_CHECKING:
    import torch


class MeanStrategy(PlainStrategy):
    """The mean over the kept tokens, summed in float32."""

    name: ClassVar[str] = "mean"

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32."""
        kept = hidden.float().masked_fill(~mask.unsqueeze(-1), 0.0)
        return kept.sum(1) / mask.sum(1, keepdim=True)


STRATEGY = MeanStrategy
