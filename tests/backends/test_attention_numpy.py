"""Attention and MLP sites equal the papers' formulas in numpy, where a family has a reference."""

from __future__ import annotations

import coverage_references as ref
import numpy as np
import pytest
from coverage_models import tiny_model as benchmark_model

from actscope import wrap_model
from actscope.testing.tiny_models import DECODERS, VOCAB, tiny_model

LENGTH = 13
CONFIGS = {
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 0.7, "query_pre_attn_scalar": 1}
}
KINDS = ["q", "k", "v", "pattern", "z", "mlp_pre", "mlp_post"]


@pytest.mark.parametrize("family", ref.REFERENCES)
def test_every_site_is_the_formula(family: str) -> None:
    usual = family in DECODERS
    hf = tiny_model(family, **CONFIGS.get(family, {})) if usual else benchmark_model(family)
    model = wrap_model(hf)
    ids = np.random.default_rng(1).integers(3, VOCAB, size=LENGTH).tolist()
    batch = model.capture([ids], sites=[*KINDS, "resid_pre"])
    for layer in range(model.n_layers):
        pre = batch["resid_pre", layer][0].double().numpy()
        expected = ref.REFERENCES[family](hf, layer, pre)
        for kind in KINDS:
            ours, theirs = batch[kind, layer][0].double().numpy(), expected[kind]
            assert ours.shape == theirs.shape, (kind, layer)
            size = np.abs(theirs).max()
            assert size > 0.02, "a reference of zeros proves nothing"
            assert np.abs(ours - theirs).max() < 2e-5 * max(size, 1), (family, kind, layer)


def test_the_references_tell_the_features_apart() -> None:
    """Without the cap and the window, Gemma 2's reference is another pattern: the test can fail."""
    hf = tiny_model("gemma2", **CONFIGS["gemma2"])
    model = wrap_model(hf)
    ids = np.random.default_rng(1).integers(3, VOCAB, size=LENGTH).tolist()
    batch = model.capture([ids], sites=["pattern", "resid_pre"], layers=[0])
    pre = batch["resid_pre", 0][0].double().numpy()
    ours = batch["pattern", 0][0].double().numpy()
    assert hf.config.layer_types[0] == "sliding_attention"
    for change in ({"sliding_window": 64}, {"attn_logit_softcapping": None}):
        other = tiny_model("gemma2", **{**CONFIGS["gemma2"], **change})
        assert np.abs(ref.gemma2(other, 0, pre)["pattern"] - ours).max() > 0.01


def test_queries_are_after_rotary_and_values_are_not_turned() -> None:
    """One token at two places has the same values and keys of other angles."""
    model = wrap_model(tiny_model("llama"))
    batch = model.capture([[7, 9, 7, 7]], sites=["q", "k", "v"], layers=[0])
    for kind, turned in (("q", True), ("k", True), ("v", False)):
        rows = batch[kind, 0][0]
        assert bool((rows[0] - rows[2]).abs().max() < 1e-5) is not turned
        assert np.allclose(rows[0].norm(dim=-1), rows[2].norm(dim=-1), atol=1e-5)
