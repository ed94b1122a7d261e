"""Logistic regression with an L2 penalty, for many label vectors over the same rows at once.

The objective is scikit-learn's ``LogisticRegression(C=1.0)``: ``|w|² / 2`` plus the summed log
loss, with a free intercept; it has one minimum. A permutation test refits the same rows hundreds
of times, so what depends on the rows alone is computed once:

* The minimiser lies in the span of the rows (Kimeldorf & Wahba, 1971), so ``n`` rows of any width
  become at most ``n`` coordinates by a singular value decomposition.
* There the curvature of the log loss is at most ``s²/4 + 1`` a coordinate (Böhning & Lindsay,
  "Monotonicity of quadratic-approximation algorithms", 1988), which gives a safe step without a
  Hessian. Nesterov's momentum with restarts (O'Donoghue & Candès, "Adaptive restart for
  accelerated gradient schemes", 2015) makes it fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["LinearProbes", "as_labels", "fit_logistic"]

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_TOLERANCE = 1e-7
"""Largest entry of the gradient, in units of the curvature's root, at which the fit is over."""
_MOST_STEPS = 20_000


@dataclass(frozen=True)
class LinearProbes:
    """Fitted directions: the log odds of a row ``x`` are ``x @ weights[k] + intercepts[k]``.

    Attributes:
        weights: ``[k, d]``, one row a label vector, in the units of the features.
        intercepts: ``[k]``.
    """

    weights: Float64
    intercepts: Float64

    def scores(self, features: npt.ArrayLike) -> Float64:
        """Log odds ``[k, n]`` of rows ``[n, d]``."""
        return self.weights @ np.asarray(features, np.float64).T + self.intercepts[:, None]


def as_labels(labels: npt.ArrayLike) -> Bool:
    """Labels of two classes as booleans.

    Raises:
        BadInputError: they are not booleans, nor the numbers 0 and 1: more classes must not be
            taken for two.
    """
    values = np.asarray(labels)
    if values.dtype != np.bool_ and not (
        np.issubdtype(values.dtype, np.number) and np.isin(values, (0, 1)).all()
    ):
        raise BadInputError(
            "labels must be of two classes: booleans, or 0 and 1",
            got=", ".join(repr(x) for x in np.unique(values.astype(str))[:5].tolist()),
            next_step="compare with one of them, for example exposure == 'often'",
        )
    return values.astype(np.bool_)


def fit_logistic(features: npt.ArrayLike, labels: npt.ArrayLike) -> LinearProbes:
    """Fit one logistic regression a label vector, all over the same rows.

    Args:
        features: ``[n, d]``, standardised by the caller where their scales differ.
        labels: ``[k, n]`` booleans, or ``[n]`` for one fit.

    Raises:
        BadInputError: shapes that do not fit, a feature that is not finite, labels of one class,
            or features so large that the fit does not end.
    """
    rows = np.asarray(features).astype(np.float64)
    wanted: Bool = np.atleast_2d(as_labels(labels))
    _check(rows, wanted)
    centre = rows.mean(axis=0)
    left, sizes, basis = np.linalg.svd(rows - centre, full_matrices=False)
    kept = sizes > sizes.max(initial=0.0) * max(rows.shape) * np.finfo(np.float64).eps
    weights, intercepts = _descend(left[:, kept], sizes[kept], wanted.astype(np.float64))
    weights = weights @ basis[kept]
    return LinearProbes(weights, intercepts - weights @ centre)


def _descend(left: Float64, sizes: Float64, labels: Float64) -> tuple[Float64, Float64]:
    """Minimise over the coordinates ``left * sizes``, whose columns are orthogonal and centred.

    Every coordinate, the intercept's too, is scaled so that the curvature is nowhere above 1: then
    a step of length 1 against the gradient cannot make the objective larger.
    """
    n, width = left.shape
    roots = np.append(np.sqrt(sizes**2 / 4 + 1), np.sqrt(n / 4))
    design = np.hstack([left * sizes, np.ones((n, 1))]) / roots
    penalty = np.append(1 / roots[:width] ** 2, 0.0)[:, None]
    target = labels.T
    place = np.zeros((width + 1, target.shape[1]))
    ahead = place
    momentum = np.ones(target.shape[1])
    for _ in range(_MOST_STEPS):
        gradient = design.T @ (_logistic(design @ ahead) - target) + penalty * ahead
        if np.abs(gradient).max() < _TOLERANCE:
            scaled = (ahead / roots[:, None]).T
            return scaled[:, :width], scaled[:, width]
        step = ahead - gradient
        uphill = (gradient * (step - place)).sum(axis=0) > 0
        momentum = np.where(uphill, 1.0, momentum)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = step + np.where(uphill, 0.0, (momentum - 1) / following) * (step - place)
        place, momentum = step, following
    raise BadInputError(
        "the logistic regression has no end in sight",
        got=f"{_MOST_STEPS:,} steps; largest singular value {sizes.max(initial=0.0):.3g}",
        next_step="standardise the features",
    )


def _logistic(x: Float64) -> Float64:
    """``1 / (1 + exp(-x))`` without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def _check(rows: Float64, labels: Bool) -> None:
    if rows.ndim != 2 or labels.ndim != 2 or labels.shape[1] != len(rows):
        raise BadInputError(
            "a logistic regression needs rows and one label a row",
            got=f"features {list(rows.shape)}, labels {list(labels.shape)}",
            expected="[n, d] and [n] or [k, n]",
        )
    if not np.isfinite(rows).all():
        raise BadInputError("a logistic regression needs finite features")
    if not (labels.any(axis=1) & ~labels.all(axis=1)).all():
        raise BadInputError("a logistic regression needs rows of both classes")
