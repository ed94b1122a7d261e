"""The bootstrap against the textbook interval of a mean."""

import numpy as np
import pytest

from actscope.analysis.resampling import Estimate, bootstrap
from actscope.core.errors import BadInputError


def test_a_means_interval_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(lambda rows: float(values[rows].mean()), 400)
    half = 1.96 * values.std() / 20
    assert found.value == values.mean() and found.n == 400
    assert found.low == pytest.approx(found.value - half, abs=0.05)
    assert found.high == pytest.approx(found.value + half, abs=0.05)
    assert found.excludes_zero
    assert str(Estimate(-0.0001, -1.5, 2.25, 9)) == "0.000 (-1.500 to 2.250)"


def test_draws_without_a_figure_are_left_out_and_too_many_are_refused():
    sides = np.arange(20) < 10
    found = bootstrap(lambda r: float("nan") if sides[r].sum() < 6 else 1.0, 20)
    assert (found.low, found.high) == (1.0, 1.0)
    with pytest.raises(BadInputError, match="redrawn"):
        bootstrap(lambda rows: float("nan"), 5)
    with pytest.raises(BadInputError, match="needs examples"):
        bootstrap(lambda rows: 0.0, 0)
