"""The elementwise maximum over the kept tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from actscope.strategies._base import PlainStrategy

if TYPE_CHECKING:
    import torch


class MaxStrategy(PlainStrategy):
    """The elementwise maximum over the kept tokens."""

    name: ClassVar[str] = "max"

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32."""
        return hidden.float().masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)


STRATEGY = MaxStrategy
