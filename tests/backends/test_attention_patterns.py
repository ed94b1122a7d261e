"""Patterns are Hugging Face's own eager attentions: per family, dtype and padding, 0 wrong."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import hf_references as ref
import numpy as np
import pytest
import torch

from actscope import Batch, Site, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import BadInputError
from actscope.testing.tiny_models import DECODERS, ENCODERS, VOCAB, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = {"unpadded": [11, 11, 11], "right": [11, 4, 1], "left": [11, 4, 1]}
# A window shorter than the texts, and a cap that bites.
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 3},
    "gemma2": {
        "sliding_window": 3, "attn_logit_softcapping": 0.8, "query_pre_attn_scalar": 1
    },
    "gemma3_text": {"sliding_window": 3, "query_pre_attn_scalar": 8},
    "cohere2": {"sliding_window": 3},
}  # fmt: skip
_MODELS: dict[tuple[str, str], HFModel] = {}


def model_of(family: str, dtype: str) -> HFModel:
    key = (family, dtype)
    if key not in _MODELS:
        _MODELS[key] = wrap_model(tiny_model(family, DTYPES[dtype], **CONFIGS.get(family, {})))
    return _MODELS[key]


def batch_of(padding: str) -> Batch:
    rng = np.random.default_rng(5)
    ids = [rng.integers(3, VOCAB, size=n).tolist() for n in LENGTHS[padding]]
    return Batch.from_ids(ids, "left" if padding == "left" else "right")


def eager_attentions(hf: Any, batch: Batch) -> list[torch.Tensor]:
    """``output_attentions=True`` of a copy that runs eager attention, ``[n, head, L, L]``."""
    twin = copy.deepcopy(hf)
    twin.config._attn_implementation = "eager"
    arguments, accepted = ref.hf_arguments(batch), inspect.signature(type(hf).forward).parameters
    if batch.padding_side == "left" and "position_ids" in accepted:
        mask = arguments["attention_mask"]
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    with torch.no_grad():
        return list(twin(**arguments, output_attentions=True).attentions)


def blocks_of(attention: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Each example's own queries and keys, ``[head, L_i, L_i]``."""
    width = attention.shape[-1]
    found: list[torch.Tensor] = []
    for i, row in enumerate(batch.rows):
        start = width - len(row) if batch.padding_side == "left" else 0
        own = slice(start, start + len(row))
        found.append(attention[i, :, own, own])
    return found


@pytest.mark.parametrize("padding", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_patterns_are_hf_eager_attentions(family: str, dtype: str, padding: str) -> None:
    model, batch = model_of(family, dtype), batch_of(padding)
    captured = model.capture(batch, sites=["pattern", "v", "z"])
    theirs = eager_attentions(model.hf, batch)
    assert len(theirs) == model.n_layers
    tolerance = 2e-6 if dtype == "float32" else 0.03
    for layer in range(model.n_layers):
        for i, expected in enumerate(blocks_of(theirs[layer], batch)):
            ours = captured["pattern", layer][i]
            assert ours.dtype == torch.float32
            assert ours.shape == expected.shape
            assert float((ours - expected.float()).abs().max()) <= tolerance, (layer, i)
            value, z = captured["v", layer][i].float(), captured["z", layer][i].float()
            shared = ours.shape[0] // value.shape[1]
            mixed = torch.einsum("hqk,khd->qhd", ours, value.repeat_interleave(shared, dim=1))
            allowed = 1e-5 if dtype == "float32" else 0.02
            assert float((mixed - z).abs().max()) <= allowed * float(value.abs().max())


def test_the_patterns_are_no_flat_averages() -> None:
    """The oracle can tell a pattern from a plain mean over the past, in every family."""
    for family in DECODERS:
        attention = eager_attentions(model_of(family, "float32").hf, batch_of("unpadded"))[1]
        flat = torch.ones(11, 11).tril() / torch.arange(1, 12)[:, None]
        assert float((attention - flat).abs().max()) > 0.02, family


@pytest.mark.parametrize("family", DECODERS)
def test_attention_sites_are_verified_in_every_decoder(family: str) -> None:
    statuses = model_of(family, "float32").sites()
    experts = {"mixtral", "olmoe", "qwen3_moe"}
    for site, status in statuses.items():
        if site.kind in ("q", "k", "v", "pattern", "z"):
            assert status.verified, (site, status.reason)
        if site.kind in ("mlp_pre", "mlp_post"):
            assert status.verified is (family not in experts), (site, status.reason)
        if site.kind == "router":
            assert status.verified is (family in experts), (site, status.reason)


@pytest.mark.parametrize("family", [*DECODERS, "bert"])
def test_logits_are_bitwise_the_models_with_every_site_captured(family: str) -> None:
    model, batch = model_of(family, "float32"), batch_of("right")
    every = [site for site, status in model.sites().items() if status.verified]
    last = "logits" if family != "bert" else f"blocks.{model.n_layers - 1}.resid_post"
    captured = model.capture(batch, sites=every)
    plain = ref.hf_forward(model.hf, batch)
    theirs = plain.logits if family != "bert" else plain.last_hidden_state
    for ours, reference in zip(captured[last], ref.rows_of(theirs, batch), strict=True):
        assert torch.equal(ours, reference)


def test_only_the_heads_and_queries_asked_for() -> None:
    model, batch = model_of("mistral", "float32"), batch_of("left")
    whole = model.capture(batch, sites=["pattern", "q", "z"], layers=[1])
    some = model.capture(
        batch, sites=["pattern.1.head[0,2]", "q.1.head[3]", "z.1.head[1:3]"], span="last:2"
    )
    assert [str(s) for s in some.sites] == [
        "blocks.1.pattern.head[0,2]", "blocks.1.q.head[3]", "blocks.1.z.head[1,2]"
    ]  # fmt: skip
    assert some.arrays[some.sites[0]].size == 2 * (2 * 11 + 2 * 4 + 1 * 1)
    for i in range(3):
        ours, full = some["pattern", 1][i], whole["pattern", 1][i]
        assert torch.allclose(ours, full[[0, 2]][:, -2:], atol=1e-6)
        assert torch.equal(some["q", 1][i], whole["q", 1][i][-2:, [3]])
        assert torch.equal(some["z", 1][i], whole["z", 1][i][-2:, [1, 2]])


def test_batches_come_together_in_the_order_of_the_inputs() -> None:
    model = model_of("gpt2", "float32")
    ids = [row.token_ids.tolist() for row in batch_of("left").rows]
    together = model.capture(ids, sites=["pattern", "z"], layers=[2], batch_tokens=5)
    for i, one in enumerate(ids):
        alone = model.capture([one], sites=["pattern", "z"], layers=[2])
        assert torch.allclose(together["pattern", 2][i], alone["pattern", 2][0], atol=1e-6)
        assert torch.allclose(together["z", 2][i], alone["z", 2][0], atol=1e-5)


def test_pooling_heads_keeps_their_axis_and_pooling_a_pattern_is_refused() -> None:
    model, batch = model_of("llama", "float32"), batch_of("right")
    rows = model.capture(batch, sites="z", layers=[0])["z", 0]
    pooled = model.capture(batch, sites="z", layers=[0], strategy="mean")["z", 0]
    assert pooled.shape == (3, 4, 8)
    assert torch.allclose(pooled, torch.stack([r.mean(0) for r in rows]), atol=1e-6)
    with pytest.raises(BadInputError, match="cannot pool an attention pattern"):
        model.capture(batch, sites="pattern", strategy="mean")


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("z.0.head[4]", "head out of range"),
        ("k.0.head[2]", "0 to 1"),
        ("mlp_post.0.neuron[48]", "0 to 47"),
        ("mlp_post.0.head[1]", "has no heads"),
        ("z.0.neuron[1]", "has no neurons"),
        ("resid_post.0.head[1]", "has no heads"),
        ("z.0.head[1,1]", "asked for twice"),
        ("z.0.head[]", "whole number"),
        ("z.0.head[x]", "whole number"),
        ("z.0.head[-1]", "no list of heads"),
        ("z.0.head[3:1]", "no list of heads"),
    ],
)
def test_heads_and_neurons_that_are_not_there(site: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        model_of("llama", "float32").capture(batch_of("right"), sites=site)


def test_early_exit_after_the_attention_that_was_asked_for() -> None:
    hf = tiny_model("llama")
    model = wrap_model(hf)
    ran: list[int] = []
    for index, block in enumerate(hf.model.layers):
        block.mlp.register_forward_hook(lambda *_, i=index: ran.append(i))
    model.capture([[4, 5, 6]], sites=[Site("pattern", 1)])
    assert ran == [0]
