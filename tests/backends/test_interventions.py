"""Interventions in forward passes: what arrives, by value, against hand-written hooks on a copy."""

from __future__ import annotations

import copy
from typing import Any

import hf_references as ref
import numpy as np
import pytest
import torch

from actscope import Ablate, Add, Batch, Clamp, Patch, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.sites import Site
from actscope.testing.tiny_models import VOCAB, tiny_model

FAMILIES = [
    "llama", "gpt2", "gemma2", "gpt_neox", "cohere", "bloom", "opt", "granite", "mixtral", "falcon",
]  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = {"unpadded": [9, 9], "right": [9, 4], "left": [9, 4]}
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
_MODELS: dict[tuple[str, str], HFModel] = {}


def model_of(family: str, dtype: str = "float32") -> HFModel:
    key = (family, dtype)
    if key not in _MODELS:
        _MODELS[key] = wrap_model(tiny_model(family, DTYPES[dtype]), None)
    return _MODELS[key]


def batch_of(padding: str) -> Batch:
    rng = np.random.default_rng(7)
    ids = [rng.integers(3, VOCAB, size=n).tolist() for n in LENGTHS[padding]]
    return Batch.from_ids(ids, "left" if padding == "left" else "right")


def direction(width: int = 32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(width)


def sites_of(family: str) -> list[str]:
    return [s for s in SITES if s != "resid_mid" or family not in ref.PARALLEL]


families = pytest.mark.parametrize("family", FAMILIES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@families
@dtypes
@pytest.mark.parametrize("padding", LENGTHS)
def test_the_site_moves_by_the_vector_on_chosen_tokens_alone(
    family: str, dtype: str, padding: str
) -> None:
    model, batch = model_of(family, dtype), batch_of(padding)
    v, eps = direction(), torch.finfo(DTYPES[dtype]).eps
    step = torch.from_numpy(5.0 * v / np.linalg.norm(v)).float()
    for site in sites_of(family):
        for layer in range(model.n_layers):
            plain = model.capture(batch, sites=site, layers=layer)[site, layer]
            add = Add(v, layer=layer, site=site, strength=5.0, tokens=[1, -1])
            with model.intervene(add) as applied:
                inside = model.capture(batch, sites=site, layers=layer)[site, layer]
            applied.check()
            for before, after in zip(plain, inside, strict=True):
                last = len(before) - 1
                moved = [i for i in range(len(before)) if i in (1, last)]
                rest = [i for i in range(len(before)) if i not in (1, last)]
                assert torch.equal(before[rest], after[rest])
                want = before[moved].float() + step
                error = (after[moved].float() - want).abs().amax(-1)
                assert (error <= 2 * eps * want.abs().amax(-1)).all(), (site, layer)


@families
@dtypes
def test_the_stream_carries_the_change_under_both_names(family: str, dtype: str) -> None:
    model, batch = model_of(family, dtype), batch_of("right")
    for site, layer in [("resid_post", 0), ("resid_pre", 1)]:
        with model.intervene(Add(direction(), layer=layer, site=site, strength=5.0)):
            seen = model.capture(batch, sites=["resid_post", "resid_pre"])
        plain = model.capture(batch, sites=["resid_post"])
        for i in range(len(batch.rows)):
            assert torch.equal(seen["resid_post", 0][i], seen["resid_pre", 1][i])
            assert not torch.equal(seen["resid_post", 0][i], plain["resid_post", 0][i])


@families
@dtypes
def test_downstream_sums_still_close(family: str, dtype: str) -> None:
    model, batch = model_of(family, dtype), batch_of("right")
    eps = torch.finfo(DTYPES[dtype]).eps
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    v = direction()
    step = torch.from_numpy(5.0 * v / np.linalg.norm(v)).float()
    for site in sites_of(family):
        with model.intervene(Add(v, layer=1, site=site, strength=5.0)):
            seen = model.capture(batch, sites=kinds)
        offsets = {"resid_mid": {1}, "resid_post": {1}, "resid_pre": {0}}.get(site, set())
        for layer in range(model.n_layers):
            for i in range(len(batch.rows)):
                pre, attn, mlp, post = (seen[k, layer][i].float() for k in kinds)
                total = pre + attn + mlp + (step if layer in offsets else 0)
                size = torch.stack([pre, attn, mlp, post]).abs().amax((0, 2))
                assert ((total - post).abs().amax(-1) <= 4 * eps * size).all(), (site, layer)


@families
def test_logits_are_those_of_a_hand_written_hook(family: str) -> None:
    model, batch = model_of(family), batch_of("left")
    v = direction()
    step = torch.from_numpy(5.0 * v / np.linalg.norm(v)).float()
    block = ref.BLOCKS.get(family, ref.USUAL_BLOCKS)
    paths = {
        "resid_post": f"{block}.1",
        "attn_out": f"{block}.1.{ref.ATTENTION.get(family, ref.USUAL_ATTENTION)}",
        "mlp_out": f"{block}.1.{ref.MLP.get(family, ref.USUAL_MLP)}",
    }
    for site, path in paths.items():
        scale = ref.SCALE.get(family, 1.0) if site != "resid_post" else 1.0
        twin = copy.deepcopy(model.hf)

        def steer(module: Any, args: Any, output: Any, scale: float = scale) -> Any:
            if isinstance(output, torch.Tensor):
                return output + step / scale
            return (output[0] + step / scale, *output[1:])

        twin.get_submodule(path).register_forward_hook(steer)
        theirs = ref.rows_of(ref.hf_forward(twin, batch).logits, batch)
        with model.intervene(Add(v, layer=1, site=site, strength=5.0)):
            ours = model.capture(batch, sites="logits")["logits"]
        plain = model.capture(batch, sites="logits")["logits"]
        for mine, reference, before in zip(ours, theirs, plain, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)
            assert (mine - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ref.PARALLEL])
def test_resid_mid_is_changed_for_the_mlp_and_for_the_stream(family: str) -> None:
    """The same vector at attn_out must give the same stream: attn_out is what is added to it."""
    model, batch = model_of(family), batch_of("right")
    seen = {}
    for site in ("resid_mid", "attn_out"):
        with model.intervene(Add(direction(), layer=1, site=site, strength=5.0)):
            seen[site] = model.capture(batch, sites=["attn_out", "resid_mid", "resid_post"])
    plain = model.capture(batch, sites="attn_out", layers=1)["attn_out", 1]
    for i in range(len(batch.rows)):
        assert torch.equal(seen["resid_mid"]["attn_out", 1][i], plain[i])
        for kind, layer in [("resid_mid", 1), ("resid_post", 1), ("resid_post", 2)]:
            a, b = (seen[site][kind, layer][i] for site in ("resid_mid", "attn_out"))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@families
@dtypes
def test_strength_0_and_a_patch_with_itself_are_bitwise_the_plain_run(
    family: str, dtype: str
) -> None:
    model, batch = model_of(family, dtype), batch_of("right")
    sites = sites_of(family)
    plain = model.capture(batch, sites=[*sites, "logits"])
    nothing = [Add(direction(), layer="all", site=s, strength=0.0) for s in sites]
    itself = [Patch(plain, layer="all", site=s) for s in sites]
    for interventions in (nothing, itself):
        with model.intervene(*interventions) as applied:
            again = model.capture(batch, sites=[*sites, "logits"])
        applied.check()
        assert {e.rows for e in applied.effects} == {13}
        assert {e.changed for e in applied.effects} == {0}
        for site in plain.sites:
            for before, after in zip(plain[site], again[site], strict=True):
                assert torch.equal(before, after), site


@families
def test_ablate_and_clamp_arrive(family: str) -> None:
    model, batch = model_of(family), batch_of("right")
    v = direction()
    u = torch.from_numpy(v / np.linalg.norm(v)).float()
    mean = model.capture(batch, sites="mlp_out", layers=1).numpy("mlp_out", 1).mean(0)
    with model.intervene(
        Ablate(layer=0, site="attn_out"),
        Ablate(v, layer=0),
        Ablate(layer=1, site="mlp_out", mean=mean),
        Clamp(v, layer=2, value=3.0),
        Clamp(layer=0, site="mlp_out", neurons=[4], value=9.0),
    ) as applied:
        seen = model.capture(batch, sites=["attn_out", "resid_post", "mlp_out"])
    applied.check()
    for i in range(len(batch.rows)):
        assert (seen["attn_out", 0][i] == 0).all()
        assert (seen["resid_post", 0][i] @ u).abs().max() < 1e-4
        torch.testing.assert_close(
            seen["mlp_out", 1][i], torch.from_numpy(mean).expand_as(seen["mlp_out", 1][i])
        )
        assert ((seen["resid_post", 2][i] @ u) - 3.0).abs().max() < 1e-3
        assert ((seen["mlp_out", 0][i][:, 4]) - 9.0).abs().max() < 1e-4
    by_site = {str(e.site): e for e in applied.effects}
    assert by_site["blocks.0.attn_out"].projection is None


@families
def test_a_patched_prompt_becomes_the_other_one(family: str) -> None:
    """All of the stream after block 1 from another prompt: from there on its run, bitwise."""
    model = model_of(family)
    rng = np.random.default_rng(3)
    ours, other = (rng.integers(3, VOCAB, size=8).tolist() for _ in range(2))
    want = model.capture([other], sites=["resid_post", "logits"])
    with model.intervene(Patch(want, layer=1)) as applied:
        got = model.capture([ours], sites=["resid_post", "logits"])
    applied.check()
    assert torch.equal(got["logits"][0], want["logits"][0])
    assert not torch.equal(got["resid_post", 0][0], want["resid_post", 0][0])
    one = Patch(want, layer=1, tokens=[-1])
    with model.intervene(one):
        partly = model.capture([ours], sites=["resid_post"], layers=1)
    plain = model.capture([ours], sites=["resid_post"], layers=1)
    assert torch.equal(partly["resid_post", 1][0][-1], want["resid_post", 1][0][-1])
    assert torch.equal(partly["resid_post", 1][0][:-1], plain["resid_post", 1][0][:-1])


def test_several_are_applied_in_order() -> None:
    model, batch = model_of("llama"), batch_of("right")
    u = torch.from_numpy(direction() / np.linalg.norm(direction())).float()
    add = Add(direction(), layer=1, strength=5.0)
    clamp = Clamp(direction(), layer=2, site="resid_pre", value=1.0)  # the same stream
    for order, want in [((clamp, add), 6.0), ((add, clamp), 1.0)]:
        with model.intervene(*order):
            seen = model.capture(batch, layers=1)["resid_post", 1]
        nested = model.capture(batch, layers=1)["resid_post", 1]
        with model.intervene(order[0]), model.intervene(order[1]):
            nested = model.capture(batch, layers=1)["resid_post", 1]
        for a, b in zip(seen, nested, strict=True):
            torch.testing.assert_close(a @ u, torch.full((len(a),), want), rtol=0, atol=1e-4)
            assert torch.equal(a, b)


def test_module_paths_heads_and_neurons() -> None:
    model, batch = model_of("llama"), batch_of("right")
    path = "model.layers.1.self_attn.v_proj"
    plain = model.capture(batch, sites=path)[path]
    with model.intervene(
        Ablate(site=path, heads=[1], d_head=8),
        Clamp(site="model.layers.0.mlp.act_fn", neurons=[7, 40], value=2.0),
    ):
        seen = model.capture(batch, sites=[path, "model.layers.0.mlp.act_fn"])
    with model.intervene(Ablate(site=path, heads=[1], d_head=8)):
        alone = model.capture(batch, sites=path)[path]
    for i in range(len(batch.rows)):
        assert (seen[path][i][:, 8:] == 0).all()
        assert torch.equal(alone[i][:, :8], plain[i][:, :8])
        assert (seen["model.layers.0.mlp.act_fn"][i][:, [7, 40]] == 2.0).all()


def test_embed_and_ln_final_are_changed_where_they_are_made() -> None:
    for family in ("llama", "gemma2", "opt"):
        model, batch = model_of(family), batch_of("right")
        plain = model.capture(batch, sites=["embed", "ln_final", "logits"])
        for site in ("embed", "ln_final"):
            with model.intervene(Add(direction(), site=site, strength=5.0)) as applied:
                seen = model.capture(batch, sites=[site, "logits"])
                unembedded = model.unembed(torch.zeros(1, 32))
            applied.check()
            assert not torch.equal(seen["logits"][0], plain["logits"][0])
            step = (seen[site][0] - plain[site][0]).norm(dim=-1)
            torch.testing.assert_close(step, torch.full_like(step, 5.0), rtol=1e-3, atol=0)
            assert torch.equal(unembedded, model.unembed(torch.zeros(1, 32)))


def test_encoders_too() -> None:
    model = wrap_model(tiny_model("bert"), None)
    batch = batch_of("right")
    for layer in range(3):
        plain = model.capture(batch, layers=layer)["resid_post", layer]
        with model.intervene(Add(direction(), layer=layer, strength=5.0, tokens=[0])) as applied:
            seen = model.capture(batch, layers=layer)["resid_post", layer]
        applied.check()
        for a, b in zip(plain, seen, strict=True):
            assert torch.equal(a[1:], b[1:])
            assert abs(float((b[0] - a[0]).norm()) - 5.0) < 1e-3


def test_a_direct_call_of_the_model_is_changed_like_a_capture() -> None:
    model, batch = model_of("gpt2"), batch_of("right")
    with model.intervene(Add(direction(), layer=1, strength=5.0, tokens="last:2")) as applied:
        captured = model.capture(batch, sites="logits")["logits"]
        with torch.no_grad():
            direct = model.hf(**ref.hf_arguments(batch), use_cache=False).logits
    assert [e.passes for e in applied.effects] == [2]
    assert [e.rows for e in applied.effects] == [8]
    for mine, theirs in zip(captured, ref.rows_of(direct, batch), strict=True):
        assert torch.equal(mine, theirs)


def test_what_was_done_is_counted_and_measured() -> None:
    model, batch = model_of("llama"), batch_of("right")
    v = direction()
    with model.intervene(
        Add(v, layer=[0, 1], strength=-4.0, tokens="last:3"), Ablate(v, layer=2)
    ) as applied:
        model.capture(batch, layers=2)
        model.capture(batch, layers=0)
    first, second, third = applied.effects
    assert [e.site for e in applied.effects] == [Site("resid_post", i) for i in range(3)]
    assert (first.passes, first.rows, first.changed) == (2, 12, 12)
    assert (second.passes, second.rows, third.passes, third.rows) == (1, 6, 1, 13)
    assert first.projection == pytest.approx(-4.0, abs=1e-5)
    assert first.distance == pytest.approx(4.0, abs=1e-5)
    plain_steered = Add(v, layer=[0, 1], strength=-4.0, tokens="last:3")
    with model.intervene(plain_steered):
        rows = torch.cat(model.capture(batch, layers=2)["resid_post", 2])
    along = float((rows.double() @ torch.from_numpy(v / np.linalg.norm(v))).mean())
    assert third.projection == pytest.approx(-along, rel=1e-4)
    assert "projection moved by -4" in str(applied)


def test_a_small_step_that_the_dtype_swallows_is_seen() -> None:
    model, batch = model_of("llama", "bfloat16"), batch_of("right")
    with model.intervene(Add(direction(), layer=1, strength=1e-6)) as applied:
        model.capture(batch, layers=1)
    (effect,) = applied.effects
    assert effect.rows == 13 and effect.changed < 13 and effect.projection < 1e-6
