"""Keep every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from actscope.core.errors import BadInputError
from actscope.strategies._base import PlainStrategy

if TYPE_CHECKING:
    import torch


class NoneStrategy(PlainStrategy):
    """No pooling: one row a kept token."""

    name: ClassVar[str] = "none"
    pools: ClassVar[bool] = False

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Refuse: there is nothing to pool."""
        raise BadInputError("the strategy 'none' keeps every token and pools nothing")


STRATEGY = NoneStrategy
