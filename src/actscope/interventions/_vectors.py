"""Vectors that a user passes: checked once, in float64, and put where the rows are."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.core.protocols import SitePlace

if TYPE_CHECKING:
    import torch

__all__ = ["as_array", "check_width", "digest", "finite_number", "like", "unit_vector", "vector"]

Float64 = npt.NDArray[np.float64]


def as_array(values: Any) -> npt.NDArray[Any]:
    """A numpy array of anything array-like; torch tensors of any dtype, device and graph too."""
    detach = getattr(values, "detach", None)
    if callable(detach):
        tensor: Any = detach()
        tensor = tensor.cpu()
        values = tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
    return np.asarray(values)


def vector(values: Any, what: str) -> Float64:
    """``[d]`` float64.

    Raises:
        BadInputError: no vector of finite numbers.
    """
    try:
        found = as_array(values).astype(np.float64)
    except (TypeError, ValueError):
        raise BadInputError(
            f"the {what} must be a vector of numbers", got=type(values).__name__
        ) from None
    if found.ndim != 1 or not found.size:
        raise BadInputError(
            f"the {what} must be one vector", got=f"shape {list(found.shape)}", expected="[d]"
        )
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).sum())
        raise BadInputError(f"the {what} has {bad} values that are not finite")
    return found


def unit_vector(values: Any, what: str = "direction") -> Float64:
    """``[d]`` float64 of norm 1.

    Raises:
        BadInputError: no vector of finite numbers, or the zero vector.
    """
    found = vector(values, what)
    # The largest value first: squaring 1e200 would overflow, squaring 1e-200 would vanish.
    largest = float(np.abs(found).max())
    if largest == 0:
        raise BadInputError(f"the {what} is the zero vector: it points nowhere")
    found = found / largest
    return found / np.linalg.norm(found)


def finite_number(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        BadInputError: it is not.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadInputError(f"{what} must be a number", got=repr(value)) from None
    if not np.isfinite(found):
        raise BadInputError(f"{what} must be finite", got=found)
    return found


def check_width(found: npt.NDArray[Any], what: str, place: SitePlace, width: int) -> None:
    """Refuse a vector of another width than the site's chosen columns."""
    if found.shape[-1] != width:
        chosen = "" if width == place.width else f" in the chosen columns of {place.width}"
        raise BadInputError(
            f"the {what} does not fit {place.site}",
            got=f"width {found.shape[-1]}",
            expected=f"{width}{chosen}",
        )


def digest(*arrays: npt.NDArray[Any]) -> str:
    """Hex digest of the values in float64 and of the shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(str(array.shape).encode())
        found.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return found.hexdigest()[:32]


def like(rows: torch.Tensor, values: npt.NDArray[Any]) -> torch.Tensor:
    """The values on the rows' device and in their dtype."""
    return rows.new_tensor(np.asarray(values, dtype=np.float64))  # bfloat16 is no numpy dtype
