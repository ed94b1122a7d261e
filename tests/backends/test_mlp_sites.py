"""The inside of MLPs and the router, against modules named by hand and HF's own router logits."""

from __future__ import annotations

from typing import Any

import hf_references as ref
import numpy as np
import pytest
import torch
from torch import nn

from actscope import Batch, Site, wrap_model
from actscope.core.errors import SiteUnavailableError
from actscope.testing.tiny_models import DECODERS, VOCAB, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EXPERTS = {"mixtral", "olmoe", "qwen3_moe"}
DENSE = [family for family in DECODERS if family not in EXPERTS]

ACTIVATION = {
    "gpt2": "mlp.act", "phi": "mlp.activation_fn", "phi3": "mlp.activation_fn",
    "gpt_neox": "mlp.act", "falcon": "mlp.act", "bloom": "mlp.gelu_impl", "opt": "activation_fn",
}  # fmt: skip
LAST = {
    "gpt2": "mlp.c_proj", "phi": "mlp.fc2", "gpt_neox": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h", "bloom": "mlp.dense_4h_to_h", "opt": "fc2",
}  # fmt: skip


def batch_of(lengths: list[int], side: str = "right") -> Batch:
    rng = np.random.default_rng(7)
    return Batch.from_ids([rng.integers(3, VOCAB, size=n).tolist() for n in lengths], side)


def inputs_of(hf: Any, paths: list[str], batch: Batch) -> dict[str, torch.Tensor]:
    """What modules receive, by plain hooks."""
    seen: dict[str, torch.Tensor] = {}

    def keeper(path: str) -> Any:
        def keep(module: Any, args: Any) -> None:
            seen[path] = args[0].detach().clone()

        return keep

    handles = [hf.get_submodule(p).register_forward_pre_hook(keeper(p)) for p in paths]
    with torch.no_grad():
        hf(**ref.hf_arguments(batch))
    for handle in handles:
        handle.remove()
    n = len(batch.rows)
    return {path: tensor.reshape(n, -1, tensor.shape[-1]) for path, tensor in seen.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", DENSE)
def test_mlp_sites_are_what_the_named_modules_receive(family: str, dtype: str) -> None:
    model = wrap_model(tiny_model(family, DTYPES[dtype]))
    batch = batch_of([9, 4, 1])
    captured = model.capture(batch, sites=["mlp_pre", "mlp_post"])
    block = ref.BLOCKS.get(family, ref.USUAL_BLOCKS)
    parts = {
        "mlp_pre": ACTIVATION.get(family, "mlp.act_fn"),
        "mlp_post": LAST.get(family, "mlp.down_proj"),
    }
    paths = [f"{block}.{i}.{part}" for i in range(3) for part in parts.values()]
    seen = inputs_of(model.hf, paths, batch)
    for layer in range(3):
        for kind, part in parts.items():
            theirs = ref.rows_of(seen[f"{block}.{layer}.{part}"], batch)
            for ours, expected in zip(captured[kind, layer], theirs, strict=True):
                assert ours.dtype == expected.dtype
                assert torch.equal(ours, expected)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_router_is_hf_router_logits(family: str, side: str) -> None:
    model = wrap_model(tiny_model(family))
    batch = batch_of([9, 4, 1], side)
    captured = model.capture(batch, sites="router")
    arguments = ref.hf_arguments(batch)
    mask = arguments["attention_mask"]
    if side == "left":
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        theirs = model.hf(**arguments, output_router_logits=True, use_cache=False).router_logits
    for layer in range(3):
        expected = theirs[layer].reshape(3, 9, 4)
        assert captured["router", layer][0].shape == (9, 4)
        for ours, rows in zip(captured["router", layer], ref.rows_of(expected, batch), strict=True):
            assert torch.equal(ours, rows)


@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_a_mixture_of_experts_has_no_neurons_of_its_own(family: str) -> None:
    model = wrap_model(tiny_model(family))
    with pytest.raises(SiteUnavailableError, match="mixture of experts"):
        model.capture([[3, 4]], sites="mlp_post")
    with pytest.raises(SiteUnavailableError, match="no mixture of experts"):
        wrap_model(tiny_model("llama")).capture([[3, 4]], sites="router")


def test_neurons_are_columns_and_only_they_are_kept() -> None:
    model = wrap_model(tiny_model("llama"))
    batch = batch_of([5, 3])
    whole = model.capture(batch, sites="mlp_post", layers=[1])
    some = model.capture(batch, sites="mlp_post.neuron[0:4,40]", layers=[1])
    assert [str(s) for s in some.sites] == ["blocks.1.mlp_post.neuron[0:4,40]"]
    assert some.array("mlp_post", 1).shape == (8, 5)
    for ours, full in zip(some["mlp_post", 1], whole["mlp_post", 1], strict=True):
        assert torch.equal(ours, full[:, [0, 1, 2, 3, 40]])
    pooled = model.capture(batch, sites="mlp_post.1.neuron[40]", strategy="last")
    assert torch.equal(pooled["mlp_post", 1][:, 0], torch.stack([r[-1, 40] for r in whole[
        "mlp_post", 1
    ]]))  # fmt: skip


class Shift(nn.Module):
    """Linear, and every token gets the row of the token before it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, 1) * 0.5 + x


class Twisted(nn.Module):
    """An MLP with something that is no activation where one is expected."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 12)
        self.act: nn.Module = nn.Softmax(-1) if how == "softmax" else nn.Tanh()
        self.norm, self.shift = nn.LayerNorm(12), Shift()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "functional":
            return self.down(torch.tanh(self.up(x)))
        if self.how == "sine":
            return self.down(torch.sin(self.up(x)))
        inner = self.act(self.up(x))
        if self.how == "normed":
            inner = self.norm(inner)
        if self.how == "gate":
            inner = inner * self.gate(x)
        if self.how == "shifted":  # linear, but each token gets the row before
            return self.shift(self.down(inner))
        return self.down(inner) if self.how != "curved" else torch.tanh(self.down(inner))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        return self.o(torch.ones(n, n).tril() @ x)


class Block(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.attn, self.mlp = Mixer(), Twisted(how)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.blocks = nn.ModuleList(Block(how) for _ in range(2))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


@pytest.mark.parametrize(
    ("how", "pre", "post"),
    [
        ("plain", True, True),
        ("gate", True, True),
        ("normed", True, True),
        ("softmax", False, True),
        ("functional", True, True),
        ("sine", False, True),
        ("shifted", False, False),
        ("curved", False, False),
    ],
)
def test_what_does_not_close_is_refused(how: str, pre: bool, post: bool) -> None:
    torch.manual_seed(0)
    net = Net(how).eval()
    model = wrap_model(net)
    statuses = model.sites()
    assert statuses[Site("mlp_pre", 1)].verified is pre, statuses[Site("mlp_pre", 1)].reason
    assert statuses[Site("mlp_post", 1)].verified is post, statuses[Site("mlp_post", 1)].reason
    assert not statuses[Site("pattern", 1)].verified
    if post:
        got = model.capture([[3, 4, 5]], sites="mlp_post,mlp_out", layers=[1])
        made = net.blocks[1].mlp.down(got["mlp_post", 1][0])
        assert torch.allclose(made, got["mlp_out", 1][0], atol=1e-6)
