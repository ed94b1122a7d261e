"""The pooler output of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from actscope.core.errors import BadInputError
from actscope.core.protocols import BackendModel
from actscope.core.sites import Site
from actscope.strategies._base import PlainStrategy, row_at

if TYPE_CHECKING:
    import torch


class PoolerStrategy(PlainStrategy):
    """``pooler_output``: the site ``pooler`` has one row an example already.

    Args:
        strict: False takes the first token on a model without pooler; True refuses it.
    """

    name: ClassVar[str] = "pooler"

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    @property
    def params(self) -> Mapping[str, Any]:
        """Whether a model without pooler is refused."""
        return {"strict": self.strict}

    def check(self, model: BackendModel) -> None:
        """Raise BadInputError on a model without a verified pooler."""
        status = model.sites().get(Site("pooler"))
        if self.strict and not (status and status.verified):
            raise BadInputError(
                f"{model.identity.name} has no pooler",
                got=status.reason if status else None,
                next_step="use 'cls', 'mean' or 'last', or PoolerStrategy(strict=False)",
            )

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32: the first kept row."""
        return row_at(hidden, mask, mask.int().argmax(1))


STRATEGY = PoolerStrategy
