"""Whether stated confidence is worth what it says: ECE, Brier score, reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.analysis.logistic import as_labels
from actscope.core.errors import BadInputError

__all__ = ["Reliability", "brier_score", "calibration_error", "reliability"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy by bin of confidence; an empty bin is NaN.

    Attributes:
        edges: ``[bins + 1]``, 0 to 1.
        counts: ``[bins]``.
        confidence: ``[bins]`` mean confidence.
        accuracy: ``[bins]`` share of right answers.
    """

    edges: Float64
    counts: Int64
    confidence: Float64
    accuracy: Float64

    @property
    def error(self) -> float:
        """The expected calibration error of these bins."""
        gaps = np.abs(np.nan_to_num(self.confidence) - np.nan_to_num(self.accuracy))
        return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = BINS
) -> Reliability:
    """Bin answers by confidence, in equally wide bins of 0 to 1; 1 belongs to the last.

    Source: Guo et al., "On calibration of modern neural networks" (2017).

    Args:
        confidence: ``[n]``, 0 to 1.
        correct: ``[n]`` booleans.
        bins: How many.

    Raises:
        BadInputError: sizes differ, nothing is given, or a confidence lies outside 0 to 1.
    """
    sure, right = _checked(confidence, correct)
    if bins < 1:
        raise BadInputError("a reliability diagram needs at least one bin", got=bins)
    place = np.minimum((sure * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges=np.linspace(0.0, 1.0, bins + 1),
            counts=counts,
            confidence=np.bincount(place, sure, bins) / counts,
            accuracy=np.bincount(place, right, bins) / counts,
        )


def calibration_error(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = BINS
) -> float:
    """Expected calibration error: mean over answers of |confidence - accuracy| of their bin.

    Raises:
        BadInputError: as for ``reliability``.
    """
    return reliability(confidence, correct, bins=bins).error


def brier_score(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean squared difference of confidence and outcome (Brier, 1950); 0 is best.

    Raises:
        BadInputError: as for ``reliability``.
    """
    sure, right = _checked(confidence, correct)
    return float(((sure - right) ** 2).mean())


def _checked(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Float64, Float64]:
    sure = np.asarray(confidence, np.float64)
    right = as_labels(correct).astype(np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or not sure.size:
        raise BadInputError(
            "calibration needs one confidence and one outcome an answer",
            got=f"confidence {list(sure.shape)}, outcomes {list(right.shape)}",
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        raise BadInputError(
            "a confidence is a number from 0 to 1",
            got=f"{sure.min():.4g} to {sure.max():.4g}",
            next_step="divide percentages by 100",
        )
    return sure, right
