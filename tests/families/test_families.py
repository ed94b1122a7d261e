"""Family files: data with the right names, each needed, and harmless when wrong."""

from __future__ import annotations

from dataclasses import fields

import pytest
from transformers import AutoConfig

from actscope import Site, wrap_model
from actscope.families import FAMILIES, Family, facts_for
from actscope.testing.tiny_models import DECODERS, tiny_model


@pytest.mark.parametrize("name", FAMILIES.names())
def test_every_hint_names_a_field_of_the_familys_configuration(name: str) -> None:
    facts = FAMILIES.get(name)
    assert isinstance(facts, Family)
    config = AutoConfig.for_model(name)
    hints = [getattr(facts, field.name) for field in fields(facts)]
    assert any(hints)
    for hint in filter(None, hints):
        assert hasattr(config, hint), hint


@pytest.mark.parametrize("name", sorted(set(FAMILIES.names()) & set(DECODERS)))
def test_without_its_file_a_family_loses_sites_and_gains_no_wrong_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"final_logit_softcapping": 20.0} if name.startswith("gemma") else {}
    hf = tiny_model(name, **extra)
    with_facts = wrap_model(hf)
    monkeypatch.setattr("actscope.backends.hf.resolve.facts_for", lambda _: Family())
    without = wrap_model(hf)
    lost = [s for s, status in without.sites().items() if not status.verified]
    absent = {"resid_mid", "pooler", "router"}  # a parallel block, a decoder, a dense model
    assert all(s.verified for site, s in with_facts.sites().items() if site.kind not in absent)
    assert Site("ln_final") in lost


def test_a_wrong_hint_makes_sites_unavailable_never_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Family(residual_scale="rms_norm_eps", logit_scale="attention_dropout")
    monkeypatch.setattr("actscope.backends.hf.resolve.facts_for", lambda _: wrong)
    model = wrap_model(tiny_model("llama"))
    assert not model.sites()[Site("attn_out", 0)].verified
    assert model.sites()[Site("ln_final")].verified  # the identity closes without any hint


def test_types_without_a_file_have_no_facts() -> None:
    assert facts_for("llama") == Family()
    assert facts_for("no-such-type") == Family()
