"""Linear probes layer by layer: what can be read from each, and what could be read from nothing.

Source: Alain & Bengio, "Understanding intermediate layers using linear classifier probes" (2016);
the control with shuffled labels follows Hewitt & Liang, "Designing and interpreting probes with
control tasks" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.analysis.logistic import as_labels, fit_logistic
from actscope.core.errors import BadInputError

__all__ = ["ProbeCurve", "ProbeScore", "auroc", "probe_curve"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_RESAMPLES = 2000


@dataclass(frozen=True)
class ProbeScore:
    """How well held-out labels are read from one layer. An AUROC is 0..1, and 0.5 is chance.

    Attributes:
        auroc: Share of (positive, negative) pairs in the same fold that the probe orders right.
        low: Lower end of the 95 % interval.
        high: Upper end.
        control_p95: 95th percentile of the same probe's AUROC with shuffled labels.
        control_mean: Its mean.
        n: Rows.
    """

    auroc: float
    low: float
    high: float
    control_p95: float
    control_mean: float
    n: int


@dataclass(frozen=True)
class ProbeCurve:
    """Probes of every layer, on the same rows, folds, shuffles and resamples.

    Attributes:
        layers: Layer indices, ascending.
        scores: One a layer.
        best_control_p95: 95th percentile, over shuffles, of the largest AUROC of any layer: what
            the best layer must exceed, since choosing it looks at all of them.
        n_groups: Groups of rows.
        n_folds: Folds of groups.
        n_shuffles: Refits with shuffled labels, per layer.
    """

    layers: tuple[int, ...]
    scores: tuple[ProbeScore, ...]
    best_control_p95: float
    n_groups: int
    n_folds: int
    n_shuffles: int

    @property
    def best_layer(self) -> int:
        """The layer of the largest AUROC; the first of several."""
        return self.layers[self._best]

    @property
    def best(self) -> ProbeScore:
        """Its score."""
        return self.scores[self._best]

    @property
    def best_is_above_control(self) -> bool:
        """Whether the best AUROC is larger than that of the best layer in 95 % of shuffles."""
        return self.best.auroc > self.best_control_p95

    @property
    def _best(self) -> int:
        return int(np.argmax([score.auroc for score in self.scores]))

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the receiver operating characteristic: P(positive > negative) + P(tie) / 2.

    This is the Mann-Whitney statistic over its number of pairs (Hanley & McNeil, 1982).

    Args:
        scores: ``[n]``.
        labels: ``[n]`` booleans.

    Raises:
        BadInputError: sizes differ, a score is NaN, or a class has no row.
    """
    values = np.asarray(scores, np.float64)
    positive = as_labels(labels)
    if values.ndim != 1 or values.shape != positive.shape:
        raise BadInputError(
            "an AUROC needs one label a score",
            got=f"scores {list(values.shape)}, labels {list(positive.shape)}",
        )
    if np.isnan(values).any():
        raise BadInputError("an AUROC needs scores", got="NaN")
    _both_classes(positive)
    above, below = values[positive], np.sort(values[~positive])
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.mean() / (2 * len(below)))


def probe_curve(
    features_by_layer: Mapping[int, npt.ArrayLike],
    labels: npt.ArrayLike,
    groups: Sequence[str],
    *,
    n_folds: int = 5,
    n_shuffles: int = 200,
    seed: int = 0,
) -> ProbeCurve:
    """Cross-validated logistic probes of each layer, with a shuffled-label control.

    *Fit.* L2-penalised logistic regression, ``C = 1``, on features standardised by the training
    rows of each fold. All rows of a group are in one fold.

    *AUROC.* Scores of two folds come from two fits and are not on one scale, so only rows of one
    fold are compared: the AUROC is the mean of the folds' AUROCs, each weighted by its number of
    (positive, negative) pairs. A fold with one class has no pair and no weight.

    *Interval.* Percentiles of 2,000 bootstrap samples of groups, with the held-out scores as they
    are. It says how much the questions matter, not how much the fit does, and cannot reach beyond
    1 where every pair is ordered right.

    *Control.* Refits with shuffled labels. Labels are permuted within each group, and groups of
    one size exchange theirs; for a question and its twin this swaps the two, or not. Where labels
    say nothing about features and groups are exchangeable, each shuffle is as likely as the truth.

    Args:
        features_by_layer: ``[n, d]`` per layer, the same rows in each.
        labels: ``[n]`` booleans.
        groups: ``[n]`` names; rows with one name belong together, such as a question and its twin.
        n_folds: Folds.
        n_shuffles: Shuffles.
        seed: Of folds, shuffles and resamples.

    Raises:
        BadInputError: no layer, shapes that do not fit, a feature that is not finite, one class
            only (at all, or in every fold), fewer groups than folds, or labels that no shuffle can
            change.
    """
    truth = as_labels(labels)
    names, group = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    features = _checked(features_by_layer, truth, group.astype(np.int64))
    _check_counts(truth, group, n_groups=len(names), n_folds=n_folds, n_shuffles=n_shuffles)
    rng = np.random.default_rng(seed)
    folds = _deal(truth, group, n_folds, rng)
    if not any(truth[rows].any() and not truth[rows].all() for rows in folds):
        raise BadInputError("no fold holds rows of both classes", next_step="use fewer folds")
    tried = np.vstack([truth, _shuffles(truth, group, n_shuffles, rng)])
    resamples = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    weights = resamples[:, group].astype(np.float64)
    found = [_one_layer(rows, tried, folds, group, weights) for rows in features.values()]
    best_control = np.max([control for _, control in found], axis=0)
    return ProbeCurve(
        layers=tuple(features),
        scores=tuple(score for score, _ in found),
        best_control_p95=float(np.quantile(best_control, 0.95)),
        n_groups=len(names),
        n_folds=n_folds,
        n_shuffles=n_shuffles,
    )


def _one_layer(
    rows: Float64, tried: Bool, folds: Sequence[Int64], group: Int64, weights: Float64
) -> tuple[ProbeScore, Float64]:
    """The score of a layer, and the AUROC of every shuffle; ``tried[0]`` are the true labels."""
    scores = _held_out_scores(rows, tried, folds)
    found = _pooled_auroc(scores, tried, folds, group, np.ones((1, len(rows))))
    resampled = _pooled_auroc(scores[:1], tried[:1], folds, group, weights)
    low, high = np.nanquantile(resampled, [0.025, 0.975]).tolist()
    control = np.where(np.isnan(found[1:]), 0.5, found[1:])  # no pair to order is chance
    score = ProbeScore(
        auroc=float(found[0]),
        low=low,
        high=high,
        control_p95=float(np.quantile(control, 0.95)),
        control_mean=float(control.mean()),
        n=len(rows),
    )
    return score, control


def _held_out_scores(rows: Float64, tried: Bool, folds: Sequence[Int64]) -> Float64:
    """``[k, n]`` log odds of each row, from the fit that did not see its fold."""
    scores = np.zeros(tried.shape)
    for held_out in folds:
        training = np.ones(len(rows), np.bool_)
        training[held_out] = False
        standard = _standardised(rows, training)
        known = tried[:, training]
        # A shuffle may leave one class to train on: nothing is learned, and every row is a tie.
        fitted = np.flatnonzero(known.any(axis=1) & ~known.all(axis=1))
        if fitted.size:
            probes = fit_logistic(standard[training], known[fitted])
            scores[np.ix_(fitted, held_out)] = probes.scores(standard[held_out])
    return scores


def _standardised(rows: Float64, training: Bool) -> Float64:
    """All rows in units of the training rows' mean and standard deviation (of n, not n - 1)."""
    mean, spread = rows[training].mean(axis=0), rows[training].std(axis=0)
    # What is constant but for rounding carries nothing, and must not be blown up to unit variance.
    constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return (rows - mean) / np.where(constant, 1.0, spread)


def _pooled_auroc(
    scores: Float64, labels: Bool, folds: Sequence[Int64], group: Int64, weights: Float64
) -> Float64:
    """``[k]`` AUROC over the pairs within folds; NaN without any.

    A group that is drawn twice is two groups, but a row of one copy is not compared with the other
    copy: pairs of twins would then count four times, and are easier to order than others.

    Args:
        scores: ``[k, n]``, or ``[1, n]`` for the same scores with many weights.
        labels: Likewise.
        folds: Rows of each fold.
        group: ``[n]``.
        weights: ``[k, n]`` or ``[1, n]``: how often each row's group was drawn.
    """
    won, pairs = np.zeros(1), np.zeros(1)
    for rows in folds:
        s = scores[:, rows]
        orders = np.sign(s[:, :, None] - s[:, None, :]) / 2 + 0.5
        twins = group[rows][:, None] == group[rows]
        negative = ~labels[:, rows]
        drawn = weights[:, rows] * labels[:, rows]
        for may_meet, others in ((~twins, weights[:, rows] * negative), (twins, negative)):
            won = won + ((drawn[:, None, :] @ (orders * may_meet))[:, 0] * others).sum(axis=1)
            pairs = pairs + ((drawn @ may_meet) * others).sum(axis=1)
    return np.where(pairs > 0, won / np.maximum(pairs, 1e-300), np.nan)


def _deal(labels: Bool, group: Int64, n_folds: int, rng: np.random.Generator) -> list[Int64]:
    """Rows of each fold: groups are shuffled, sorted by their labels and dealt out like cards.

    So every fold gets its share of each kind of group.
    """
    order = rng.permutation(int(group.max()) + 1)
    positives = np.bincount(group, labels)
    sizes = np.bincount(group)
    order = order[np.lexsort((sizes[order], positives[order]))]
    fold_of_group = np.empty(len(order), np.int64)
    fold_of_group[order] = np.arange(len(order)) % n_folds
    return [np.flatnonzero(fold_of_group[group] == fold) for fold in range(n_folds)]


def _shuffles(labels: Bool, group: Int64, n_shuffles: int, rng: np.random.Generator) -> Bool:
    """``[n_shuffles, n]`` labels: permuted within groups, exchanged between groups of one size.

    Raises:
        BadInputError: neither changes anything.
    """
    by_group = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shuffled = np.tile(labels, (n_shuffles, 1))
    for size in np.unique(sizes):
        places = by_group[starts[sizes == size][:, None] + np.arange(size)]
        for row in shuffled:
            row[places] = rng.permuted(rng.permutation(labels[places]), axis=1)
    if (shuffled == labels).all():
        raise BadInputError(
            "the labels cannot be shuffled",
            got="no group has both classes, and no two groups of one size differ in class",
        )
    return shuffled


def _checked(
    features_by_layer: Mapping[int, npt.ArrayLike], labels: Bool, group: Int64
) -> dict[int, Float64]:
    """Features in float64, by ascending layer."""
    by_layer: Any = features_by_layer
    if not isinstance(by_layer, Mapping) or not by_layer:
        raise BadInputError(
            "probes need features by layer",
            got=type(features_by_layer).__name__,
            expected="{layer: [n, d]} with at least one layer",
        )
    if labels.ndim != 1 or labels.shape != group.shape:
        raise BadInputError(
            "probes need one label and one group a row",
            got=f"labels {list(labels.shape)}, groups {list(group.shape)}",
        )
    found: dict[int, Float64] = {}
    for layer in sorted(features_by_layer):
        rows = np.asarray(features_by_layer[layer]).astype(np.float64)
        if rows.ndim != 2 or len(rows) != len(labels):
            raise BadInputError(
                f"layer {layer} has features of another shape",
                got=list(rows.shape),
                expected=f"[{len(labels)}, d]: one row a label",
            )
        if not np.isfinite(rows).all():
            raise BadInputError(
                f"layer {layer} has features that are not finite",
                next_step="leave the layer out, or the rows that are not finite",
            )
        found[layer] = rows
    return found


def _check_counts(
    labels: Bool, group: Int64, *, n_groups: int, n_folds: int, n_shuffles: int
) -> None:
    _both_classes(labels)
    if n_folds < 2 or n_shuffles < 1:
        raise BadInputError(
            "probes need at least 2 folds and 1 shuffle",
            got=f"{n_folds} folds, {n_shuffles} shuffles",
        )
    if n_groups < n_folds:
        raise BadInputError(
            "probes need at least as many groups as folds",
            got=f"{n_groups} groups, {n_folds} folds",
            next_step="lower n_folds, or give more groups",
        )
    for positive in (True, False):
        if len(np.unique(group[labels == positive])) < 2:
            raise BadInputError(
                "probes need each class in at least two groups",
                got=f"the class {positive} in one",
            )


def _both_classes(labels: Bool) -> None:
    if labels.all() or not labels.any():
        raise BadInputError(
            "both classes are needed",
            got=f"{int(labels.sum())} of {labels.size} are positive",
            next_step="check what the labels say",
        )
