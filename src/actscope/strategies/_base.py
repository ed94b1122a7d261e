"""What most strategies share: no parameters, and any model will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from actscope.core.protocols import BackendModel

if TYPE_CHECKING:
    import torch

__all__ = ["PlainStrategy", "row_at", "weighted_sum"]


class PlainStrategy:
    """A pooling strategy without parameters."""

    name: ClassVar[str]
    pools: ClassVar[bool] = True
    picks: ClassVar[Literal["first", "last"] | None] = None
    """Where the row is that of one kept token: which. Nothing is computed then, only copied."""

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


def weighted_sum(hidden: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``sum_t weights[i, t] hidden[i, t]`` over the kept tokens, in float32, ``[n, d]``.

    On the CPU that is one product which reads the tensor once, unless what lies under the mask is
    NaN or infinite.

    Args:
        hidden: ``[n, pos, d]``.
        mask: ``[n, pos]`` bool, the kept tokens.
        weights: ``[n, pos]`` float32, 0 elsewhere.
    """
    import torch

    hidden = hidden.float()
    if hidden.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
        return (weights.unsqueeze(-1) * hidden.masked_fill(~mask.unsqueeze(-1), 0.0)).sum(1)
    rows = torch.bmm(weights.unsqueeze(1), hidden)
    if not bool(rows.isfinite().all()):
        rows = torch.bmm(weights.unsqueeze(1), hidden.masked_fill(~mask.unsqueeze(-1), 0.0))
    return rows.squeeze(1)
