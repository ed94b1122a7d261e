"""Ridge probes against scikit-learn's Ridge, GCV and cross-validation."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from actscope.analysis.ridge import (
    PENALTIES,
    fit_ridge,
    group_folds,
    held_out,
    r_squared,
    ridge_curve,
)
from actscope.core.errors import BadInputError


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, 30)) * rng.uniform(0.1, 9, 30) + 4
    signal = rows @ rng.normal(size=(30, 2)) / 20
    return rows, signal + rng.normal(size=(90, 2)) * [0.5, 3.0]


def test_the_fit_is_scikit_learns_at_the_chosen_penalty(data):
    rows, targets = data
    found = fit_ridge(rows, targets)
    standard = StandardScaler().fit_transform(rows)
    for k in range(2):
        wanted = Ridge(alpha=found.penalties[k]).fit(standard, targets[:, k])
        np.testing.assert_allclose(found.weights[:, k], wanted.coef_, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found.predict(rows)[:, k], wanted.predict(standard), rtol=1e-8)


def test_the_penalty_minimises_generalised_cross_validation(data):
    rows, targets = data
    standard = StandardScaler().fit_transform(rows)
    errors = []
    for penalty in PENALTIES:
        hat = standard @ np.linalg.solve(standard.T @ standard + penalty * np.eye(30), standard.T)
        hat += 1 / 90  # the intercept
        residual = targets[:, 1] - hat @ targets[:, 1]
        errors.append(90 * (residual @ residual) / (90 - np.trace(hat)) ** 2)
    found = fit_ridge(rows, targets[:, 1])
    assert found.penalties[0] == PENALTIES[int(np.argmin(errors))]
    assert found.errors[0] == pytest.approx(min(errors), rel=1e-8)
    loo = RidgeCV(alphas=PENALTIES).fit(standard, targets[:, 1]).alpha_
    assert abs(np.log10(loo / found.penalties[0])) <= 1  # leave-one-out differs a little


def test_held_out_r2_is_a_plain_loop_over_folds(data):
    rows, targets = data
    folds = group_folds([str(i) for i in range(90)])
    assert sorted(np.concatenate(folds).tolist()) == list(range(90))
    missed = whole = 0.0
    for fold in folds:
        train = np.setdiff1d(np.arange(90), fold)
        fit = fit_ridge(rows[train], targets[train, 0])
        missed += ((targets[fold, 0] - fit.predict(rows[fold])[:, 0]) ** 2).sum()
        whole += ((targets[fold, 0] - targets[train, 0].mean()) ** 2).sum()
    found = r_squared(targets[:, 0], held_out(rows, targets[:, 0], folds))
    assert found[0] == pytest.approx(1 - missed / whole, rel=1e-12)
    curve = ridge_curve({0: rows}, targets[:, 0], [str(i) for i in range(90)], n_shuffles=3)
    assert curve.best.r2 == pytest.approx(1 - missed / whole, rel=1e-9)
    assert curve.best.low < curve.best.r2 < curve.best.high


def test_a_signal_is_above_its_control_and_noise_is_not(data):
    rows, targets = data
    noise = np.random.default_rng(5).normal(size=rows.shape)
    names = [str(i) for i in range(90)]
    curve = ridge_curve({2: noise, 5: rows}, targets, names, n_shuffles=40)
    assert (curve.best_layer, curve.best_is_above_control) == (5, True)
    assert curve.scores[0].r2 < 0 and curve.scores[1].r2 > 0.1
    assert curve.best_control_p95 >= max(s.control_p95 for s in curve.scores) - 1e-12
    assert not ridge_curve({2: noise}, targets, names, n_shuffles=40).best_is_above_control


def test_each_fold_takes_the_layer_that_its_own_training_rows_prefer(data):
    rows, targets = data
    noise = np.random.default_rng(5).normal(size=rows.shape)
    folds = group_folds([str(i) for i in range(90)])
    several, one = held_out([noise, rows], targets, folds), held_out(rows, targets, folds)
    np.testing.assert_array_equal(several.predicted, one.predicted)


def test_groups_stay_together():
    folds = group_folds([f"g{i // 3}" for i in range(30)], 5)
    assert all(len({i // 3 for i in fold}) * 3 == len(fold) for fold in folds)


def test_bad_input_is_refused(data):
    rows, targets = data
    for call in (
        lambda: fit_ridge(rows[:2], targets[:2]),
        lambda: fit_ridge(rows, targets[:5]),
        lambda: fit_ridge(rows * np.nan, targets),
        lambda: group_folds(["a", "b"], 5),
        lambda: ridge_curve({}, targets, ["a"] * 90),
        lambda: ridge_curve({0: rows}, np.ones(90), [str(i) for i in range(90)]),
    ):
        with pytest.raises(BadInputError):
            call()
