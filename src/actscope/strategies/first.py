"""The first kept token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from actscope.strategies._base import PlainStrategy, row_at

if TYPE_CHECKING:
    import torch


class FirstTokenStrategy(PlainStrategy):
    """The row of the first kept token."""

    name: ClassVar[str] = "first"
    picks: ClassVar[Literal["first", "last"] | None] = "first"

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32."""
        return row_at(hidden, mask, mask.int().argmax(1))


STRATEGY = FirstTokenStrategy
