"""What most strategies share: no parameters, and any model will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from actscope.core.protocols import BackendModel

if TYPE_CHECKING:
    import torch

__all__ = ["PlainStrategy", "row_at"]


class PlainStrategy:
    """A pooling strategy without parameters."""

    name: ClassVar[str]
    pools: ClassVar[bool] = True

    @property
    def params(self) -> Mapping[str, Any]:
        """No parameters."""
        return {}

    def check(self, model: BackendModel) -> None:
        """Any model will do."""

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.params.items())
        return f"{type(self).__name__}({given})"


def row_at(hidden: torch.Tensor, mask: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The rows ``hidden[i, index[i]]`` of ``[n, pos, d]`` in float32, ``[n, d]``.

    An example that keeps no token has a row of NaN, never a row of another token.
    """
    wanted = index.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    rows = hidden.gather(1, wanted).squeeze(1).float()
    return rows.masked_fill(~mask.any(1, keepdim=True), float("nan"))
