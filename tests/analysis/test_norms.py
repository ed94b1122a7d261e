"""Norms against numpy's own in float64."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actscope.analysis.norms import norms_by_layer, row_norms, summarise_norms
from actscope.core.errors import BadInputError

NUMBERS = hnp.arrays(
    np.float64,
    st.integers(0, 30),
    elements=st.floats(-1e9, 1e9) | st.sampled_from([np.nan, np.inf]),
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_row_norms_are_summed_in_float64(dtype):
    rows = (np.random.default_rng(0).normal(size=(20, 50)) * 300).astype(dtype)
    expected = np.linalg.norm(rows.astype(np.float64), axis=1)
    np.testing.assert_allclose(row_norms(rows), expected, rtol=1e-14)


def test_float16_rows_whose_squares_overflow_float16():
    assert row_norms(np.full((1, 4), 60000, np.float16))[0] == 2 * 60000


def test_rows_that_are_not_finite_have_no_norm():
    rows = np.array([[3.0, 4], [np.nan, 1], [np.inf, 1], [-np.inf, np.nan], [0, 0]])
    np.testing.assert_array_equal(row_norms(rows), [5, np.nan, np.nan, np.nan, 0])


@given(NUMBERS)
def test_summary_is_of_the_finite_ones_alone(values):
    summary = summarise_norms(values)
    finite = values[np.isfinite(values)]
    assert summary.count == len(finite)
    assert summary.count + summary.non_finite == len(values)
    if len(finite):
        expected = np.percentile(finite, [0, 25, 50, 75, 100])
        found = [summary.minimum, summary.q25, summary.median, summary.q75, summary.maximum]
        np.testing.assert_allclose(found, expected)
        np.testing.assert_allclose(summary.mean, math.fsum(finite) / len(finite), atol=1e-6)
    else:
        assert math.isnan(summary.median)
    json.dumps(summary.to_json(), allow_nan=False)


def test_the_first_token_is_kept_apart():
    rng = np.random.default_rng(0)
    is_first = np.array([True, False, False, True, False])
    rows = {layer: rng.normal(size=(5, 8)) for layer in (2, 0)}
    for values in rows.values():
        values[is_first] *= 100
    found = norms_by_layer({k: row_norms(v) for k, v in rows.items()}, is_first)
    assert found.layers == (0, 2)
    for place, layer in enumerate(found.layers):
        norms = np.linalg.norm(rows[layer], axis=1)
        assert found.first[place].median == pytest.approx(np.median(norms[is_first]))
        assert found.later[place].median == pytest.approx(np.median(norms[~is_first]))
    assert found.first_dominates
    assert found.growth == pytest.approx(found.later[1].median / found.later[0].median)


def test_equal_norms_do_not_dominate_and_bad_rows_are_reported():
    rows = np.ones((4, 3), np.float32)
    rows[3, 1] = np.nan
    found = norms_by_layer({0: row_norms(rows)}, np.array([True, False, False, False]))
    assert not found.first_dominates
    assert found.non_finite == 1
    assert found.later[0].count == 2


def test_bad_input():
    with pytest.raises(BadInputError, match="at least one layer"):
        norms_by_layer({}, np.zeros(1, bool))
    with pytest.raises(BadInputError, match="layer 3 has 2 norms"):
        norms_by_layer({3: np.ones(2)}, np.zeros(5, bool))
    with pytest.raises(BadInputError, match=r"shape \[2\]"):
        row_norms(np.ones(2))
