"""Cross-validated ridge probes: how much of a number can be read from each layer.

The penalty is chosen inside each training fold by generalised cross-validation (Golub, Heath &
Wahba, 1979), from one singular value decomposition that serves every target and every shuffle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = [
    "PENALTIES",
    "HeldOut",
    "RidgeCurve",
    "RidgeFit",
    "RidgeScore",
    "fit_ridge",
    "group_folds",
    "held_out",
    "r_squared",
    "ridge_curve",
]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

PENALTIES = tuple(10.0**k for k in range(-2, 7))
_RESAMPLES = 2000


@dataclass(frozen=True)
class RidgeFit:
    """Fitted weights: a row ``x`` is read as ``((x - mean) / scale) @ weights[:, k] + offset[k]``.

    Attributes:
        weights: ``[d, k]``, for standardised features.
        offset: ``[k]``, the targets' means.
        mean: ``[d]`` of the features.
        scale: ``[d]``, their standard deviations; 1 where a feature is constant.
        penalties: ``[k]``, what was chosen.
        errors: ``[k]``, the generalised cross-validation error at that penalty.
    """

    weights: Float64
    offset: Float64
    mean: Float64
    scale: Float64
    penalties: Float64
    errors: Float64

    def predict(self, features: npt.ArrayLike) -> Float64:
        """``[n, k]`` of rows ``[n, d]``."""
        rows = np.asarray(features).astype(np.float64)
        return ((rows - self.mean) / self.scale) @ self.weights + self.offset


@dataclass(frozen=True)
class HeldOut:
    """Predictions of rows by the fits that did not see them.

    Attributes:
        predicted: ``[n, k]``.
        baseline: ``[n, k]``: the target's mean over the rows that were fitted.
    """

    predicted: Float64
    baseline: Float64


@dataclass(frozen=True)
class RidgeScore:
    """How much of a held-out target's variance is read from one layer; 0 is what its mean gives.

    Attributes:
        r2: ``1 - sum (y - predicted)² / sum (y - training mean)²`` over held-out rows.
        low: Lower end of the 95 % interval.
        high: Upper end.
        control_p95: 95th percentile of the same probe's R² with shuffled targets.
        control_mean: Its mean.
        n: Rows.
    """

    r2: float
    low: float
    high: float
    control_p95: float
    control_mean: float
    n: int


@dataclass(frozen=True)
class RidgeCurve:
    """Probes of every layer, on the same rows, folds, shuffles and resamples.

    Attributes:
        layers: Layer indices, ascending.
        scores: One a layer.
        best_control_p95: 95th percentile, over shuffles, of the largest R² of any layer.
        draws: ``[resamples, layers]`` R² over redrawn groups, for differences between curves.
        n_groups: Groups of rows.
        n_folds: Folds of groups.
        n_shuffles: Refits with shuffled targets, per layer.
    """

    layers: tuple[int, ...]
    scores: tuple[RidgeScore, ...]
    best_control_p95: float
    draws: Float64
    n_groups: int
    n_folds: int
    n_shuffles: int

    @property
    def best_layer(self) -> int:
        """The layer of the largest R²; the first of several."""
        return self.layers[self._best]

    @property
    def best(self) -> RidgeScore:
        """Its score."""
        return self.scores[self._best]

    @property
    def best_is_above_control(self) -> bool:
        """Whether the best R² is larger than that of the best layer in 95 % of shuffles."""
        return self.best.r2 > self.best_control_p95

    @property
    def _best(self) -> int:
        return int(np.argmax([score.r2 for score in self.scores]))

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON, without the draws."""
        found = asdict(self)
        del found["draws"]
        return found


def fit_ridge(features: npt.ArrayLike, targets: npt.ArrayLike) -> RidgeFit:
    """Fit targets from standardised features; each target has a penalty of its own.

    The objective is scikit-learn's ``Ridge``: ``|y - x w|² + penalty |w|²``, intercept free.

    Args:
        features: ``[n, d]``.
        targets: ``[n]`` or ``[n, k]``.

    Raises:
        BadInputError: shapes that do not fit, fewer than three rows, or values not finite.
    """
    rows, wanted = _checked(features, targets)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    scale = np.where(constant, 1.0, spread)
    left, sizes, right = np.linalg.svd((rows - mean) / scale, full_matrices=False)
    offset = wanted.mean(axis=0)
    inside = left.T @ (wanted - offset)  # [r, k]
    outside = ((wanted - offset) ** 2).sum(axis=0) - (inside**2).sum(axis=0)
    n = len(rows)
    scores: list[Float64] = []
    for penalty in PENALTIES:
        kept = sizes**2 / (sizes**2 + penalty)
        residual = outside + ((1 - kept)[:, None] ** 2 * inside**2).sum(axis=0)
        freedom = n - 1 - kept.sum()
        scores.append(n * residual / max(freedom, 1e-9) ** 2)
    table = np.stack(scores)  # [penalties, k]
    chosen = table.argmin(axis=0)
    penalties = np.asarray(PENALTIES)[chosen]
    shrunk = sizes[:, None] / (sizes[:, None] ** 2 + penalties)
    return RidgeFit(
        weights=right.T @ (shrunk * inside),
        offset=offset,
        mean=mean,
        scale=scale,
        penalties=penalties,
        errors=table[chosen, np.arange(table.shape[1])],
    )


def group_folds(groups: Sequence[str], n_folds: int = 5, seed: int = 0) -> list[Int64]:
    """Rows of each fold; the rows of a group are in one fold.

    Raises:
        BadInputError: fewer than two folds, or fewer groups than folds.
    """
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if n_folds < 2 or len(names) < n_folds:
        raise BadInputError(
            "cross-validation needs at least 2 folds and as many groups",
            got=f"{n_folds} folds, {len(names)} groups",
            next_step="collect more questions",
        )
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of_group = np.empty(len(names), np.int64)
    fold_of_group[order] = np.arange(len(names)) % n_folds
    return [np.flatnonzero(fold_of_group[group] == fold) for fold in range(n_folds)]


def held_out(
    features: npt.ArrayLike | Sequence[npt.ArrayLike],
    targets: npt.ArrayLike,
    folds: Sequence[Int64],
    *,
    read: npt.ArrayLike | None = None,
) -> HeldOut:
    """Predict each fold by a fit to the others.

    Args:
        features: ``[n, d]``; or several such arrays, of which each fold takes the one with the
            least generalised cross-validation error on its training rows.
        targets: ``[n]`` or ``[n, k]``.
        folds: Rows of each fold.
        read: ``[n, d]`` other rows to read in the held-out fold, for cross-decoding.
    """
    several = features if isinstance(features, (list, tuple)) else [features]
    choices = [np.asarray(rows).astype(np.float64) for rows in several]
    wanted = np.asarray(targets, np.float64)
    wanted = wanted[:, None] if wanted.ndim == 1 else wanted
    found = HeldOut(np.zeros(wanted.shape), np.zeros(wanted.shape))
    for fold in folds:
        training = np.ones(len(wanted), np.bool_)
        training[fold] = False
        fits = [fit_ridge(rows[training], wanted[training]) for rows in choices]
        best = min(range(len(fits)), key=lambda i: float(fits[i].errors.sum()))
        seen = choices[best] if read is None else np.asarray(read).astype(np.float64)
        found.predicted[fold] = fits[best].predict(seen[fold])
        found.baseline[fold] = wanted[training].mean(axis=0)
    return found


def r_squared(
    targets: npt.ArrayLike, found: HeldOut, weights: npt.ArrayLike | None = None
) -> Float64:
    """``[k]`` share of held-out variance that is read; below 0 where the mean is better.

    Args:
        targets: ``[n]`` or ``[n, k]``.
        found: Predictions of them.
        weights: ``[n]`` how often each row counts, or ``[draws, n]`` for ``[draws, k]``.
    """
    wanted = np.asarray(targets, np.float64)
    wanted = wanted[:, None] if wanted.ndim == 1 else wanted
    weight = np.ones(len(wanted)) if weights is None else np.asarray(weights, np.float64)
    missed = weight @ (wanted - found.predicted) ** 2
    whole = weight @ (wanted - found.baseline) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 1 - missed / whole, np.nan)


def ridge_curve(
    features_by_layer: Mapping[int, npt.ArrayLike],
    targets: npt.ArrayLike,
    groups: Sequence[str],
    *,
    n_folds: int = 5,
    n_shuffles: int = 200,
    seed: int = 0,
) -> RidgeCurve:
    """Ridge probes of every layer with intervals and a shuffled-target control.

    Intervals are percentiles of 2,000 bootstrap samples of groups, with the held-out predictions as
    they are. The control shuffles the targets over rows and repeats everything.

    Args:
        features_by_layer: ``{layer: [n, d]}``.
        targets: ``[n]``, or ``[n, k]`` whose columns' squared errors are summed (one R² for all).
        groups: What belongs together, such as question ids.
        n_folds: Folds of groups.
        n_shuffles: Refits with shuffled targets.
        seed: Of folds, shuffles and resamples.

    Raises:
        BadInputError: nothing to probe, sizes that differ, values not finite, or targets all alike.
    """
    wanted = np.asarray(targets, np.float64)
    wanted = wanted[:, None] if wanted.ndim == 1 else wanted
    if not features_by_layer or len(groups) != len(wanted) or n_shuffles < 1:
        raise BadInputError(
            "ridge probes need features by layer, one target and one group a row, and a shuffle",
            got=f"{len(features_by_layer)} layers, {len(wanted)} targets, {len(groups)} groups",
        )
    if not np.isfinite(wanted).all() or not (wanted.std(axis=0) > 0).any():
        raise BadInputError("the targets are all alike, or not finite", got=f"n = {len(wanted)}")
    rng = np.random.default_rng(seed)
    folds = group_folds(groups, n_folds, seed)
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    orders = [rng.permutation(len(wanted)) for _ in range(n_shuffles)]
    stacked = np.concatenate([wanted, *(wanted[order] for order in orders)], axis=1)
    # A generator of its own: curves of one seed and one n are redrawn alike, and can be subtracted.
    drawn = np.random.default_rng([seed, 1]).multinomial(
        len(names), [1 / len(names)] * len(names), _RESAMPLES
    )
    counts = drawn[:, group].astype(np.float64)
    layers = sorted(features_by_layer)
    found = [
        _one_layer(features_by_layer[layer], stacked, wanted.shape[1], folds, counts)
        for layer in layers
    ]
    best_control = np.max([control for _, control, _ in found], axis=0)
    return RidgeCurve(
        layers=tuple(layers),
        scores=tuple(score for score, _, _ in found),
        best_control_p95=float(np.quantile(best_control, 0.95)),
        draws=np.stack([redrawn for _, _, redrawn in found], axis=1),
        n_groups=len(names),
        n_folds=n_folds,
        n_shuffles=n_shuffles,
    )


def _one_layer(
    features: npt.ArrayLike, stacked: Float64, width: int, folds: Sequence[Int64], counts: Float64
) -> tuple[RidgeScore, Float64, Float64]:
    """The score of a layer, the R² of every shuffle, and that of every redrawing.

    The first ``width`` columns of ``stacked`` are the targets, the others shuffles of them.
    """
    found = held_out(features, stacked, folds)
    n = len(stacked)
    r2 = _joint(stacked, found, width, np.ones((1, n)))[0]
    own = HeldOut(found.predicted[:, :width], found.baseline[:, :width])
    redrawn = _joint(stacked[:, :width], own, width, counts)[:, 0]
    low, high = np.nanquantile(redrawn, [0.025, 0.975]).tolist()
    p95 = float(np.quantile(r2[1:], 0.95))
    score = RidgeScore(float(r2[0]), low, high, p95, float(r2[1:].mean()), n)
    return score, r2[1:], redrawn


def _joint(targets: Float64, found: HeldOut, width: int, weights: Float64) -> Float64:
    """``[draws, targets / width]`` R² of blocks of columns whose squared errors are summed."""
    shape = (len(weights), -1, width)
    missed = (weights @ (targets - found.predicted) ** 2).reshape(shape).sum(axis=2)
    whole = (weights @ (targets - found.baseline) ** 2).reshape(shape).sum(axis=2)
    return 1 - missed / np.where(whole > 0, whole, np.nan)


def _checked(features: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Float64, Float64]:
    rows = np.asarray(features).astype(np.float64)
    wanted = np.asarray(targets).astype(np.float64)
    wanted = wanted[:, None] if wanted.ndim == 1 else wanted
    if rows.ndim != 2 or wanted.ndim != 2 or len(rows) != len(wanted) or len(rows) < 3:
        raise BadInputError(
            "a ridge probe needs at least three rows and one target a row",
            got=f"features {list(rows.shape)}, targets {list(wanted.shape)}",
            expected="[n, d] and [n] or [n, k]",
        )
    if not (np.isfinite(rows).all() and np.isfinite(wanted).all()):
        raise BadInputError("a ridge probe needs finite features and targets")
    return rows, wanted
