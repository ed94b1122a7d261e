"""Cosine similarity of many vectors, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError

__all__ = ["Pairs", "closest_pair", "cosine_matrix", "mean_centred", "pairs_of"]

Float64 = npt.NDArray[np.float64]


def cosine_matrix(vectors: npt.ArrayLike, *, vectors_are: str = "rows") -> Float64:
    """Cosine of every pair of vectors.

    A vector of norm zero, or with a value that is not finite, has no direction: its row and column
    are NaN, never 0, so that a plot shows a gap and not "unrelated".

    Args:
        vectors: ``[n, d]``, or ``[d, n]`` with ``vectors_are="columns"``; any real dtype.
        vectors_are: ``rows`` or ``columns``.

    Returns:
        ``[n, n]`` float64, symmetric, within -1..1, exactly 1 on the diagonal.

    Raises:
        BadInputError: not a matrix.
    """
    if vectors_are not in ("rows", "columns"):
        raise BadInputError("vectors are rows or columns", got=repr(vectors_are))
    matrix = _matrix(vectors)
    unit = _unit_rows(matrix if vectors_are == "rows" else matrix.T)
    cosine = np.clip(unit @ unit.T, -1.0, 1.0)
    cosine = (cosine + cosine.T) / 2
    np.fill_diagonal(cosine, 1.0)
    # A unit row holds a value that is not 0, so this is false for NaN and for vectors of width 0.
    gaps = np.flatnonzero(~np.any(np.abs(unit) > 0, axis=1))
    cosine[gaps], cosine[:, gaps] = np.nan, np.nan
    return cosine


def mean_centred(vectors: npt.ArrayLike) -> Float64:
    """Rows ``[n, d]`` minus the mean of the rows that are finite, float64.

    Activations share a large common direction, so raw cosines are near 1 and say little; what is
    left after the mean is where examples differ.
    """
    matrix = _matrix(vectors)
    finite = np.isfinite(matrix).all(axis=1)
    return matrix - matrix[finite].mean(axis=0) if finite.any() else matrix


@dataclass(frozen=True)
class Pairs:
    """Statistics of the cosines of different vectors.

    Attributes:
        count: Pairs with a cosine.
        missing: Pairs without one, because a vector had no direction.
        minimum: Smallest cosine; this and the next two are NaN where no pair has one.
        median: Median cosine.
        maximum: Largest cosine.
    """

    count: int
    missing: int
    minimum: float
    median: float
    maximum: float


def pairs_of(cosine: Float64) -> Pairs:
    """Statistics of a cosine matrix ``[n, n]`` without its diagonal, each pair once."""
    values = cosine[np.triu_indices_from(cosine, k=1)]
    known = values[np.isfinite(values)]
    if not known.size:
        return Pairs(0, int(values.size), np.nan, np.nan, np.nan)
    return Pairs(
        int(known.size),
        int(values.size - known.size),
        float(known.min()),
        float(np.median(known)),
        float(known.max()),
    )


def closest_pair(cosine: Float64) -> tuple[int, int] | None:
    """Places ``i < j`` of the two most similar vectors, or None where no pair has a cosine."""
    upper = np.where(np.triu(np.ones(cosine.shape, np.bool_), k=1), cosine, np.nan)
    if not np.isfinite(upper).any():
        return None
    i, j = np.unravel_index(int(np.nanargmax(upper)), upper.shape)
    return int(i), int(j)


def _matrix(vectors: npt.ArrayLike) -> Float64:
    matrix: Array = np.asarray(vectors)
    if matrix.ndim != 2:
        raise BadInputError(
            "similarity needs a matrix of vectors",
            got=f"shape {list(matrix.shape)}",
            expected="[n, d]",
        )
    return matrix.astype(np.float64)


def _unit_rows(matrix: Float64) -> Float64:
    """Rows of norm 1; NaN where a row has no direction.

    Each row is divided by its largest magnitude first, so that squares neither overflow nor vanish.
    """
    largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0.0)
    usable = np.isfinite(largest) & (largest > 0)
    scaled = np.where(usable, matrix, np.nan) / np.where(usable, largest, 1.0)
    return scaled / np.sqrt((scaled * scaled).sum(axis=1, keepdims=True))
