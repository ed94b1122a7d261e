"""Other libraries' names, both ways, and the off-by-ones against Hugging Face's own numbers."""

from __future__ import annotations

import hf_references as ref
import numpy as np
import pytest
import torch

from actscope import Batch, ShardStorage, Site, wrap_model
from actscope.core import aliases
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.sites import SITE_KINDS
from actscope.testing.tiny_models import tiny_model


def every_site() -> list[Site]:
    return [Site(kind.name, 2 if kind.per_layer else None) for kind in SITE_KINDS.values()]


def test_every_kind_has_a_row_and_every_name_comes_back() -> None:
    assert set(aliases.ALIASES) == set(SITE_KINDS)
    named = 0
    for site in every_site():
        lens, terp = aliases.to_transformer_lens(site), aliases.to_nnterp(site)
        if lens is not None:
            named += 1
            assert aliases.from_transformer_lens(lens) == str(site)
            assert Site.parse(lens) == site
        if terp is not None:
            assert aliases.from_nnterp(terp) == str(site)
    assert named == 14


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("blocks.3.hook_resid_post", "blocks.3.resid_post"),
        ("blocks.0.attn.hook_rot_q", "blocks.0.q"),
        ("blocks.11.attn.hook_pattern", "blocks.11.pattern"),
        ("blocks.1.mlp.hook_post", "blocks.1.mlp_post"),
        ("hook_embed", "embed"),
    ],
)
def test_hook_names(name: str, key: str) -> None:
    assert aliases.from_transformer_lens(name) == key


def test_names_that_mean_something_else_are_refused() -> None:
    with pytest.raises(BadInputError, match="before rotary"):
        aliases.from_transformer_lens("blocks.0.attn.hook_q")
    with pytest.raises(BadInputError, match="before rotary"):
        Site.parse("blocks.0.attn.hook_k")
    with pytest.raises(UnknownNameError, match="did you mean"):
        aliases.from_transformer_lens("blocks.0.attn.hook_patern")
    with pytest.raises(UnknownNameError):
        aliases.from_nnterp("layers_putout[3]")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bert"])
def test_hidden_states_by_value(family: str) -> None:
    """What ``from_hidden_state`` names is bitwise that entry of HF's ``hidden_states``."""
    hf = tiny_model(family)
    model = wrap_model(hf)
    batch = Batch.from_ids([[5, 6, 7, 8]])
    theirs = ref.hf_forward(hf, batch).hidden_states
    normed = family != "bert"
    for index in [*range(len(theirs)), -1, -2]:
        key = aliases.from_hidden_state(index, model.n_layers, last_is_normed=normed)
        site = Site.parse(key)
        assert torch.equal(model.capture(batch, sites=key)[site][0], theirs[index][0])
        back = aliases.to_hidden_state(site, model.n_layers, last_is_normed=normed)
        assert back == index % len(theirs)
    for layer in range(model.n_layers - 1):
        site = Site("resid_post", layer)
        assert aliases.to_hidden_state(site, model.n_layers, last_is_normed=normed) == layer + 1


def test_the_ends_of_hidden_states() -> None:
    last = Site("resid_post", 3)
    with pytest.raises(BadInputError, match="after the final norm"):
        aliases.to_hidden_state(last, 4, last_is_normed=True)
    assert aliases.to_hidden_state(last, 4, last_is_normed=False) == 4
    for wrong in (Site("attn_out", 1), Site("resid_pre", 4), Site("embed")):
        with pytest.raises(BadInputError):
            aliases.to_hidden_state(wrong, 4, last_is_normed=True)
    for index in (5, -6):
        with pytest.raises(BadInputError, match="0 to 4"):
            aliases.from_hidden_state(index, 4, last_is_normed=True)


def test_vllm_layer_ids_name_what_enters_a_layer() -> None:
    assert aliases.from_vllm_layer(0, 4) == "blocks.0.resid_pre"
    assert aliases.from_vllm_layer(2, 4) == "blocks.2.resid_pre"
    assert aliases.from_vllm_layer(4, 4) == "blocks.3.resid_post"
    assert aliases.to_vllm_layer(Site("resid_post", 1), 4) == 2
    assert aliases.to_vllm_layer(Site("resid_pre", 1), 4) == 1
    for wrong in (Site("ln_final"), Site("resid_post", 4), Site("mlp_out", 1)):
        with pytest.raises(BadInputError):
            aliases.to_vllm_layer(wrong, 4)
    with pytest.raises(BadInputError, match="0 to 4"):
        aliases.from_vllm_layer(5, 4)


def test_a_cache_of_a_batch() -> None:
    model = wrap_model(tiny_model("llama"))
    sites = "q,pattern,z.head[1],mlp_pre,resid_post,ln_final,logits,router".removesuffix(",router")
    batch = model.capture([[5, 6, 7], [8, 9, 10]], sites=sites, layers=[0, 2])
    cache = batch.cache()
    assert list(cache)[:4] == [
        "blocks.0.attn.hook_rot_q", "blocks.2.attn.hook_rot_q",
        "blocks.0.attn.hook_pattern", "blocks.2.attn.hook_pattern",
    ]  # fmt: skip
    assert "blocks.0.attn.hook_z.head[1]" in cache and "logits" in cache
    assert cache["blocks.2.attn.hook_rot_q"].shape == (2, 3, 4, 8)
    assert cache["pattern", 0].shape == (2, 4, 3, 3)
    assert torch.equal(cache["pre", -1], cache["blocks.2.mlp.hook_pre"])
    assert torch.equal(cache["resid_post", 2], cache["blocks.2.resid_post"])
    assert torch.equal(cache["ln_final.hook_normalized"][1], batch["ln_final"][1])
    assert torch.equal(batch.cache(1)["z", 0], batch["z", 0][1])
    assert ("z", 1) not in cache and ("q", 0) not in cache and 3 not in cache
    assert len(cache) == len(batch.sites)
    with pytest.raises(TypeError):
        cache["x"] = torch.zeros(1)  # pyright: ignore[reportIndexIssue]


def test_a_cache_says_what_it_lacks() -> None:
    model = wrap_model(tiny_model("llama"))
    batch = model.capture([[5, 6, 7], [8, 9]], sites="q,resid_post", layers=[1])
    with pytest.raises(BadInputError, match="unequal lengths"):
        batch.cache()["resid_post", 1]
    with pytest.raises(BadInputError, match="before rotary"):
        batch.cache(0)["q", 1]
    with pytest.raises(UnknownNameError):
        batch.cache(0)["resid_post", 2]
    with pytest.raises(UnknownNameError, match="captured activation"):
        batch.cache(0)["resid_pots"]
    with pytest.raises(BadInputError, match="no such example"):
        batch.cache(2)
    pooled = model.capture([[5, 6, 7], [8, 9]], sites="resid_post", strategy="mean").cache()
    assert pooled["resid_post", 0].shape == (2, 32)


def test_a_cache_of_a_run(tmp_path) -> None:
    model = wrap_model(tiny_model("llama"))
    ids = [[5, 6, 7], [8, 9]]
    batch = model.capture(ids, sites="pattern,z,resid_post")
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", batch, {})
    from actscope import open_run

    run = open_run(writer.path)
    for i in range(2):
        ours, theirs = run.cache(i), batch.cache(i)
        assert list(ours) == list(theirs)
        for name in theirs:
            assert torch.equal(ours[name], theirs[name])
    assert np.array_equal(run.cache(-1)["z", 0], batch["z", 0][1])
    with pytest.raises(BadInputError, match="no such example"):
        run.cache(2)
