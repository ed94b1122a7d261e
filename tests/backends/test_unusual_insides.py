"""Attention and MLP sites where a type does it in another way: read, or refused, never wrong."""

from __future__ import annotations

import copy
from typing import Any

import coverage_models
import numpy as np
import pytest
import torch
from torch import nn

from actscope import Batch, wrap_model
from actscope.core.errors import SiteUnavailableError
from actscope.core.sites import Site
from actscope.interventions import Ablate

LENGTHS = (9, 5)


def tokens() -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(8, 96, size=n).tolist() for n in LENGTHS]


def eager(hf: Any, ids: list[int]) -> Any:
    twin = copy.deepcopy(hf)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        return twin(torch.tensor([ids]), output_attentions=True)


def seen(hf: nn.Module, path: str, ids: list[int], side: str) -> list[torch.Tensor]:
    """What a module receives or returns, call by call, for one text alone."""
    found: list[torch.Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> None:
        found.append((args[0] if side == "input" else output).clone())

    handle = hf.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        hf(torch.tensor([ids]))
    handle.remove()
    return found


@pytest.mark.parametrize("name", ["qwen3_next", "afmoe", "laguna", "bitnet", "jetmoe"])
def test_z_before_a_gate_or_a_norm_is_the_pattern_times_v(name: str) -> None:
    hf = coverage_models.tiny_model(name)
    model = wrap_model(hf)
    layer = next(
        i for i in range(model.n_layers) if model.sites()[Site("pattern", i)].verified
    )  # fmt: skip
    texts = tokens()
    got = model.capture(texts, sites=["z", "v"], layers=[layer])
    attentions = [eager(hf, ids).attentions for ids in texts]
    place = [i for i in range(model.n_layers) if model.sites()[Site("z", i)].verified].index(layer)
    for example, own in enumerate(attentions):
        pattern = [t for t in own if isinstance(t, torch.Tensor) and t.ndim == 4][place][0]
        v, z = got["v", layer][example], got["z", layer][example]
        v = v.repeat_interleave(z.shape[1] // v.shape[1], dim=1)
        made = torch.einsum("hqk,khd->qhd", pattern, v)
        assert torch.allclose(z, made, atol=1e-4 * float(z.abs().max()))
        assert float(z.abs().max()) > 1e-3
    one = model.capture(texts, sites=f"z.{layer}.head[1]")
    assert torch.equal(one["z", layer][0].flatten(1), got["z", layer][0][:, 1])


def test_z_before_a_gate_is_read_and_not_changed() -> None:
    model = wrap_model(coverage_models.tiny_model("afmoe"))
    refused = pytest.raises(SiteUnavailableError, match="can be read but not changed")
    with refused, model.intervene(Ablate(layer=0, site="z")):
        pass


def test_a_shared_block_has_the_attention_and_the_neurons_of_each_of_its_calls() -> None:
    hf = coverage_models.tiny_model("encoder/albert")
    model = wrap_model(hf)
    texts = tokens()
    got = model.capture(texts, sites=["q", "k", "v", "z", "pattern", "mlp_pre", "mlp_post"])
    block = "encoder.albert_layer_groups.0.albert_layers.0"
    for example, ids in enumerate(texts):
        theirs = eager(hf, ids).attentions
        inputs = seen(hf, f"{block}.ffn_output", ids, "input")
        before = seen(hf, f"{block}.ffn", ids, "output")
        assert len(theirs) == len(inputs) == model.n_layers == 3
        for layer in range(model.n_layers):
            ours = got["pattern", layer][example]
            assert torch.allclose(ours, theirs[layer][0], atol=1e-5)
            assert torch.allclose(got["mlp_post", layer][example], inputs[layer][0], atol=1e-4)
            assert torch.allclose(got["mlp_pre", layer][example], before[layer][0], atol=1e-4)
            v, z = got["v", layer][example], got["z", layer][example]
            made = torch.einsum("hqk,khd->qhd", theirs[layer][0], v)
            assert torch.allclose(z, made, atol=1e-4)
    first, last = got["pattern", 0][0], got["pattern", 2][0]
    assert float((first - last).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["cpmant", "xlnet"])
def test_neurons_are_the_tokens_own_where_rows_lie_otherwise(name: str) -> None:
    """A learnt prompt in front, or tokens first: a batch gives what each text alone does."""
    hf = coverage_models.tiny_model(name)
    model = wrap_model(hf)
    texts = tokens()
    got = model.capture(texts, sites=["mlp_pre", "mlp_post"])
    last = {
        "cpmant": "cpmant.encoder.layers.1.ffn.ffn.w_out",
        "xlnet": "transformer.layer.1.ff.layer_2",
    }
    for example, ids in enumerate(texts):
        (received,) = seen(hf, last[name], ids, "input")
        rows = received[0, -len(ids) :] if name == "cpmant" else received[:, 0]
        ours = got["mlp_post", 1][example]
        assert ours.shape == rows.shape
        assert torch.allclose(ours, rows, atol=1e-4 * float(rows.abs().max()))
        assert got["mlp_pre", 1][example].shape == rows.shape


def test_a_convolution_over_tokens_is_no_last_linear_map() -> None:
    """It is linear, but what it receives is no token's neurons."""
    model = wrap_model(coverage_models.tiny_model("inkling_text"))
    for layer in range(model.n_layers):
        assert not model.sites()[Site("mlp_post", layer)].verified


@pytest.mark.parametrize("name", ["gemma4_text", "gemma3n_text", "doge", "falcon_h1"])
def test_neurons_of_blocks_that_rescale(name: str) -> None:
    """The stream is normalised or rescaled, or a constant lies behind the MLP."""
    hf = coverage_models.tiny_model(name)
    model = wrap_model(hf)
    texts = tokens()
    got = model.capture(texts, sites=["mlp_pre", "mlp_post"])
    part = "feed_forward" if name == "falcon_h1" else "mlp"
    for layer in range(model.n_layers):
        mlp = hf.get_submodule(f"model.layers.{layer}.{part}")
        paths = [p for p, _ in mlp.named_modules() if p.endswith("down_proj")]
        for example, ids in enumerate(texts):
            (rows,) = seen(hf, f"model.layers.{layer}.{part}.{paths[0]}", ids, "input")
            ours = got["mlp_post", layer][example]
            assert torch.allclose(ours, rows[0], atol=2e-4 * float(rows.abs().max()))


def test_what_is_activated_may_be_sparse() -> None:
    """Gemma 3n cuts its gate before activating it: a few entries are left, none below zero."""
    hf = coverage_models.tiny_model("gemma3n_text")
    assert hf.config.activation_sparsity_pattern[0] > 0
    texts = tokens()
    got = wrap_model(hf).capture(texts, sites="mlp_pre", layers=[0])
    for example, ids in enumerate(texts):
        (rows,) = seen(hf, "model.layers.0.mlp.act_fn", ids, "input")
        assert float((rows == 0).float().mean()) > 0.5
        assert torch.allclose(got["mlp_pre", 0][example], rows[0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "pre", "act"),
    [
        ("lfm2", "model.layers.1.feed_forward.w1", nn.functional.silu),
        ("openai-gpt", "transformer.h.1.mlp.c_fc", None),
        ("bitnet", "model.layers.1.mlp.gate_proj", None),
    ],
)
def test_activations_that_are_functions_and_a_norm_behind_them(
    name: str, pre: str, act: Any
) -> None:
    hf = coverage_models.tiny_model(name)
    model = wrap_model(hf)
    texts = tokens()
    got = model.capture(texts, sites=["mlp_pre", "mlp_post"], layers=[1])
    for example, ids in enumerate(texts):
        (rows,) = seen(hf, pre, ids, "output")
        ours = got["mlp_pre", 1][example]
        assert torch.allclose(ours, rows[0], atol=1e-4 * float(rows.abs().max()))
        if act is not None:
            (up,) = seen(hf, pre.replace("w1", "w3"), ids, "output")
            post = got["mlp_post", 1][example]
            assert torch.allclose(post, act(ours) * up[0], atol=1e-4 * float(post.abs().max()))


@pytest.mark.parametrize(
    "name", ["afmoe", "glm4_moe", "hy_v3", "laguna", "minimax_m2", "ernie4_5_moe"]
)
def test_routers_that_choose_with_a_bias(name: str) -> None:
    """Which experts get weight is not which have the largest score."""
    hf = coverage_models.tiny_model(name)
    model = wrap_model(hf)
    text = tokens()[:1]
    layers = [i for i in range(model.n_layers) if model.sites()[Site("router", i)].verified]
    assert layers
    got = model.capture(text, sites="router", layers=layers)
    routers = [
        (path, module)
        for path, module in hf.named_modules()
        if type(module).__name__.lower().endswith(("topkrouter", "choicerouter"))
    ]
    assert len(routers) == len(layers)
    for layer, (_, module) in zip(layers, routers, strict=True):
        found: list[Any] = []
        handle = module.register_forward_hook(lambda m, a, o, found=found: found.append((a, o)))
        with torch.no_grad():
            hf(torch.tensor(text))
        handle.remove()
        theirs = next(t for t in found[0][1] if t.shape == (len(text[0]), 4))
        assert torch.allclose(got["router", layer][0], theirs.float(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["aria_text", "mixtral", "glm4_moe"])
def test_a_router_has_as_many_logits_as_there_are_experts(name: str, dtype: torch.dtype) -> None:
    """In half precision many tensors nearly give some weights: the stream must not pass for one."""
    model = wrap_model(coverage_models.tiny_model(name, dtype))
    found = [i for i in range(model.n_layers) if model.sites()[Site("router", i)].verified]
    assert found
    for layer in found:
        assert model.capture(tokens(), sites=f"router.{layer}")["router", layer][0].shape[-1] == 4


def test_scores_are_no_logits() -> None:
    """In half precision a smooth function of a narrow tensor is nearly linear."""
    hf = coverage_models.tiny_model("deepseek_v4", torch.bfloat16)
    model = wrap_model(hf)
    found = [i for i in range(model.n_layers) if model.sites()[Site("router", i)].verified]
    assert all(model._map.taps[Site("router", i)].path.endswith("mlp.gate") for i in found)


def test_a_batch_of_one_length_and_a_ragged_one_agree() -> None:
    """The turns of a shared block are counted anew in every pass of one session."""
    model = wrap_model(coverage_models.tiny_model("encoder/albert"))
    texts = tokens()
    together = model.capture(Batch.from_ids(texts), sites=["pattern", "z"])
    for example, ids in enumerate(texts):
        alone = model.capture([ids], sites=["pattern", "z"])
        for layer in range(3):
            ours, theirs = together["pattern", layer][example], alone["pattern", layer][0]
            assert torch.allclose(ours, theirs, atol=1e-5)
