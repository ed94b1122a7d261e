"""Every strategy against its formula in float64, written as plainly as possible."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.strategies import STRATEGIES, as_strategy


def last(h):
    return h[-1]


def first(h):
    return h[0]


def mean(h):
    return sum(h) / len(h)


def maximum(h):
    return [max(column) for column in h.T]


def exp_weighted(f):
    def pool(h):
        length = len(h)
        total, weights = np.zeros(h.shape[1]), 0.0
        for j in range(length):  # j = 0 is the last token
            weight = 2.0 ** (-j / (f * length))
            total += weight * h[length - 1 - j]
            weights += weight
        return total / weights

    return pool


def median(h):
    return np.median(h, axis=0)


REFERENCES = {
    "last": last,
    "first": first,
    "mean": mean,
    "max": maximum,
    "cls": first,
    "pooler": first,
    "exp_977": exp_weighted(0.023),
    "exp_933": exp_weighted(0.067),
    "exp_841": exp_weighted(0.159),
    "exp_weighted:0.5": exp_weighted(0.5),
    "exp_weighted:40": exp_weighted(40.0),
}


@st.composite
def batches(draw):
    """hidden [n, pos, d] in float64, and a mask with at least one token a row."""
    n, pos, d = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    mask = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=pos, max_size=pos), min_size=n, max_size=n))
    )
    rng = np.random.default_rng(seed)
    mask[np.arange(n), rng.integers(0, pos, n)] = True
    hidden = rng.standard_normal((n, pos, d)) * 10.0 ** rng.integers(-3, 4)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    return torch.from_numpy(hidden).to(dtype), torch.from_numpy(mask)


@pytest.mark.parametrize("name", [*REFERENCES, median])
@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_against_the_formula(name, batch):
    hidden, mask = batch
    reference = REFERENCES[name] if isinstance(name, str) else name
    exact = np.stack(
        [reference(h[m]) for h, m in zip(hidden.double().numpy(), mask.numpy(), strict=True)]
    )
    dirty = hidden.masked_fill(~mask.unsqueeze(-1), float("nan"))
    got = as_strategy(name).pool(dirty, mask).numpy()
    assert got.dtype == np.float32
    scale = np.abs(hidden.double().numpy()).max()
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize("name", ["last", "first", "max", "cls", "pooler"])
@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_selections_are_bitwise(name, batch):
    hidden, mask = batch
    exact = [
        REFERENCES[name](h[m]) for h, m in zip(hidden.double().numpy(), mask.numpy(), strict=True)
    ]
    np.testing.assert_array_equal(as_strategy(name).pool(hidden, mask).numpy(), np.stack(exact))


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), pad=st.integers(0, 5))
def test_the_padding_side_makes_no_difference(name, batch, pad):
    hidden, mask = batch
    junk, off = (
        torch.full((len(mask), pad, hidden.shape[2]), math.nan, dtype=hidden.dtype),
        torch.zeros(len(mask), pad, dtype=torch.bool),
    )
    strategy = as_strategy(name)
    left = strategy.pool(torch.cat([junk, hidden], 1), torch.cat([off, mask], 1))
    right = strategy.pool(torch.cat([hidden, junk], 1), torch.cat([mask, off], 1))
    scale = float(hidden.float().abs().max())
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("name", REFERENCES)
def test_one_token_is_itself(name):
    hidden = torch.randn(3, 1, 4)
    got = as_strategy(name).pool(hidden, torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(got, hidden[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_row_of_no_token_is_never_a_number(name):
    mask = torch.tensor([[False, False, False], [True, True, False]])
    got = as_strategy(name).pool(torch.randn(2, 3, 4), mask)
    assert not got[0].isfinite().any()
    assert got[1].isfinite().all()


def test_a_kept_nan_is_not_hidden():
    hidden = torch.zeros(1, 3, 2)
    hidden[0, 1, 0] = math.nan
    mask = torch.ones(1, 3, dtype=torch.bool)
    for name in ("mean", "max", "exp_933"):
        assert torch.equal(
            as_strategy(name).pool(hidden, mask).isnan()[0], torch.tensor([True, False])
        )


def test_exp_weights_halve_every_f_l_tokens():
    length, f = 100, 0.05
    weights = as_strategy(f"exp_weighted:{f}").pool(
        torch.eye(length).unsqueeze(0), torch.ones(1, length, dtype=torch.bool)
    )[0]
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert weights.argmax() == length - 1
    for j in (5, 10, 50):
        assert (weights[-1 - j] / weights[-1]).item() == pytest.approx(2.0 ** (-j / 5), rel=1e-5)


def test_a_long_bfloat16_document_is_summed_in_float32():
    hidden = torch.full((1, 4096, 1), 1.0078125, dtype=torch.bfloat16)
    mask = torch.ones(1, 4096, dtype=torch.bool)
    for name in ("mean", "exp_933"):
        assert as_strategy(name).pool(hidden, mask).item() == pytest.approx(1.0078125, rel=1e-6)


def test_every_strategy_has_a_reference():
    assert {n.partition(":")[0] for n in REFERENCES} >= set(STRATEGIES.names()) - {"custom", "none"}
