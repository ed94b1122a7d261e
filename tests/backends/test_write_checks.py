"""The check before a site is written: it passes where it should, and finds planted mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from actscope import wrap_model
from actscope.backends.hf.write_checks import check_write
from actscope.backends.hf.writing import WritePoint
from actscope.core.errors import SiteUnavailableError
from actscope.core.sites import Site
from actscope.testing.tiny_models import DECODERS, ENCODERS, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_every_verified_site_can_be_changed(family: str, dtype: str) -> None:
    """In all families, but for the model's answer and what exists only while attention runs."""
    model = wrap_model(tiny_model(family, DTYPES[dtype]), None)
    verified = [site for site, status in model.sites().items() if status.verified]
    assert len(verified) >= 2 * model.n_layers
    for site in verified:
        if site.kind in ("logits", "pooler"):
            with pytest.raises(SiteUnavailableError, match="nothing in the model reads it"):
                model.interventions.checked_point(site)
        elif site.kind in ("q", "k", "v", "pattern"):
            with pytest.raises(SiteUnavailableError, match="read where attention runs"):
                model.interventions.checked_point(site)
        elif site.kind == "router":  # transformers' routers return their choice beside the logits
            with pytest.raises(SiteUnavailableError, match="answer does not depend on it"):
                model.interventions.checked_point(site)
        else:
            model.interventions.checked_point(site)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.hf.modules())


def without_carry(model: Any, point: WritePoint) -> WritePoint:
    return replace(point, carry="")


def unscaled(model: Any, point: WritePoint) -> WritePoint:
    return replace(point, scale=1.0)


def at_the_reader(model: Any, point: WritePoint) -> WritePoint:
    """What enters the next block, instead of what leaves this one."""
    return WritePoint("model.layers.2", "input")


def at(path: str) -> Any:
    return lambda model, point: WritePoint(path, "output")


@pytest.mark.parametrize(
    ("family", "site", "wrong", "says"),
    [
        ("llama", "blocks.1.resid_mid", without_carry, "does not close"),
        ("opt", "blocks.1.resid_mid", without_carry, "does not close"),
        ("granite", "blocks.1.attn_out", unscaled, "another vector"),
        ("llama", "blocks.1.resid_post", at_the_reader, "did not change"),
        ("llama", "blocks.1.resid_post", at("model.layers.0"), "other tokens|another vector"),
        ("gemma2", "blocks.1.attn_out", at("model.layers.1.self_attn"), "another vector"),
        ("gemma2", "blocks.1.mlp_out", at("model.layers.1.mlp"), "another vector"),
        ("llama", "blocks.1.attn_out", at("model.layers.1.mlp"), "did not change"),
        ("llama", "blocks.1.mlp_post", at("model.layers.1.mlp.act_fn"), "another vector"),
        ("gpt_neox", "blocks.0.attn_out", at("gpt_neox.layers.0"), "did not change"),
    ],
)
def test_a_wrong_place_is_found(family: str, site: str, wrong: Any, says: str) -> None:
    model = wrap_model(tiny_model(family), None)
    parsed = Site.parse(site)
    right = model.interventions.point(parsed)
    check_write(model, parsed, right)
    with pytest.raises(SiteUnavailableError, match=says):
        check_write(model, parsed, wrong(model, right))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.hf.modules())
