"""The contract suite on every intervention of the room, and on its forms."""

import numpy as np
import pytest

from actscope.interventions import INTERVENTIONS, Ablate, Add, Clamp, Patch
from actscope.testing.intervention_contract import WIDTH, InterventionContract

V = np.arange(1.0, WIDTH + 1)
ROWS = np.random.default_rng(0).standard_normal((4, WIDTH))
MADE = {
    "add": lambda: Add(V, layer=0, strength=2.0),
    "ablate": lambda: Ablate(V, layer=0),
    "clamp": lambda: Clamp(V, layer=0, value=1.5),
    "patch": lambda: Patch(ROWS, layer=0),
}
FORMS = {
    "add to heads": lambda: Add([1.0, -1.0], layer=0, strength=2, heads=1, d_head=2),
    "add to neurons": lambda: Add([3.0], layer=0, strength=-2, neurons=[4]),
    "zero": lambda: Ablate(layer=0),
    "zero a head": lambda: Ablate(layer=0, heads=[0, 2], d_head=2),
    "mean": lambda: Ablate(layer=0, mean=V),
    "mean of a neuron": lambda: Ablate(layer=0, mean=V, neurons=5),
    "clamp neurons": lambda: Clamp(layer=0, neurons=[0, 5], value=-1),
    "clamp in a head": lambda: Clamp([1.0, 1.0], layer=0, heads=[2], d_head=2, value=0),
    "patch a head": lambda: Patch(ROWS, layer=0, heads=[1], d_head=3),
    "patch positions": lambda: Patch(
        ROWS, layer=0, tokens=[0, 1, 2, 3], source_tokens=[3, 2, 1, 0]
    ),
}


class TestEveryIntervention(InterventionContract):
    @pytest.fixture(params=INTERVENTIONS.names())
    def intervention(self, request):
        assert request.param in MADE, "add the new intervention to MADE"
        made = MADE[request.param]()
        assert made.name == request.param
        assert type(made) is INTERVENTIONS.get(request.param)
        return made


class TestEveryForm(InterventionContract):
    @pytest.fixture(params=FORMS)
    def intervention(self, request):
        return FORMS[request.param]()
