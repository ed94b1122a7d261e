"""The last kept token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from actscope.strategies._base import PlainStrategy, row_at

if TYPE_CHECKING:
    import torch


class LastTokenStrategy(PlainStrategy):
    """The row of the last kept token, on whichever side the padding is."""

    name: ClassVar[str] = "last"
    picks: ClassVar[Literal["first", "last"] | None] = "last"

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32."""
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return row_at(hidden, mask, last)


STRATEGY = LastTokenStrategy
