"""What every intervention promises, as a test suite for those of this package and of others.

class TestMyIntervention(InterventionContract):
    @pytest.fixture
    def intervention(self):
        return MyIntervention(layer=0)  # at a site of width 6
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from actscope.core.errors import BadInputError
from actscope.core.protocols import Intervention, SitePlace, TokenPlaces
from actscope.core.sites import Site
from actscope.core.text import Span

__all__ = ["WIDTH", "InterventionContract"]

WIDTH = 6
SITE = Site("resid_post", 0)
TOKENS = 4


def _rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype) * 3


def _places(order: Any = None) -> TokenPlaces:
    order = np.arange(TOKENS) if order is None else np.asarray(order)
    return TokenPlaces(SITE, ("a",), (TOKENS,), np.zeros(len(order), np.int64), order)


class InterventionContract:
    """Subclass it and give it an ``intervention`` fixture. It needs a CPU only.

    The fixture acts at layer 0 of ``resid_post``, width ``WIDTH``, on a prompt of four tokens.
    """

    @pytest.fixture
    def intervention(self) -> Intervention:
        """The intervention; override this."""
        raise NotImplementedError("an intervention's test overrides the fixture `intervention`")

    @pytest.fixture
    def bound(self, intervention: Intervention) -> Intervention:
        """Ready to run."""
        return intervention.bind([SitePlace(SITE, WIDTH)], None)

    def test_it_is_an_intervention(self, intervention: Intervention) -> None:
        assert isinstance(intervention, Intervention)
        assert isinstance(intervention.name, str) and intervention.name.isidentifier()
        assert isinstance(intervention.chosen, (Span, tuple))
        assert len(intervention.where) == 2

    def test_parameters_are_json_and_do_not_change(self, intervention: Intervention) -> None:
        first = json.dumps(dict(intervention.params), allow_nan=False)
        assert json.dumps(dict(intervention.params), allow_nan=False) == first

    def test_its_words_are_short(self, intervention: Intervention) -> None:
        assert len(repr(intervention)) < 200

    def test_its_axis_is_a_unit_vector_of_the_site(self, bound: Intervention) -> None:
        axis = bound.axis(WIDTH)
        if axis is not None:
            assert axis.shape == (WIDTH,)
            assert np.linalg.norm(axis) == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rows_keep_their_shape_and_dtype(self, bound: Intervention, dtype: torch.dtype) -> None:
        changed = bound.edit(_rows(dtype), _places())
        assert changed.shape == (TOKENS, WIDTH) and changed.dtype == dtype
        assert bool(changed.isfinite().all())

    def test_what_it_is_given_is_left_alone(self, bound: Intervention) -> None:
        rows = _rows()
        before = rows.clone()
        bound.edit(rows, _places()).zero_()
        assert torch.equal(rows, before)
        assert torch.equal(bound.edit(rows, _places()), bound.edit(rows, _places()))

    def test_rows_do_not_mix(self, bound: Intervention) -> None:
        rows = _rows()
        whole = bound.edit(rows, _places())
        for token in range(TOKENS):
            alone = bound.edit(rows[token : token + 1], _places([token]))
            torch.testing.assert_close(alone[0], whole[token], rtol=1e-6, atol=1e-6)

    def test_gradients_pass(self, bound: Intervention) -> None:
        rows = _rows(torch.float64).requires_grad_()
        changed = bound.edit(rows, _places())
        if changed.requires_grad:  # what replaces everything has no gradient
            (gradient,) = torch.autograd.grad(changed.sum(), rows)
            assert bool(gradient.isfinite().all())

    def test_a_site_of_another_width_is_refused_or_changed_whole(
        self, intervention: Intervention
    ) -> None:
        place = SitePlace(SITE, WIDTH + 1)
        try:
            intervention.bind([place], None)
        except BadInputError:
            return
        rows = torch.zeros(TOKENS, WIDTH + 1)
        assert intervention.edit(rows, _places()).shape == rows.shape
