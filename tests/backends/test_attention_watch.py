"""Seeing attention changes nothing and leaves nothing behind; what cannot be proved is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from actscope import Batch, Site, wrap_model
from actscope.backends.hf.attention_watch import watching_interface
from actscope.core.errors import SiteUnavailableError
from actscope.core.protocols import Selection
from actscope.strategies import NoneStrategy
from actscope.testing.tiny_models import tiny_model

IDS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
LONG = [list(range(10, 30))]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test the library is as it was, and no torch function mode is active."""
    before = AttentionInterface.get_interface
    yield
    assert AttentionInterface.get_interface is before
    assert torch._C._len_torch_function_stack() == 0


def selection(*sites: Site) -> Selection:
    return Selection(sites, NoneStrategy())


def hooks_of(hf: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon"])
def test_nothing_is_left_after_a_capture(family: str) -> None:
    hf = tiny_model(family)
    model = wrap_model(hf)
    model.capture(IDS, sites=["q", "pattern", "z"])
    assert hooks_of(hf) == 0


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon"])
@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_nothing_is_left_after_an_exception(family: str, where: str) -> None:
    hf = tiny_model(family)
    model = wrap_model(hf)
    status = model.sites()[Site("pattern", 1)].reason
    attention = hf.get_submodule(status.rpartition("; ")[2])
    linear = next(m for m in attention.modules() if isinstance(m, nn.Linear))

    def planted(*_: Any) -> None:
        raise RuntimeError("planted")

    handle = {
        "before": lambda: attention.register_forward_pre_hook(planted),
        "inside": lambda: linear.register_forward_pre_hook(planted),
        "after": lambda: attention.register_forward_hook(planted),
    }[where]()
    sites = [Site("pattern", 0), Site("q", 1), Site("pattern", 2)]
    batch = Batch.from_ids(IDS)
    with pytest.raises(RuntimeError, match="planted"), model.open(selection(*sites)) as session:
        session.run(batch)
    handle.remove()
    assert hooks_of(hf) == 0
    again = model.capture(batch, sites=sites)
    assert torch.isfinite(again["pattern", 2][0]).all()


def test_the_library_is_watched_only_while_a_batch_runs() -> None:
    model = wrap_model(tiny_model("llama"))
    before = AttentionInterface.get_interface
    with model.open(selection(Site("pattern", 1))) as session:
        assert AttentionInterface.get_interface is before
        session.run(Batch.from_ids(IDS))
        assert AttentionInterface.get_interface is before


def test_watches_nest_and_end_in_any_order() -> None:
    before = AttentionInterface.get_interface
    heard: list[str] = []
    outer = watching_interface(lambda *_: heard.append("outer"))
    inner = watching_interface(lambda *_: heard.append("inner"))
    outer.__enter__()
    inner.__enter__()
    hf = tiny_model("llama")
    hf(torch.tensor([[5, 6]]))
    assert heard == ["outer", "inner"] * 3
    outer.__exit__(None, None, None)
    hf(torch.tensor([[5, 6]]))
    assert heard[6:] == ["inner"] * 3
    inner.__exit__(None, None, None)
    assert AttentionInterface.get_interface is before
    hf(torch.tensor([[5, 6]]))
    assert len(heard) == 9


def test_who_wraps_the_library_meanwhile_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    with watching_interface(lambda *_: None):
        ours = AttentionInterface.get_interface

        def theirs(self: Any, name: Any, default: Any) -> Any:
            return ours(self, name, default)

        monkeypatch.setattr(AttentionInterface, "get_interface", theirs)
    assert AttentionInterface.get_interface is theirs
    tiny_model("llama")(torch.tensor([[5, 6]]))  # still works
    monkeypatch.undo()
    AttentionInterface.get_interface = ours.__closure__[0].cell_contents


def test_another_model_in_another_thread_is_not_captured() -> None:
    model, other = wrap_model(tiny_model("llama")), tiny_model("llama", seed=1)
    alone = model.capture(IDS, sites="pattern")
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            other(torch.tensor([[1, 2, 3, 4, 5, 6, 7]]))

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(20):
            beside = model.capture(IDS, sites="pattern")
            for site in alone.sites:
                for a, b in zip(alone[site], beside[site], strict=True):
                    assert torch.equal(a, b)
    finally:
        stop.set()
        thread.join()


def test_two_sessions_on_one_model() -> None:
    model, batch = wrap_model(tiny_model("bloom")), Batch.from_ids(IDS)
    plain = model.capture(batch, sites="pattern", layers=[0, 2])
    first, second = selection(Site("pattern", 0)), selection(Site("pattern", 2))
    with model.open(first) as a, model.open(second) as b:
        one, two, again = a.run(batch), b.run(batch), a.run(batch)
    assert torch.equal(one["pattern", 0][0], plain["pattern", 0][0])
    assert torch.equal(two["pattern", 2][0], plain["pattern", 2][0])
    assert torch.equal(again["pattern", 0][1], plain["pattern", 0][1])


def registered(name: str, monkeypatch: pytest.MonkeyPatch, function: Any) -> Any:
    """A tiny Llama that runs an attention function of ours."""
    monkeypatch.setitem(AttentionInterface._global_mapping, name, function)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, sdpa_mask)
    hf = tiny_model("llama")
    hf.config._attn_implementation = name
    return hf


def biased(query: torch.Tensor, mask: torch.Tensor | None, least: int) -> torch.Tensor | None:
    """The mask with the far past hidden too, for texts of more than ``least`` tokens."""
    length = query.shape[2]
    if length <= least:
        return mask
    near = torch.ones(length, length).tril().triu(-3).bool()[None, None]
    return near if mask is None else near & mask


@pytest.mark.parametrize(("least", "at_load"), [(0, True), (7, False)])
def test_a_kernel_that_hides_more_than_it_was_told(
    monkeypatch: pytest.MonkeyPatch, least: int, at_load: bool
) -> None:
    """Found on the probe where it shows there, else on the first batch where it does."""

    def secret(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        mask = biased(query, mask, least)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    model = wrap_model(registered("secret", monkeypatch, secret))
    statuses = model.sites()
    assert statuses[Site("z", 1)].verified
    for kind in ("q", "k", "v", "pattern"):
        assert statuses[Site(kind, 1)].verified is not at_load
    if at_load:
        assert "misses the attention output" in statuses[Site("pattern", 1)].reason
        with pytest.raises(SiteUnavailableError, match="misses the attention output"):
            model.capture(IDS, sites="pattern")
    else:
        model.capture(IDS, sites="pattern")
        with pytest.raises(SiteUnavailableError, match="not what the model computed on this batch"):
            model.capture(LONG, sites="pattern")
        assert model.capture(LONG, sites="z")["z", 0][0].shape == (20, 4, 8)


def test_wrong_weights_of_a_kernel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
        flat = torch.ones(query.shape[2], query.shape[2]).tril()
        flat = (flat / flat.sum(-1, keepdim=True)).expand(*query.shape[:2], -1, -1)
        return output, flat

    model = wrap_model(registered("lying", monkeypatch, lying))
    reason = model.sites()[Site("pattern", 0)].reason
    assert "pattern @ v misses" in reason


def test_a_kernel_without_a_mask_keyword_and_with_a_soft_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a flash kernel is handed: no mask, a window, a cap; the pattern follows from these."""

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        k = key.repeat_interleave(2, dim=1)
        v = value.repeat_interleave(2, dim=1)
        scores = query @ k.transpose(-1, -2) * options["scaling"]
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        n = query.shape[2]
        seen = torch.ones(n, n).tril().triu(1 - options["sliding_window"]).bool()
        pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        made.append(pattern.detach())
        return (pattern @ v).transpose(1, 2).contiguous(), None

    made: list[torch.Tensor] = []
    monkeypatch.setitem(AttentionInterface._global_mapping, "my_flash", flash)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "my_flash", lambda **_: None)
    hf = tiny_model("gemma2", sliding_window=3, attn_logit_softcapping=0.5, query_pre_attn_scalar=1)
    hf.config._attn_implementation = "my_flash"
    for block in hf.model.layers:
        block.self_attn.sliding_window = 3
    model = wrap_model(hf)
    made.clear()
    batch = model.capture(LONG, sites="pattern")
    for layer in range(3):
        assert model.sites()[Site("pattern", layer)].reason.startswith("softmax(q k^T) recomputed")
        assert torch.allclose(batch["pattern", layer][0], made[layer][0], atol=1e-6)


class Gated(nn.Module):
    """One head of attention with a choice of what is done to its output, in plain torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.r = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        if self.how == "relative":
            scores = scores + q @ self.r(x).transpose(-1, -2)
        n = x.shape[1]
        scores = scores.masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
        weights = torch.sigmoid(scores) if self.how == "strange" else torch.softmax(scores, dim=-1)
        mixed = weights @ v
        return self.o(mixed * torch.sigmoid(x) if self.how == "gated" else mixed)


class Net(nn.Module):
    """Two blocks of attention and an MLP; no Hugging Face class at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.blocks = nn.ModuleList(Block(how) for _ in range(2))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class Block(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.attn = Gated(how)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


@pytest.mark.parametrize(
    ("how", "refused", "says"),
    [
        ("plain", set(), ""),
        ("gated", set(), ""),  # z is read where attention returns it
        ("relative", {"q", "k"}, "depends on tokens beyond q k"),
        ("strange", {"q", "k", "v", "z", "pattern"}, "no attention operation was seen"),
    ],
)
def test_a_plain_torch_model(how: str, refused: set[str], says: str) -> None:
    torch.manual_seed(0)
    net = Net(how).eval()
    model = wrap_model(net)
    for kind in ("q", "k", "v", "z", "pattern"):
        status = model.sites()[Site(kind, 1)]
        assert status.verified is (kind not in refused), (kind, status.reason)
        if kind in refused:
            assert says in status.reason
    if "pattern" in refused:
        return
    got = model.capture([[3, 4, 5, 6]], sites="v,pattern,resid_pre", layers=[1])
    attn, pre = net.blocks[1].attn, got["resid_pre", 1]
    assert torch.allclose(got["v", 1][0][:, 0], attn.v(pre[0]), atol=1e-5)
    scores = attn.q(pre[0]) @ attn.k(pre[0]).T / 8**0.5
    if how == "relative":
        scores = scores + attn.q(pre[0]) @ attn.r(pre[0]).T
    scores = scores.masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf)
    assert torch.allclose(got["pattern", 1][0][0], scores.softmax(-1), atol=1e-5)


def test_a_sink_takes_what_the_rows_lack() -> None:
    """gpt-oss: q and k give the model's own weights only if the sink is in the softmax."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config = AutoConfig.for_model(
        "gpt_oss", **sizes, num_attention_heads=4, num_key_value_heads=2, intermediate_size=16,
        num_local_experts=4, num_experts_per_tok=2, sliding_window=4, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(5.0)
    model = wrap_model(hf)
    assert all(model.sites()[Site(k, i)].verified for k in ("q", "k", "pattern") for i in (0, 1))
    got = model.capture(LONG, sites="pattern,q,k")
    theirs = hf(torch.tensor(LONG), output_attentions=True, use_cache=False).attentions
    for layer in range(2):
        ours = got["pattern", layer][0]
        assert torch.allclose(ours, theirs[layer][0], atol=1e-6)
        assert 0.05 < float((1 - ours.sum(-1)).max()) < 1
