"""How large activations are: row norms and their quartiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["LayerNorms", "NormSummary", "norms_by_layer", "row_norms", "summarise_norms"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NormSummary:
    """The distribution of some norms. All figures but the counts are NaN where ``count`` is 0.

    Attributes:
        count: Rows with a finite norm.
        non_finite: Rows left out because a value was NaN or infinite.
        mean: Arithmetic mean.
        minimum: Smallest.
        q25: Lower quartile (linear interpolation, as ``numpy.quantile``).
        median: Median.
        q75: Upper quartile.
        maximum: Largest.
    """

    count: int
    non_finite: int
    mean: float
    minimum: float
    q25: float
    median: float
    q75: float
    maximum: float

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON; what is not a number is None."""
        data = asdict(self)
        return {key: None if math.isnan(value) else value for key, value in data.items()}


@dataclass(frozen=True)
class LayerNorms:
    """Norms layer by layer, the first token of each example apart from all later ones.

    The first token takes up attention that has nowhere to go, and in many models its norm is tens
    or hundreds of times that of the others; one mean over both would describe neither.

    Attributes:
        layers: Layer indices, ascending.
        first: One summary a layer, of first tokens.
        later: One summary a layer, of all other tokens.
    """

    layers: tuple[int, ...]
    first: tuple[NormSummary, ...]
    later: tuple[NormSummary, ...]

    @property
    def first_dominates(self) -> bool:
        """Whether the first token's median is over twice the others' upper quartile anywhere."""
        pairs = zip(self.first, self.later, strict=True)
        return any(f.count and o.count and f.median > 2 * o.q75 for f, o in pairs)

    @property
    def growth(self) -> float:
        """Median norm of later tokens in the last layer over that in the first."""
        return self.later[-1].median / self.later[0].median if self.later[0].median else np.nan

    @property
    def non_finite(self) -> int:
        """Rows that were left out, all layers together."""
        return sum(s.non_finite for s in (*self.first, *self.later))


def row_norms(rows: npt.ArrayLike) -> Float64:
    """Euclidean norm of each row of ``[n, d]``, in float64; NaN where a value is not finite."""
    matrix = np.asarray(rows).astype(np.float64)
    if matrix.ndim != 2:
        raise BadInputError(
            "norms need rows", got=f"shape {list(matrix.shape)}", expected="[rows, d]"
        )
    norms = np.sqrt((matrix * matrix).sum(axis=1))
    return np.where(np.isfinite(matrix).all(axis=1), norms, np.nan)


def summarise_norms(norms: npt.ArrayLike) -> NormSummary:
    """Quartiles of some norms; those that are not finite are left out and counted."""
    values = np.asarray(norms, dtype=np.float64).ravel()
    finite = values[np.isfinite(values)]
    left_out = int(values.size - finite.size)
    if not finite.size:
        return NormSummary(0, left_out, *[float("nan")] * 6)
    points = np.quantile(finite, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
    return NormSummary(int(finite.size), left_out, float(finite.mean()), *points)


def norms_by_layer(
    norms: Mapping[int, npt.ArrayLike], is_first: npt.NDArray[np.bool_]
) -> LayerNorms:
    """Norms of the rows of each layer, first tokens apart.

    Args:
        norms: ``[n]`` row norms per layer, of the same tokens in every layer.
        is_first: ``[n]``, true where a row is the first token of its example.

    Raises:
        BadInputError: no layer, or a layer with another number of rows.
    """
    if not norms:
        raise BadInputError("norms by layer need at least one layer")
    layers = sorted(norms)
    first: list[NormSummary] = []
    later: list[NormSummary] = []
    for layer in layers:
        values = np.asarray(norms[layer], dtype=np.float64)
        if values.shape != is_first.shape:
            raise BadInputError(
                f"layer {layer} has {values.size} norms", expected=f"{is_first.size}: one a token"
            )
        first.append(summarise_norms(values[is_first]))
        later.append(summarise_norms(values[~is_first]))
    return LayerNorms(tuple(layers), tuple(first), tuple(later))
