"""A user's own function."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.strategies._base import PlainStrategy

if TYPE_CHECKING:
    import torch

__all__ = ["STRATEGY", "CustomStrategy"]


class CustomStrategy(PlainStrategy):
    """A function from the kept rows of one example to one vector.

    Args:
        function: Gets float32 numpy ``[L_i, d]`` without padding, returns ``[d']``; d' must be the
            same for every example.

    Raises:
        BadInputError: it is not callable.
    """

    name: ClassVar[str] = "custom"

    def __init__(self, function: Callable[[npt.NDArray[np.float32]], npt.ArrayLike]) -> None:
        if not callable(function):
            raise BadInputError("a custom strategy needs a function", got=type(function).__name__)
        self.function = function

    @property
    def params(self) -> Mapping[str, Any]:
        """The function's name and a hash of its code, so that a changed function is noticed."""
        kind = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        home = getattr(self.function, "__module__", "")
        return {"function": f"{home}.{kind}", "code": _code_hash(self.function)}

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d']`` float32."""
        import torch

        rows: list[npt.NDArray[np.float32]] = []
        for example, kept in zip(hidden, mask, strict=True):
            values = self.function(example[kept].float().cpu().numpy())
            row = np.asarray(values, dtype=np.float32)
            if row.ndim != 1 or (rows and row.shape != rows[0].shape):
                raise BadInputError(
                    "a custom strategy must return one vector of the same size for every example",
                    got=f"shape {list(row.shape)}",
                    expected=f"shape {list(rows[0].shape) if rows else '[d]'}",
                )
            rows.append(row)
        return torch.from_numpy(np.stack(rows)).to(hidden.device)


def _code_hash(function: Callable[..., Any]) -> str:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_consts)) if code else repr(type(function))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


STRATEGY = CustomStrategy
