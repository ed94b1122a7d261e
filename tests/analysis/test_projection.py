"""Projections and directions are what plain loops in float64 give."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actscope.analysis.projection import difference_of_means, project
from actscope.core.errors import BadInputError

values = st.floats(-1e4, 1e4, width=32)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=values),
    arrays.arrays(np.float32, 4, elements=values),
)
def test_a_projection_is_the_dot_product_over_the_norm(rows, direction):
    found = project(rows, direction)
    assert found.shape == (len(rows),) and found.dtype == np.float64
    norm = math.sqrt(sum(float(x) ** 2 for x in direction)) + 1e-8
    for row, value in zip(rows, found, strict=True):
        expected = sum(float(a) * float(b) for a, b in zip(row, direction, strict=True)) / norm
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(arrays.arrays(np.float64, (3, 4), elements=values), st.floats(0.5, 100))
def test_the_length_of_the_direction_does_not_matter(rows, times):
    direction = np.array([1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(
        project(rows, direction), project(rows, times * direction), rtol=1e-6, atol=1e-4
    )


def test_an_activation_is_not_normalised_and_a_zero_direction_gives_zero():
    assert project([[3.0, 4.0]], [0.0, 2.0])[0] == pytest.approx(4.0)
    assert project([[30.0, 40.0]], [0.0, 2.0])[0] == pytest.approx(40.0)
    assert project([[3.0, 4.0]], [0.0, 0.0]).tolist() == [0.0]


def test_bfloat16_is_read_as_what_it_holds():
    rows = np.array([[1.5, -2.25]], ml_dtypes.bfloat16)
    assert project(rows, np.array([1, 0], ml_dtypes.bfloat16))[0] == pytest.approx(1.5)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=values),
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=values),
)
def test_a_difference_of_means_is_a_loop(positive, negative):
    found = difference_of_means(positive, negative)
    for column in range(3):
        expected = sum(map(float, positive[:, column])) / len(positive) - sum(
            map(float, negative[:, column])
        ) / len(negative)
        assert found[column] == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "direction", "says"),
    [
        (np.ones((2, 3)), np.ones(2), r"activations \[2, 3\], direction \[2\]"),
        (np.ones((2, 3)), np.ones((3, 1)), "as wide as"),
        (np.ones(3), np.ones(3), "must be rows"),
        ([[np.inf, 1]], [1, 1], "activations have values that are not finite"),
        ([[1, 1]], [np.nan, 1], "direction has values that are not finite"),
    ],
)
def test_projection_errors(rows, direction, says):
    with pytest.raises(BadInputError, match=says):
        project(rows, direction)


@pytest.mark.parametrize(
    ("positive", "negative", "says"),
    [
        (np.ones((0, 3)), np.ones((1, 3)), "needs positive activations"),
        (np.ones((1, 3)), np.ones((0, 3)), "needs negative activations"),
        (np.ones((1, 3)), np.ones((1, 2)), "one width"),
        (np.ones(3), np.ones((1, 3)), "positive activations must be rows"),
        (np.ones((1, 2)), [[np.nan, 0]], "negative activations have values"),
    ],
)
def test_difference_errors(positive, negative, says):
    with pytest.raises(BadInputError, match=says):
        difference_of_means(positive, negative)
