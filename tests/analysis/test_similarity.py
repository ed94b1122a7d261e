"""Cosine matrices against scipy and plain loops in float64."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from actscope.analysis.similarity import closest_pair, cosine_matrix, mean_centred, pairs_of
from actscope.core.errors import BadInputError

MATRICES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
    elements=st.floats(-1e6, 1e6, allow_subnormal=False),
)


def brute_force(vectors):
    """The definition, pair by pair."""
    n = len(vectors)
    result = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(n):
            a, b = np.float64(vectors[i]), np.float64(vectors[j])
            norms = np.linalg.norm(a) * np.linalg.norm(b)
            if norms > 0 and np.isfinite(norms):
                result[i, j] = sum(x * y for x, y in zip(a, b, strict=True)) / norms
    return result


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_equals_scipy_and_the_definition(dtype):
    vectors = np.random.default_rng(0).normal(size=(9, 33)).astype(dtype)
    found = cosine_matrix(vectors)
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(found, 1 - cdist(wide, wide, "cosine"), atol=1e-14)
    np.testing.assert_allclose(found, brute_force(vectors), atol=1e-14)


@given(MATRICES)
def test_properties_of_every_matrix(vectors):
    found = cosine_matrix(vectors)
    zero = ~vectors.any(axis=1)
    assert np.isnan(found[zero]).all() and np.isnan(found[:, zero]).all()
    known = found[~zero][:, ~zero]
    assert np.isfinite(known).all()
    assert (np.abs(known) <= 1).all()
    assert (np.diag(known) == 1).all()
    np.testing.assert_array_equal(found, found.T)


@given(MATRICES, st.floats(1e-3, 1e3))
def test_scaling_a_vector_changes_nothing(vectors, factor):
    scaled = vectors.copy()
    scaled[0] *= factor
    np.testing.assert_allclose(cosine_matrix(scaled), cosine_matrix(vectors), atol=1e-9)


def test_columns_are_the_rows_of_the_transpose():
    matrix = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_array_equal(
        cosine_matrix(matrix, vectors_are="columns"), cosine_matrix(matrix.T)
    )


def test_what_has_no_direction_is_a_gap_and_nothing_else_is():
    vectors = np.array([[1.0, 0], [0, 0], [1, np.nan], [np.inf, 1], [0, 2]])
    found = cosine_matrix(vectors)
    assert np.isfinite(found).tolist() == [
        [i in (0, 4) and j in (0, 4) for j in range(5)] for i in range(5)
    ]
    assert found[0, 4] == 0


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e308])
def test_extreme_magnitudes_neither_overflow_nor_vanish(size):
    found = cosine_matrix(np.array([[1.0, 1.0], [1.0, 0.0]]) * size)
    np.testing.assert_allclose(found[0, 1], np.sqrt(0.5), rtol=1e-3)


def test_no_vectors_and_no_matrix():
    assert cosine_matrix(np.zeros((0, 4))).shape == (0, 0)
    assert np.isnan(cosine_matrix(np.zeros((2, 0)))).all()
    with pytest.raises(BadInputError, match=r"shape \[3\]"):
        cosine_matrix(np.zeros(3))
    with pytest.raises(BadInputError, match="rows or columns"):
        cosine_matrix(np.zeros((2, 2)), vectors_are="diagonals")


def test_centring_takes_the_mean_of_the_finite_rows():
    vectors = np.array([[1.0, 2], [3, 4], [np.nan, 0]])
    found = mean_centred(vectors)
    np.testing.assert_array_equal(found[:2], [[-1, -1], [1, 1]])
    assert np.isnan(found[2, 0])
    assert np.isnan(mean_centred([[np.nan, 1.0]])[0, 0])


def test_pairs_leave_out_the_diagonal_and_count_gaps():
    cosine = np.array([[1, 0.5, np.nan], [0.5, 1, np.nan], [np.nan] * 3])
    pairs = pairs_of(cosine)
    assert (pairs.count, pairs.missing) == (1, 2)
    assert (pairs.minimum, pairs.median, pairs.maximum) == (0.5, 0.5, 0.5)
    assert closest_pair(cosine) == (0, 1)


def test_one_vector_has_no_pairs():
    pairs = pairs_of(np.array([[1.0]]))
    assert pairs.count == 0 and np.isnan(pairs.median)
    assert closest_pair(np.array([[1.0]])) is None


@given(MATRICES)
def test_the_closest_pair_is_the_largest_cosine(vectors):
    cosine = cosine_matrix(vectors)
    pair = closest_pair(cosine)
    if pair is None:
        assert pairs_of(cosine).count == 0
    else:
        assert pair[0] < pair[1]
        assert cosine[pair] == pairs_of(cosine).maximum
