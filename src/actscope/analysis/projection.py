"""Directions in activation space, and how far activations lie along them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["difference_of_means", "project"]

Float64 = npt.NDArray[np.float64]

_SMALLEST = 1e-8
"""Added to the direction's norm, so that the zero vector projects to 0 and not to NaN."""


def project(activations: npt.ArrayLike, direction: npt.ArrayLike) -> Float64:
    """How far each activation lies along a direction: ``h · v / (|v| + 1e-8)``.

    The direction is normalised and the activation is not, so the result has the units of the
    activations (as in Chen et al., "Persona vectors", 2025).

    Args:
        activations: ``[L, d]``, any real dtype.
        direction: ``[d]``, of any length.

    Returns:
        ``[L]`` float64, computed in float64.

    Raises:
        BadInputError: shapes that do not fit, or a value that is not finite.
    """
    rows = _matrix(activations, "activations")
    vector = np.asarray(direction).astype(np.float64)
    if vector.ndim != 1 or vector.shape[0] != rows.shape[1]:
        raise BadInputError(
            "a projection needs a direction as wide as the activations",
            got=f"activations {list(rows.shape)}, direction {list(vector.shape)}",
            expected="[L, d] and [d]",
        )
    if not np.isfinite(vector).all():
        raise BadInputError("the direction has values that are not finite")
    return rows @ (vector / (np.linalg.norm(vector) + _SMALLEST))


def difference_of_means(positive: npt.ArrayLike, negative: npt.ArrayLike) -> Float64:
    """The mean of some activations minus the mean of others, not normalised.

    Args:
        positive: ``[n, d]``, any real dtype.
        negative: ``[m, d]``.

    Returns:
        ``[d]`` float64, from the negative mean to the positive one, in activation units.

    Raises:
        BadInputError: either is empty or not finite, or their widths differ.
    """
    ends = _matrix(positive, "positive activations"), _matrix(negative, "negative activations")
    for name, rows in zip(("positive", "negative"), ends, strict=True):
        if not len(rows):
            raise BadInputError(f"a difference of means needs {name} activations", got="no row")
    if ends[0].shape[1] != ends[1].shape[1]:
        raise BadInputError(
            "a difference of means needs activations of one width",
            got=f"{list(ends[0].shape)} and {list(ends[1].shape)}",
        )
    return ends[0].mean(axis=0) - ends[1].mean(axis=0)


def _matrix(values: npt.ArrayLike, what: str) -> Float64:
    rows = np.asarray(values).astype(np.float64)
    if rows.ndim != 2:
        raise BadInputError(
            f"{what} must be rows", got=f"shape {list(rows.shape)}", expected="[n, d]"
        )
    if not np.isfinite(rows).all():
        raise BadInputError(f"the {what} have values that are not finite")
    return rows
