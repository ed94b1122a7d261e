"""What makes no sense is refused when it is written, or where it does not fit a site."""

import numpy as np
import pytest

from actscope.core.errors import ActscopeError, BadInputError
from actscope.core.protocols import SitePlace
from actscope.core.sites import Site
from actscope.interventions import Ablate, Add, Clamp, Patch

V = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Add([0.0, 0.0], layer=0, strength=1), "zero vector"),
        (lambda: Add([1.0, np.nan], layer=0, strength=1), "not finite"),
        (lambda: Add([np.inf, 1.0], layer=0, strength=1), "not finite"),
        (lambda: Add([[1.0, 2.0]], layer=0, strength=1), "one vector"),
        (lambda: Add([], layer=0, strength=1), "one vector"),
        (lambda: Add("north", layer=0, strength=1), "vector of numbers"),
        (lambda: Add(V, layer=0, strength=np.nan), "strength must be finite"),
        (lambda: Add(V, layer=0, strength="much"), "strength must be a number"),
        (lambda: Add(V, strength=1), "once per layer"),
        (lambda: Add(V, layer=3, site="ln_final", strength=1), "takes no layer"),
        (lambda: Add(V, layer=3, site="blocks.1.mlp_out", strength=1), "takes no layer"),
        (lambda: Add(V, layer=3, site=Site("resid_post", 2), strength=1), "takes no layer"),
        (lambda: Add(V, layer=2.5, strength=1), "whole numbers"),
        (lambda: Add(V, layer="last", strength=1), "whole numbers"),
        (lambda: Add(V, layer=[1, 1], strength=1), "names one twice"),
        (lambda: Add(V, layer=0, strength=1, tokens="everything"), "unknown span"),
        (lambda: Add(V, layer=0, strength=1, tokens=[]), "whole numbers"),
        (lambda: Add(V, layer=0, strength=1, tokens=[1, 1]), "names one twice"),
        (lambda: Add(V, layer=0, strength=1, tokens=[True]), "whole numbers"),
        (lambda: Add(V, layer=0, strength=1, heads=-1), "counted from 0"),
        (lambda: Add(V, layer=0, strength=1, heads=0, neurons=0), "not both"),
        (lambda: Ablate(V, layer=0, mean=V), "not both"),
        (lambda: Ablate(layer=0, mean=[np.inf]), "not finite"),
        (lambda: Clamp(layer=0, value=1), "nothing to clamp"),
        (lambda: Clamp(V, layer=0, value=np.inf), "must be finite"),
        (lambda: Patch(V, layer=0), "one row a token"),
        (lambda: Patch([[np.nan]], layer=0), "not finite"),
        (lambda: Patch(object(), layer=0), "prompt, a capture, a run or an array"),
        (lambda: Patch([V], layer=0, source_tokens=[0]), "source_tokens"),
        (lambda: Patch([V], layer=0, tokens=[0], source_tokens=[0, 1]), "source_tokens"),
    ],
)
def test_refused_when_written(make, says):
    with pytest.raises(BadInputError, match=says):
        make()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (Add([1.0, 2.0], layer=0, strength=1), r"direction does not fit blocks.0.resid_post"),
        (Ablate([1.0], layer=0), "direction does not fit"),
        (Ablate(layer=0, mean=[1.0]), "mean does not fit"),
        (Clamp([1.0], layer=0, value=1), "direction does not fit"),
        (Patch([[1.0, 2.0]], layer=0), "source does not fit"),
        (Ablate(layer=0, neurons=[3]), "no neuron 3"),
        (Ablate(layer=0, heads=[0]), "no heads"),
        (Ablate(layer=0, heads=[0], d_head=2), "no whole number of heads"),
        (Ablate(layer=0, heads=[3], d_head=1), "no head 3"),
        (Add(V, layer=0, strength=1, neurons=[1]), "chosen columns"),
    ],
)
def test_refused_where_it_does_not_fit(made, says):
    with pytest.raises(BadInputError, match=says) as caught:
        made.bind([SitePlace(Site("resid_post", 0), 3)], None)
    assert isinstance(caught.value, ActscopeError)


def test_heads_are_as_wide_as_the_model_says():
    bound = Ablate(layer=0, heads=[1]).bind([SitePlace(Site("resid_post", 0), 6, d_head=2)], None)
    assert bound.columns(6).tolist() == [2, 3]
    assert bound.params["d_head"] == 2
