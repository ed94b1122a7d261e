"""Stored numbers are the model's own: bitwise, per family, dtype and padding."""

from __future__ import annotations

import hf_references as ref
import numpy as np
import pytest
import torch

from actscope import Batch, Site, wrap_model
from actscope.backends.hf import HFModel
from actscope.testing.tiny_models import DECODERS, ENCODERS, VOCAB, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = {"unpadded": [9, 9, 9], "right": [9, 4, 1], "left": [9, 4, 1]}
_MODELS: dict[tuple[str, str], HFModel] = {}


def model_of(family: str, dtype: str) -> HFModel:
    key = (family, dtype)
    if key not in _MODELS:
        _MODELS[key] = wrap_model(tiny_model(family, DTYPES[dtype]), None)
    return _MODELS[key]


def batch_of(padding: str) -> Batch:
    rng = np.random.default_rng(7)
    ids = [rng.integers(3, VOCAB, size=n).tolist() for n in LENGTHS[padding]]
    return Batch.from_ids(ids, "left" if padding == "left" else "right")


def assert_bitwise(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == reference.dtype
        assert torch.equal(mine, reference)


cases = pytest.mark.parametrize("padding", LENGTHS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@cases
@dtypes
@pytest.mark.parametrize("family", DECODERS)
def test_residual_is_bitwise_hf_hidden_states(family: str, dtype: str, padding: str) -> None:
    model, batch = model_of(family, dtype), batch_of(padding)
    sites = ["resid_pre", "resid_post", "ln_final", "logits"]
    captured = model.capture(batch, sites=sites)
    hf = ref.hf_forward(model.hf, batch)
    last = model.n_layers - 1
    for layer in range(last):
        states = ref.rows_of(hf.hidden_states[layer + 1], batch)
        assert_bitwise(captured["resid_post", layer], states)
        assert_bitwise(captured["resid_pre", layer + 1], states)
    assert_bitwise(captured["resid_pre", 0], ref.rows_of(hf.hidden_states[0], batch))
    normed = (
        "ln_final" if family in ref.LAST_HIDDEN_STATE_IS_NORMED else f"blocks.{last}.resid_post"
    )
    assert_bitwise(captured[normed], ref.rows_of(hf.hidden_states[-1], batch))
    assert_bitwise(captured["logits"], ref.rows_of(hf.logits, batch))


@cases
@dtypes
@pytest.mark.parametrize("family", DECODERS)
def test_residual_sums_hold_for_what_is_stored(family: str, dtype: str, padding: str) -> None:
    model, batch = model_of(family, dtype), batch_of(padding)
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    kinds += [] if family in ref.PARALLEL else ["resid_mid"]
    captured = model.capture(batch, sites=kinds)
    for layer in range(model.n_layers):
        for i in range(len(batch.rows)):
            pre, attn, mlp, post = (captured[kind, layer][i] for kind in kinds[:4])
            assert attn.abs().max() > 1e-3 and mlp.abs().max() > 1e-3
            if family in ref.PARALLEL:
                orders = [(pre + attn) + mlp, (pre + mlp) + attn, (attn + mlp) + pre]
                assert any(torch.equal(total, post) for total in orders)
            else:
                mid = captured["resid_mid", layer][i]
                assert torch.equal(pre + attn, mid)
                assert torch.equal(mid + mlp, post)


@dtypes
@pytest.mark.parametrize("family", DECODERS)
def test_contributions_are_the_hand_written_ones(family: str, dtype: str) -> None:
    model, batch = model_of(family, dtype), batch_of("right")
    block = ref.BLOCKS.get(family, ref.USUAL_BLOCKS)
    parts = {
        "attn_out": ref.ATTENTION.get(family, ref.USUAL_ATTENTION),
        "mlp_out": ref.MLP.get(family, ref.USUAL_MLP),
    }
    captured = model.capture(batch, sites=list(parts))
    paths = [f"{block}.{i}.{part}" for i in range(model.n_layers) for part in parts.values()]
    seen = ref.module_outputs(model.hf, paths, batch)
    scale = ref.SCALE.get(family, 1.0)
    for layer in range(model.n_layers):
        for kind, part in parts.items():
            theirs = seen[f"{block}.{layer}.{part}"]
            theirs = theirs * scale if scale != 1.0 else theirs
            assert_bitwise(captured[kind, layer], ref.rows_of(theirs, batch))


@dtypes
@pytest.mark.parametrize("family", DECODERS)
def test_final_norm_and_unembedding(family: str, dtype: str) -> None:
    model, batch = model_of(family, dtype), batch_of("unpadded")
    captured = model.capture(batch, sites=["ln_final", "resid_post", "logits"], layers=[-1])
    path = ref.FINAL_NORM.get(family, ref.USUAL_FINAL_NORM)
    seen = ref.module_outputs(model.hf, [path], batch)
    assert_bitwise(captured["ln_final"], ref.rows_of(seen[path], batch))
    hf_logits = torch.stack(captured["logits"])
    ours = model.unembed(torch.stack(captured["resid_post", -1]))
    assert torch.equal(ours, hf_logits)


@dtypes
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_causal_or_not_is_seen_by_behaviour(family: str, dtype: str) -> None:
    assert model_of(family, dtype).causal == (family in DECODERS)


@dtypes
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_capture_leaves_the_model_as_it_was(family: str, dtype: str) -> None:
    model, batch = model_of(family, dtype), batch_of("right")
    before = {k: v.clone() for k, v in model.hf.state_dict().items()}
    first = ref.hf_forward(model.hf, batch)
    model.capture(batch, sites=["resid_post"])
    with pytest.raises(RuntimeError, match="planted"), model.open(_selection(model)):
        raise RuntimeError("planted")
    for module in model.hf.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    after = model.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    second = ref.hf_forward(model.hf, batch)
    assert torch.equal(first[0], second[0])


def _selection(model: HFModel):
    from actscope.core.protocols import Selection
    from actscope.strategies import NoneStrategy

    return Selection((Site("resid_post", 0),), NoneStrategy())


@dtypes
@pytest.mark.parametrize("padding", ["unpadded", "right"])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family: str, dtype: str, padding: str) -> None:
    model, batch = model_of(family, dtype), batch_of(padding)
    captured = model.capture(batch, sites=["resid_pre", "resid_post"])
    hf = ref.hf_forward(model.hf, batch)
    for layer in range(model.n_layers):
        assert_bitwise(
            captured["resid_post", layer], ref.rows_of(hf.hidden_states[layer + 1], batch)
        )
    if family == "bert":
        pooled = model.capture(batch, sites=["pooler"])["pooler"]
        assert torch.equal(pooled, hf.pooler_output)


@pytest.mark.parametrize("family", DECODERS)
def test_results_do_not_depend_on_padding_or_batch_mates(family: str) -> None:
    model = model_of(family, "float32")
    rng = np.random.default_rng(3)
    texts = [rng.integers(3, VOCAB, size=n).tolist() for n in (11, 6, 2)]
    sites = ["resid_post", "ln_final"]
    alone = [model.capture(Batch.from_ids([ids]), sites=sites) for ids in texts]
    for side in ("right", "left"):
        together = model.capture(Batch.from_ids(texts, side), sites=sites)
        for i, single in enumerate(alone):
            for site in together.sites:
                a, b = together[site][i], single[site][0]
                assert torch.allclose(a, b, rtol=1e-4, atol=2e-5), (family, side, site)
