"""A pass that stops early has left what the whole pass computes, at every depth."""

import numpy as np
import pytest
import torch

from actscope import wrap_model
from actscope.core.activations import Batch
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.strategies import as_strategy
from actscope.testing.tiny_models import tiny_model

NORMS = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gemma2": "model.norm",
    "opt": "model.decoder.final_layer_norm",
}
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [18], [19, 20, 21, 22, 23]]
DEPTH = 3


@pytest.fixture(scope="module", params=NORMS)
def family(request):
    """The model, the hidden states Hugging Face gives for each row alone, and its last norm."""
    hf = tiny_model(request.param)
    with torch.no_grad():
        outputs = [hf(torch.tensor([ids]), output_hidden_states=True) for ids in ROWS]
    states = [[state[0] for state in output.hidden_states] for output in outputs]
    return wrap_model(hf, None), states, hf.get_submodule(NORMS[request.param])


def expected(states, norm, site):
    """Of one row; the last hidden state of Hugging Face is behind the final norm."""
    depth = site.layer + (site.kind == "resid_post")
    return states[depth].numpy(), norm if depth == DEPTH else None


def compare(batch, site, all_states, norm):
    for i, states in enumerate(all_states):
        got = batch.arrays[site][batch.offsets[i] : batch.offsets[i + 1]]
        want, behind = expected(states, norm, site)
        if behind is not None:
            with torch.no_grad():
                got = behind(torch.from_numpy(np.array(got))).numpy()
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("layer", range(DEPTH))
def test_values_at_every_depth_are_hugging_faces_hidden_states(family, kind, layer):
    model, states, norm = family
    site = Site(kind, layer)
    deepest, ran = layer - (kind == "resid_pre"), []
    blocks = [model.taps(Selection((Site("resid_post", i),), as_strategy(None))) for i in range(3)]
    paths = [next(iter(taps.values())).path for taps in blocks]
    hooks = [
        model.hf.get_submodule(path).register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, path in enumerate(paths)
    ]
    selection = Selection((site,), as_strategy(None))
    with model.open(selection) as session:
        whole = session.run(Batch.from_ids(ROWS))  # the first finds out what padding does
        compare(whole, site, states, norm)
        ran.clear()
        whole = session.run(Batch.from_ids(ROWS))
        assert max(ran, default=-1) == deepest  # it did stop
        parts = ((ROWS[2:], states[2:]), (ROWS[:2], states[:2]))  # the second fits the buffers
        begun = [session.begin(Batch.from_ids(rows)) for rows, _ in parts]
        for started, (_, wanted) in zip(begun, parts, strict=True):
            compare(started(), site, wanted, norm)
    for hook in hooks:
        hook.remove()
    compare(whole, site, states, norm)


@pytest.mark.parametrize("deepest", range(DEPTH))
def test_every_site_of_a_pass_that_stops_and_of_one_that_follows(family, deepest):
    """What an earlier pass has left in the buffers is not what a later one returns."""
    model, states, norm = family
    sites = tuple(Site(kind, i) for i in range(deepest + 1) for kind in ("resid_post", "resid_pre"))
    order = [3, 0, 4, 1, 2]
    with model.open(Selection(sites, as_strategy(None))) as session:
        for places in (order, order[:2], order[::-1], [0]):
            batch = session.begin(Batch.from_ids([ROWS[i] for i in places]))()
            assert batch.sites == sites
            for site in sites:
                compare(batch, site, [states[i] for i in places], norm)


@pytest.mark.parametrize("layer", range(DEPTH))
def test_pooled_on_the_way(family, layer):
    model, states, _ = family
    site = Site("resid_pre", layer)
    with model.open(Selection((site,), as_strategy("mean"))) as session:
        got = session.run(Batch.from_ids(ROWS)).arrays[site]
    want = np.stack([row[layer].double().mean(0).numpy() for row in states])
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)
