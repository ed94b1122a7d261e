"""What each intervention makes of rows, against numpy in float64."""

import numpy as np
import pytest
import torch

from actscope.core.protocols import SitePlace, TokenPlaces
from actscope.core.sites import Site
from actscope.interventions import Ablate, Add, Clamp, Patch

SITE = Site("mlp_out", 3)
WIDTH, N = 6, 5
RNG = np.random.default_rng(1)
ROWS = RNG.standard_normal((N, WIDTH)) * 4
V = RNG.standard_normal(WIDTH)
U = V / np.sqrt((V**2).sum())
PLACES = TokenPlaces(SITE, ("a", "b"), (3, 2), np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1]))


def edited(intervention):
    bound = intervention.bind([SitePlace(SITE, WIDTH)], None)
    return bound.edit(torch.from_numpy(ROWS), PLACES).numpy()


def at(**more):
    return {"layer": 3, "site": "mlp_out", **more}


@pytest.mark.parametrize("length", [1e-150, 1.0, 1e150])
def test_add_ignores_the_length_of_its_direction(length):
    got = edited(Add(V * length, strength=-2.5, **at()))
    np.testing.assert_allclose(got, ROWS - 2.5 * U, rtol=0, atol=1e-12)


def test_add_takes_torch_vectors_of_any_kind():
    want = edited(Add(np.arange(1.0, 7), strength=2, **at()))
    for made in (torch.arange(1.0, 7).bfloat16(), torch.arange(1.0, 7, requires_grad=True)):
        np.testing.assert_array_equal(edited(Add(made, strength=2, **at())), want)


def test_ablate():
    assert (edited(Ablate(**at())) == 0).all()
    np.testing.assert_array_equal(edited(Ablate(mean=V, **at())), np.tile(V, (N, 1)))
    got = edited(Ablate(V, **at()))
    np.testing.assert_allclose(got, ROWS - np.outer(ROWS @ U, U), atol=1e-12)
    np.testing.assert_allclose(got @ U, 0, atol=1e-12)


def test_clamp_sets_the_projection_and_leaves_the_rest():
    got = edited(Clamp(V, value=7.5, **at()))
    np.testing.assert_allclose(got @ U, 7.5, atol=1e-12)
    rest = np.eye(WIDTH) - np.outer(U, U)
    np.testing.assert_allclose(got @ rest, ROWS @ rest, atol=1e-12)


def test_columns_alone_are_changed():
    neurons = edited(Clamp(value=2.0, neurons=[1, 4], **at()))
    want = ROWS.copy()
    want[:, [1, 4]] = 2.0
    np.testing.assert_array_equal(neurons, want)
    heads = edited(Ablate(heads=[2], d_head=2, **at()))
    want = ROWS.copy()
    want[:, 4:6] = 0
    np.testing.assert_array_equal(heads, want)
    steered = edited(Add([0.0, 3.0], strength=1.0, heads=0, d_head=2, **at()))
    want = ROWS.copy()
    want[:, 1] += 1.0
    np.testing.assert_allclose(steered, want, atol=1e-15)
    mean = edited(Ablate(mean=V, neurons=[5, 0], **at()))
    want = ROWS.copy()
    want[:, [5, 0]] = V[[5, 0]]
    np.testing.assert_array_equal(mean, want)


def test_the_axis_lies_in_the_chosen_columns():
    axis = Add([3.0, 4.0], strength=1.0, heads=1, d_head=2, **at()).axis(WIDTH)
    np.testing.assert_allclose(axis, [0, 0, 0.6, 0.8, 0, 0])


def test_patch_takes_named_positions_of_the_source():
    source = RNG.standard_normal((4, WIDTH))
    patch = Patch(source, tokens=[0, -1], source_tokens=[3, -4], **at())
    places = TokenPlaces(SITE, ("a", "b"), (3, 2), np.array([0, 0, 1, 1]), np.array([0, 2, 0, 1]))
    got = patch.edit(torch.zeros(4, WIDTH, dtype=torch.float64), places).numpy()
    np.testing.assert_array_equal(got, source[[3, 0, 3, 0]])
    same = Patch(source, tokens=[-1], **at())
    got = same.edit(torch.zeros(1, WIDTH, dtype=torch.float64), _last()).numpy()
    np.testing.assert_array_equal(got, source[[3]])  # the last for the last, whatever the lengths


def _last():
    return TokenPlaces(SITE, ("a",), (7,), np.array([0]), np.array([6]))
