"""Calibration against a loop over bins and scikit-learn's Brier score."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from actscope.analysis.calibration import brier_score, calibration_error, reliability
from actscope.core.errors import BadInputError


@pytest.fixture
def answers():
    rng = np.random.default_rng(1)
    sure = rng.beta(5, 2, 300)
    return sure, rng.random(300) < 0.7 * sure


def test_the_error_is_the_weighted_gap_of_a_plain_loop(answers):
    sure, right = answers
    total = 0.0
    for b in range(10):
        inside = [
            i for i, c in enumerate(sure) if b / 10 <= c < (b + 1) / 10 or (c == 1 and b == 9)
        ]
        if inside:
            total += abs(sum(sure[i] for i in inside) - sum(right[i] for i in inside))
    assert calibration_error(*answers) == pytest.approx(total / 300, abs=1e-12)
    assert total / 300 > 0.1


def test_the_brier_score_is_scikit_learns(answers):
    sure, right = answers
    assert brier_score(sure, right) == pytest.approx(brier_score_loss(right, sure), abs=1e-12)


def test_an_empty_bin_is_a_gap_and_certainty_belongs_to_the_last_bin():
    found = reliability([0.05, 1.0, 1.0], [False, True, False])
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert np.isnan(found.accuracy[1]) and found.accuracy[-1] == 0.5 and found.confidence[-1] == 1
    assert found.error == pytest.approx((0.05 + 2 * 0.5) / 3)


def test_perfect_calibration_has_no_error():
    sure = np.repeat([0.25, 0.75], 100)
    right = np.tile([True, False, False, False], 25).tolist() + [True, True, True, False] * 25
    assert calibration_error(sure, right) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("sure", "right"),
    [([70.0], [True]), ([], []), ([0.5], [True, False]), ([np.nan], [True]), ([0.5], [2])],
)
def test_percentages_and_shapes_that_do_not_fit_are_refused(sure, right):
    with pytest.raises(BadInputError):
        calibration_error(sure, right)
