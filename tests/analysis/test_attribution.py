"""Direct logit attribution: numpy against the definition, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.analysis.attribution import FinalNorm, Readout, direct_logit_attribution
from actscope.core.errors import BadInputError

D, EPS = 12, 1e-5


def pieces(seed: int, centred: bool, n: int = 5):
    rng = np.random.default_rng(seed)
    parts = {f"part.{i}": rng.standard_normal(D) * 3 + 1 for i in range(n)}
    resid = sum(parts.values())
    gain, bias = rng.standard_normal(D), rng.standard_normal(D)
    x = resid - resid.mean() if centred else resid
    scale = 1 / np.sqrt((x**2).mean() + EPS)
    normed = x * scale * gain + bias
    weights, constant = rng.standard_normal(D), float(rng.standard_normal())
    value = float(normed @ weights + constant)
    norm = FinalNorm(gain, bias, centred)
    return parts, resid, normed, norm, Readout(weights, constant, value, 1e-9), scale


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_the_parts_sum_to_the_number(seed: int, centred: bool) -> None:
    parts, resid, normed, norm, readout, scale = pieces(seed, centred)
    found = direct_logit_attribution(parts, resid, normed, norm, readout)
    assert found.scale == pytest.approx(scale, rel=1e-12)
    total = found.contributions.sum() + found.rest + found.bias
    assert total == pytest.approx(readout.value, abs=1e-10)
    assert found.rest == pytest.approx(0, abs=1e-10)
    assert found.error == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("centred", [True, False])
def test_a_contribution_is_what_the_number_loses_without_the_part(centred: bool) -> None:
    """Take a part out of the stream and put the rest through the norm at the same scale."""
    parts, resid, normed, norm, readout, scale = pieces(1, centred)
    found = direct_logit_attribution(parts, resid, normed, norm, readout)
    for name, part in parts.items():
        without = resid - part
        x = without - without.mean() if centred else without
        value = (x * scale * norm.gain + norm.bias) @ readout.weights + readout.bias
        assert found[name] == pytest.approx(readout.value - value, rel=1e-9)
    assert next(n for n, _ in found.ranked()) == max(parts, key=lambda n: abs(found[n]))
    assert found.bias == pytest.approx(norm.bias @ readout.weights + readout.bias)


def test_what_is_in_the_stream_and_in_no_part_is_the_rest() -> None:
    parts, resid, normed, norm, readout, _ = pieces(2, True)
    whole = direct_logit_attribution(parts, resid, normed, norm, readout)
    left_out = parts.pop("part.3")
    found = direct_logit_attribution(parts, resid, normed, norm, readout)
    assert found.rest == pytest.approx(whole["part.3"]) and abs(found.rest) > 1e-3
    assert found.value == whole.value and left_out.shape == (D,)
    assert "rest" in str(found) and "part.0" in str(found)
    assert len(repr(found)) < 80
    empty = direct_logit_attribution({}, resid, normed, norm, readout)
    assert empty.rest + empty.bias == pytest.approx(readout.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: {**p, "resid": p["resid"][:-1]}, "as wide as the stream"),
        (lambda p: {**p, "resid": np.zeros((2, D))}, "as wide as the stream"),
        (lambda p: {**p, "resid": np.zeros(D)}, "not linear"),
        (lambda p: {**p, "parts": {"a": np.ones(3)}}, "a must be one vector"),
        (lambda p: {**p, "parts": {"a": np.full(D, np.nan)}}, "a has values that are not finite"),
        (lambda p: {**p, "normed": np.tanh(p["normed"])}, "not linear"),
        (lambda p: {**p, "norm": replace(p["norm"], centred=False)}, "not linear"),
        (
            lambda p: {**p, "readout": replace(p["readout"], value=p["readout"].value + 1)},
            "do not sum",
        ),
        (lambda p: {**p, "readout": replace(p["readout"], value=float("nan"))}, "do not sum"),
    ],
)
def test_refused(change, says: str) -> None:
    parts, resid, normed, norm, readout, _ = pieces(3, True)
    given = {"parts": parts, "resid": resid, "normed": normed, "norm": norm, "readout": readout}
    direct_logit_attribution(**given)
    with pytest.raises(BadInputError, match=says):
        direct_logit_attribution(**change(given))
