"""The CLS token of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from actscope.core.errors import BadInputError
from actscope.core.protocols import BackendModel
from actscope.strategies._base import PlainStrategy, row_at

if TYPE_CHECKING:
    import torch


class CLSStrategy(PlainStrategy):
    """The row of the CLS token, which encoders write first.

    Args:
        strict: False takes the first token on a model that has no CLS token; True refuses it.
    """

    name: ClassVar[str] = "cls"

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    @property
    def params(self) -> Mapping[str, Any]:
        """Whether a model without CLS token is refused."""
        return {"strict": self.strict}

    def check(self, model: BackendModel) -> None:
        """Raise BadInputError on a model without CLS token."""
        if self.strict and getattr(model, "cls_token_id", None) is None:
            raise BadInputError(
                f"{model.identity.name} has no CLS token",
                expected="an encoder such as bert",
                next_step="use 'first' or 'last', or CLSStrategy(strict=False) for the first token",
            )

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32: the first kept token."""
        return row_at(hidden, mask.int().argmax(1))


STRATEGY = CLSStrategy
