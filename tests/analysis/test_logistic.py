"""Many logistic regressions at once are those of scikit-learn, one by one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from actscope.analysis.logistic import fit_logistic
from actscope.core.errors import BadInputError


def reference(rows, labels, solver):
    model = LogisticRegression(C=1.0, solver=solver, tol=1e-10, max_iter=10_000)
    return model.fit(rows, labels)


@pytest.mark.parametrize(("solver", "tolerance"), [("newton-cholesky", 1e-5), ("lbfgs", 2e-4)])
@pytest.mark.parametrize(("n", "d"), [(60, 5), (40, 40), (128, 160), (64, 400), (8, 1)], ids=str)
def test_every_fit_is_that_of_scikit_learn(n, d, solver, tolerance):
    rng = np.random.default_rng(n + d)
    rows = rng.normal(size=(n, d)) + rng.normal(size=d)
    labels = rng.random((4, n)) < 0.4
    labels[0] = rows[:, 0] > np.median(rows[:, 0])  # separable
    labels[1] = np.arange(n) < 2  # unbalanced
    found = fit_logistic(rows, labels)
    assert found.weights.shape == (4, d) and found.intercepts.shape == (4,)
    unseen = rng.normal(size=(9, d))
    for k in range(4):
        expected = reference(rows, labels[k], solver)
        np.testing.assert_allclose(found.weights[k], expected.coef_[0], atol=tolerance)
        assert found.intercepts[k] == pytest.approx(expected.intercept_[0], abs=tolerance)
        scores = expected.decision_function(unseen)
        np.testing.assert_allclose(found.scores(unseen)[k], scores, atol=10 * tolerance)


def test_one_label_vector_is_one_fit():
    rows = np.array([[0.0], [1.0], [2.0], [3.0]])
    found = fit_logistic(rows, [False, True, False, True])
    assert found.weights.shape == (1, 1)
    assert found.scores(rows).shape == (1, 4)


def test_rows_that_are_alike_leave_only_the_intercept():
    found = fit_logistic(np.ones((4, 3)), [True, True, True, False])
    np.testing.assert_allclose(found.weights, 0, atol=1e-12)
    assert found.intercepts[0] == pytest.approx(np.log(3), abs=1e-5)


def test_no_overflow_where_rows_are_large():
    rows = np.array([[-300.0, 1], [-290, 2], [280, 1], [310, 3]])
    found = fit_logistic(rows, [False, False, True, True])
    assert np.isfinite(found.weights).all()
    assert (found.scores(rows)[0] > 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("rows", "labels", "says"),
    [
        (np.ones((3, 2)), [True, False], "one label a row"),
        (np.ones(3), [True, False, True], "one label a row"),
        (np.full((2, 2), np.nan), [True, False], "finite features"),
        (np.eye(2), [True, True], "both classes"),
        (np.eye(2), [[True, False], [False, False]], "both classes"),
    ],
)
def test_errors(rows, labels, says):
    with pytest.raises(BadInputError, match=says):
        fit_logistic(rows, labels)
