"""The CLS token of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from actscope.core.errors import BadInputError
from actscope.core.protocols import BackendModel
from actscope.core.text import Example
from actscope.strategies._base import PlainStrategy, row_at

if TYPE_CHECKING:
    import torch


class CLSStrategy(PlainStrategy):
    """The row of the CLS token: the first kept token, as a span must keep it.

    ``check`` asks the tokenizer whether it writes its CLS token first.

    Args:
        strict: False takes the first token on a model that has no CLS token; True refuses it.
    """

    name: ClassVar[str] = "cls"
    picks: ClassVar[Literal["first", "last"] | None] = "first"

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    @property
    def params(self) -> Mapping[str, Any]:
        """Whether a model without CLS token is refused."""
        return {"strict": self.strict}

    def check(self, model: BackendModel) -> None:
        """Raise BadInputError on a model without CLS token, or that does not write it first."""
        if not self.strict:
            return
        cls_id: int | None = getattr(model, "cls_token_id", None)
        if cls_id is None:
            raise BadInputError(
                f"{model.identity.name} has no CLS token",
                expected="an encoder such as bert",
                next_step="use 'first' or 'last', or CLSStrategy(strict=False) for the first token",
            )
        first = int(model.encode(Example("cls", text="a")).token_ids[0])
        if first != cls_id:  # XLNet writes it last
            raise BadInputError(
                f"the tokenizer of {model.identity.name} does not write the CLS token first",
                got=f"token {first} there",
                expected=f"token {cls_id}",
                next_step="use 'last' where it comes last",
            )

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d]`` float32: the first kept token."""
        return row_at(hidden, mask, mask.int().argmax(1))


STRATEGY = CLSStrategy
