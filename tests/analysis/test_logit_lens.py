"""The logit lens against scipy and a plain loop in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from actscope.analysis import logit_lens as module
from actscope.analysis.logit_lens import lens_of_logits, log_softmax, logit_lens
from actscope.core.errors import BadInputError

LAYERS, LENGTH, VOCAB = 3, 6, 17


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(LAYERS, LENGTH, VOCAB)).astype(np.float32) * 4
    return list(logits), rng.integers(0, VOCAB, LENGTH)


def test_every_figure_equals_a_plain_loop(example):
    logits, ids = example
    lens = lens_of_logits(logits, ids, top_k=4)
    assert lens.actual_prob.shape == (LAYERS, LENGTH - 1)
    assert lens.actual_ids.tolist() == ids[1:].tolist()
    for layer in range(LAYERS):
        for t in range(LENGTH - 1):
            p = special.softmax(logits[layer][t].astype(np.float64))
            final = special.softmax(logits[-1][t].astype(np.float64))
            order = sorted(range(VOCAB), key=lambda i: (-p[i], i))
            assert lens.top_ids[layer, t].tolist() == order[:4]
            np.testing.assert_allclose(lens.top_probs[layer, t], p[order[:4]], rtol=1e-12)
            np.testing.assert_allclose(lens.actual_prob[layer, t], p[ids[t + 1]], rtol=1e-12)
            assert lens.actual_rank[layer, t] == order.index(ids[t + 1]) + 1
            np.testing.assert_allclose(lens.entropy[layer, t], stats.entropy(p), rtol=1e-12)
            np.testing.assert_allclose(
                lens.kl_to_final[layer, t], stats.entropy(final, p), rtol=1e-10, atol=1e-15
            )


def test_the_final_layer_has_no_distance_to_itself(example):
    lens = lens_of_logits(*example)
    assert (lens.kl_to_final[-1] == 0).all()


def test_chunks_change_nothing(example, monkeypatch):
    whole = lens_of_logits(*example)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 2 * VOCAB)
    parts = lens_of_logits(*example)
    for name in ("top_ids", "top_probs", "actual_prob", "actual_rank", "entropy", "kl_to_final"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_the_unembedding_is_applied_to_the_residual_rows():
    rng = np.random.default_rng(1)
    resid = list(rng.normal(size=(2, 4, 8)))
    weights = rng.normal(size=(8, VOCAB))
    lens = logit_lens(resid, [1, 2, 3, 4], lambda rows: rows @ weights, layers=[3, 7])
    plain = lens_of_logits([r @ weights for r in resid], [1, 2, 3, 4])
    np.testing.assert_allclose(lens.actual_prob, plain.actual_prob, rtol=1e-12)
    assert lens.layers == (3, 7)


ROWS = hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-1e4, 1e4, width=32) | st.just(-np.inf))


@given(ROWS, st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_bounds_hold_for_any_logits(logits, ids):
    lens = lens_of_logits(list(logits), ids)
    possible = np.isfinite(logits[:, :-1]).any(axis=-1)
    assert np.isnan(lens.entropy[~possible]).all()
    assert (lens.entropy[possible] >= 0).all()
    assert (lens.entropy[possible] <= math.log(5) + 1e-12).all()
    assert (lens.actual_rank[possible] >= 1).all() and (lens.actual_rank <= 5).all()
    assert (lens.actual_rank[~possible] == 0).all()
    assert (lens.kl_to_final[:, possible.all(axis=0)] >= 0).all()
    np.testing.assert_allclose(lens.top_probs[possible].sum(axis=-1), 1, rtol=1e-9)
    assert (np.diff(lens.top_probs[possible], axis=-1) <= 0).all()


@given(
    hnp.arrays(np.float64, (2, 4, 6), elements=st.floats(-50, 50)),
    st.floats(-1e3, 1e3),
)
def test_a_constant_added_to_logits_changes_nothing(logits, shift):
    a, b = (lens_of_logits(list(x), [0, 1, 2, 3]) for x in (logits, logits + shift))
    np.testing.assert_allclose(a.actual_prob, b.actual_prob, atol=1e-9)
    np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-9)


def test_huge_logits_and_impossible_tokens():
    logits = np.array([[[1e38, -np.inf, 0], [0, 0, 0]]], np.float32)
    lens = lens_of_logits(list(logits), [0, 1], top_k=3)
    assert lens.actual_prob[0, 0] == 0
    assert lens.actual_rank[0, 0] == 3
    assert lens.entropy[0, 0] == 0
    assert lens.top_ids[0, 0].tolist() == [0, 2, 1]


def test_a_layer_that_forbids_what_the_last_one_expects_is_infinitely_far():
    logits = [np.array([[0.0, -np.inf], [0, 0]]), np.array([[0.0, 0.0], [0, 0]])]
    assert lens_of_logits(logits, [0, 1]).kl_to_final[0, 0] == np.inf


def test_rows_that_are_not_numbers_are_marked():
    logits = np.zeros((2, 3, 4))
    logits[0, 0, 1] = np.nan
    logits[0, 1, 1] = np.inf
    lens = lens_of_logits(list(logits), [0, 1, 2])
    assert lens.actual_rank[0].tolist() == [0, 0]
    assert np.isnan(lens.actual_prob[0]).all() and np.isnan(lens.kl_to_final[0]).all()
    assert lens.actual_rank[1].tolist() == [1, 1]


def test_equal_logits_share_the_best_rank_and_are_listed_by_id():
    lens = lens_of_logits([np.zeros((2, 8))], [5, 7], top_k=3)
    assert lens.actual_rank[0, 0] == 1
    assert lens.top_ids[0, 0].tolist() == [0, 1, 2]


def test_log_softmax_equals_scipy():
    logits = np.random.default_rng(2).normal(size=(5, 9)) * 100
    np.testing.assert_allclose(log_softmax(logits), special.log_softmax(logits, axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("logits", "ids", "options", "says"),
    [
        ([], [1, 2], {}, "at least one layer"),
        ([np.zeros((1, 4))], [1], {}, "the one after it"),
        ([np.zeros((3, 4))], [1, 2], {}, "layer 0 has 3 rows"),
        ([np.zeros((2, 4))], [1, 4], {}, "token id 4 has no logit"),
        ([np.zeros((2, 4))], [1, -1], {}, "token id -1 has no logit"),
        ([np.zeros((2, 4))], [1, 2], {"top_k": 0}, "top_k"),
        ([np.zeros((2, 4))], [1, 2], {"layers": [1, 2]}, "one name a layer"),
    ],
)
def test_bad_input(logits, ids, options, says):
    with pytest.raises(BadInputError, match=says):
        lens_of_logits(logits, ids, **options)
