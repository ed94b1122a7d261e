"""Attention and MLP sites with a LoRA adapter on: what peft's own model computes inside a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_adapters import as_peft, save_adapter
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from actscope import wrap_model
from actscope.core.sites import Site
from actscope.testing.tiny_models import tiny_model

IDS = [5, 6, 7, 8, 9, 10, 40, 41]
INSIDE = ["q", "k", "v", "z", "pattern", "mlp_pre", "mlp_post", "attn_out", "mlp_out", "resid_mid"]
ALL = {"target_modules": "all-linear"}
ONE = {"target_modules": ["o_proj"], "use_dora": True}
PARTS = (
    "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp", "mlp.act_fn", "mlp.down_proj", "post_attention_layernorm",
)  # fmt: skip


def seen_by_peft(hf: Any, prefix: str) -> tuple[dict[str, Any], Any]:
    """First input and output of modules of a layer, and the model's output, by plain hooks."""
    seen: dict[str, Any] = {}

    def keeper(name: str) -> Any:
        def keep(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            made = output[0] if isinstance(output, tuple) else output
            seen[name] = (first.detach().clone()[0], made.detach().clone()[0])

        return keep

    handles = [
        hf.get_submodule(f"{prefix}.{name}").register_forward_hook(keeper(name), with_kwargs=True)
        for name in PARTS
    ]
    with torch.no_grad():
        result = hf(input_ids=torch.tensor([IDS]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen, result


def expected_of(reference: Any, layer: int) -> dict[str, torch.Tensor]:
    """The sites of one llama layer, from the hooks and transformers' own rotary embedding."""
    inner = reference.base_model.model
    seen, _ = seen_by_peft(inner, f"model.layers.{layer}")
    config = inner.config
    d_head = config.head_dim
    q, k, v = (seen[f"self_attn.{name}_proj"][1].unflatten(-1, (-1, d_head)) for name in "qkv")
    places = torch.arange(len(IDS))[None]
    cos, sin = inner.model.rotary_emb(v[None], places)
    q, k = apply_rotary_pos_emb(q[None].transpose(1, 2), k[None].transpose(1, 2), cos, sin)
    return {
        "q": q[0].transpose(0, 1).flatten(1),
        "k": k[0].transpose(0, 1).flatten(1),
        "v": v.flatten(1),
        "z": seen["self_attn.o_proj"][0],
        "mlp_pre": seen["mlp.act_fn"][0],
        "mlp_post": seen["mlp.down_proj"][0],
        "attn_out": seen["self_attn"][1],
        "mlp_out": seen["mlp"][1],
        "resid_mid": seen["post_attention_layernorm"][0],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [ALL, ONE, {"target_modules": ["down_proj", "q_proj"]}])
def test_every_site_inside_a_block_is_that_of_peft(
    tmp_path: Path, config: dict[str, Any], dtype: torch.dtype
) -> None:
    base = tiny_model("llama", dtype)
    reference = as_peft(base, save_adapter(tmp_path / "lora", base, **config))
    model = wrap_model(base)
    plain = model.capture([IDS], INSIDE)
    model.load_adapter(str(tmp_path / "lora"))
    with model.adapter("lora"):
        got = model.capture([IDS], INSIDE)
        one = model.capture([IDS], ["z.head[1]", "mlp_post.neuron[3,7]"], layers=[1])
    for layer in range(3):
        for kind, tensor in expected_of(reference, layer).items():
            assert torch.equal(flat(got[kind, layer][0]), tensor), (kind, layer)
    assert not torch.equal(got["z", 1][0], plain["z", 1][0])  # else the rest would prove nothing
    head, neurons = (one[str(site)][0] for site in one.sites)
    assert torch.equal(head[:, 0], got["z", 1][0][:, 1])
    assert torch.equal(neurons, got["mlp_post", 1][0][:, [3, 7]])


def flat(rows: torch.Tensor) -> torch.Tensor:
    """Heads side by side."""
    return rows.flatten(1)


def test_patterns_are_those_of_peft_with_eager_attention(tmp_path: Path) -> None:
    base = tiny_model("llama")
    reference = as_peft(base, save_adapter(tmp_path / "lora", base, **ALL))
    reference.base_model.model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = reference(input_ids=torch.tensor([IDS]), output_attentions=True).attentions
    model = wrap_model(base)
    plain = model.capture([IDS], "pattern")
    model.load_adapter(str(tmp_path / "lora"))
    with model.adapter("lora"):
        got = model.capture([IDS], "pattern")
    for layer in range(3):
        assert torch.allclose(got["pattern", layer][0], theirs[layer][0], atol=1e-6)
        assert not torch.allclose(got["pattern", layer][0], plain["pattern", layer][0], atol=1e-3)


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),
        ("gemma2", ["o_proj", "down_proj"]),  # a norm follows both
        ("phi", ["q_proj", "dense", "fc1", "fc2"]),  # a parallel block
        ("gpt_neox", ["query_key_value", "dense", "dense_4h_to_h"]),
        ("bloom", ["query_key_value", "dense", "dense_4h_to_h"]),
        ("opt", ["out_proj", "fc1", "fc2"]),
        ("falcon", ["query_key_value", "dense", "dense_4h_to_h"]),
    ],
)
def test_inner_sites_move_to_the_layer_around_the_plain_module(
    tmp_path: Path, family: str, modules: list[str]
) -> None:
    base = tiny_model(family)
    fan = {"fan_in_fan_out": True} if family == "gpt2" else {}
    folder = save_adapter(tmp_path / "lora", base, target_modules=modules, **fan)
    reference = as_peft(base, folder).base_model.model
    model = wrap_model(base)
    verified = {site for site, status in model.sites().items() if status.verified}
    assert {Site("z", 1), Site("mlp_post", 1), Site("q", 1)} <= verified
    model.load_adapter(str(folder))
    with model.adapter("lora"):
        assert {site for site, status in model.sites().items() if status.verified} == verified
        got = model.capture([IDS], ["z", "mlp_post"])
        taps = {
            (kind, layer): model._map.taps[Site(kind, layer)].path
            for kind in ("z", "mlp_post")
            for layer in range(3)
        }
    for (kind, layer), path in taps.items():
        assert not path.endswith("base_layer")
        seen: list[torch.Tensor] = []
        handle = reference.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, seen=seen: seen.append(args[0].detach().clone())
        )
        with torch.no_grad():
            reference(input_ids=torch.tensor([IDS]), use_cache=False)
        handle.remove()
        assert torch.equal(flat(got[kind, layer][0]), seen[0].reshape(len(IDS), -1))
