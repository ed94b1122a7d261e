"""Families: no type of today needs a file, and what a file says is tried, never believed."""

from __future__ import annotations

import pytest
import torch
from small_network import Network
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from actscope import Site, wrap_model
from actscope.families import FAMILIES, Family, facts_for
from actscope.testing.tiny_models import DECODERS, tiny_model


def test_every_file_is_of_a_type_that_exists_and_holds_constants() -> None:
    for name in FAMILIES.names():
        assert name in {n.replace("-", "_") for n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
        assert FAMILIES.get(name).constants


def test_types_without_a_file_have_no_facts() -> None:
    assert facts_for("llama") == Family()
    assert facts_for("no-such-type") == Family()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2", "gemma3_text"])
def test_constants_are_found_without_any_file(family: str, dtype: torch.dtype) -> None:
    extra = {"final_logit_softcapping": 20.0} if family.startswith("gemma") else {}
    assert family in DECODERS
    found = wrap_model(tiny_model(family, dtype, **extra)).sites()
    absent = {"pooler", "router"} | ({"resid_mid"} if family == "cohere" else set[str]())
    assert all(s.verified for site, s in found.items() if site.kind not in absent)


def network(habit: str, tail: str = "") -> Network:
    return Network(habit, tail).to(torch.bfloat16)


def told(monkeypatch: pytest.MonkeyPatch, *constants: float) -> None:
    monkeypatch.setattr("actscope.backends.hf.probe.facts_for", lambda _: Family(constants))


def test_a_constant_that_only_the_code_knows_needs_a_file_in_half_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites = [Site("attn_out", 0), Site("mlp_out", 2)]
    alone = wrap_model(network("hidden constant")).sites()
    assert not any(alone[s].verified for s in sites)
    told(monkeypatch, 0.37)
    helped = wrap_model(network("hidden constant")).sites()
    assert all(helped[s].verified and "bitwise" in helped[s].reason for s in sites)


def test_a_wrong_constant_makes_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, 0.36, 0.371, 2.0)
    found = wrap_model(network("hidden constant")).sites()
    assert not found[Site("attn_out", 0)].verified
    assert found[Site("ln_final")].verified
    plain = wrap_model(network("")).sites()  # a constant that nothing needs
    assert plain[Site("attn_out", 0)].reason.startswith("(resid_pre + attn_out) + mlp_out")


def test_a_soft_cap_that_only_the_code_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(3, 16, dtype=torch.bfloat16)
    alone = wrap_model(network("", "soft-cap"))
    assert alone.sites()[Site("ln_final")].verified
    with pytest.raises(Exception, match="no verified unembedding"):
        alone.unembed(hidden)
    told(monkeypatch, 2.5)
    helped = wrap_model(network("", "soft-cap"))
    expected = torch.tanh(helped.hf.head(helped.hf.norm(hidden)) / 2.5) * 2.5
    assert torch.equal(helped.unembed(hidden), expected)
