"""The model's own capture: selection, early exit, modules as sites, spans, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from actscope import Batch, MeanStrategy, Site, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import (
    BadInputError,
    ExampleError,
    ModelLoadError,
    SiteUnavailableError,
    UnknownNameError,
)
from actscope.testing.tiny_models import VOCAB, tiny_model


@pytest.fixture(scope="module")
def model() -> HFModel:
    return wrap_model(tiny_model("llama"))


IDS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


def test_results_come_in_the_order_of_the_inputs(model: HFModel) -> None:
    together = model.capture(IDS, layers=[1], batch_tokens=5)
    for i, ids in enumerate(IDS):
        alone = model.capture([ids], layers=[1])["resid_post", 1][0]
        assert together["resid_post", 1][i].shape == (len(ids), 32)
        assert torch.allclose(together["resid_post", 1][i], alone, atol=1e-5)
        assert together.tokens(i).tolist() == ids
        assert together.examples[i].index == i


def test_pooled_equals_pooling_the_rows(model: HFModel) -> None:
    rows = model.capture(IDS)
    pooled = model.capture(IDS, strategy=MeanStrategy())
    for layer in range(3):
        expected = torch.stack([r.double().mean(0) for r in rows["resid_post", layer]])
        assert pooled["resid_post", layer].dtype == torch.float32
        assert torch.allclose(pooled["resid_post", layer].double(), expected, atol=1e-5)


def test_a_function_may_change_the_width(model: HFModel) -> None:
    norms = model.capture(IDS, layers=[0], strategy=lambda h: h[-1, :3])
    rows = model.capture(IDS, layers=[0])["resid_post", 0]
    assert torch.allclose(norms["resid_post", 0], torch.stack([r[-1, :3] for r in rows]), atol=1e-6)


@pytest.mark.parametrize(
    ("site", "deepest"),
    [("blocks.0.resid_pre", -1), ("blocks.0.resid_post", 0), ("blocks.1.attn_out", 1)],
)
def test_the_forward_pass_stops_after_the_deepest_wanted_module(site: str, deepest: int) -> None:
    hf = tiny_model("llama")
    model = wrap_model(hf)
    ran: list[str] = []
    for index, block in enumerate(hf.model.layers):
        block.mlp.register_forward_hook(lambda *_, i=index: ran.append(f"mlp{i}"))
    hf.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    model.capture([[4, 5, 6]], sites=[site])
    blocks_done = deepest + 1 if site.endswith("resid_post") else max(deepest, 0)
    assert ran == [f"mlp{i}" for i in range(blocks_done)]


def test_nothing_but_the_selected_rows_is_kept(model: HFModel) -> None:
    batch = model.capture(IDS, layers=[2], span="last:1")
    assert batch.array("resid_post", 2).shape == (3, 32)
    assert batch.positions.tolist() == [4, 1, 2]
    full = model.capture(IDS, layers=[2])["resid_post", 2]
    for i, row in enumerate(batch["resid_post", 2]):
        assert torch.allclose(row[0], full[i][-1], atol=1e-6)


def test_layers_by_index_key_module_name_and_module(model: HFModel) -> None:
    block = model.hf.model.layers[1]
    by = {
        "index": model.resolve_layers([1])[0],
        "negative": model.resolve_layers([-2])[0],
        "key": model.resolve_layers(["blocks.1.resid_post"])[0],
        "hook name": model.resolve_layers(["blocks.1.hook_resid_post"])[0],
        "module name": model.resolve_layers(["model.layers.1"])[0],
        "module": model.resolve_layers([block])[0],
    }
    assert by["index"] == by["negative"] == by["key"] == by["hook name"] == Site("resid_post", 1)
    assert by["module name"] == by["module"] == Site.module("model.layers.1")
    batch = model.capture(IDS, sites=[by["index"], by["module"]])
    for a, b in zip(batch["resid_post", 1], batch["model.layers.1"], strict=True):
        assert torch.equal(a, b)
    with pytest.raises(BadInputError, match="twice"):
        model.resolve_layers([1, -2])
    with pytest.raises(BadInputError, match="not part of this model"):
        model.resolve_layers([nn.Linear(2, 2)])


def test_module_sites_of_other_widths(model: HFModel) -> None:
    batch = model.capture(IDS, sites=["model.layers.0.mlp.up_proj", "resid_post.0"])
    assert [t.shape for t in batch["model.layers.0.mlp.up_proj"]] == [(5, 48), (2, 48), (3, 48)]


@pytest.mark.parametrize(
    ("sites", "layers", "kind", "says"),
    [
        ("resid_pots", "all", UnknownNameError, "did you mean 'resid_post'"),
        ("resid_post", [3], BadInputError, "3 layers"),
        ("resid_post", [-4], BadInputError, "layer out of range"),
        ("blocks.7.resid_post", None, BadInputError, "layer out of range"),
        ("model.layers.0.mpl", None, UnknownNameError, "did you mean"),
        ("pooler", None, SiteUnavailableError, "pooler_output"),
        ([], "all", BadInputError, "no site"),
    ],
)
def test_unknown_sites_and_layers(
    model: HFModel, sites: Any, layers: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        model.capture(IDS, sites=sites, layers=layers)


def test_parallel_blocks_have_no_resid_mid() -> None:
    model = wrap_model(tiny_model("gpt_neox"))
    with pytest.raises(SiteUnavailableError, match="parallel"):
        model.capture(IDS, sites="resid_mid")


def test_a_module_without_token_axis_or_with_many_calls() -> None:
    bert = wrap_model(tiny_model("bert"))
    with pytest.raises(SiteUnavailableError, match="token axis"):
        bert.capture(IDS, sites="pooler.dense")
    with pytest.raises(SiteUnavailableError, match="no floating-point tensor"):
        bert.capture(IDS, sites="encoder.layer")


def test_bad_token_ids_and_empty_inputs(model: HFModel) -> None:
    with pytest.raises(ExampleError, match="vocabulary"):
        model.capture([[VOCAB + 5]])
    with pytest.raises(ExampleError, match="no tokens"):
        model.capture([[]])
    with pytest.raises(BadInputError, match="nothing to capture"):
        model.capture([])
    with pytest.raises(BadInputError, match="tokenizer"):
        model.capture(["text"])
    with pytest.raises(ExampleError, match="context holds 64"):
        model.capture([[5] * 65])
    with pytest.raises(ExampleError, match="span"):
        model.capture([[5, 6]], span="7:9")


def test_a_closed_session_says_so(model: HFModel) -> None:
    from actscope.core.protocols import Selection
    from actscope.strategies import NoneStrategy

    session = model.open(Selection((Site("resid_post", 0),), NoneStrategy()))
    with pytest.raises(BadInputError, match="closed"):
        session.run(Batch.from_ids(IDS))


def test_nested_sessions_do_not_disturb_each_other(model: HFModel) -> None:
    from actscope.core.protocols import Selection
    from actscope.strategies import NoneStrategy

    batch = Batch.from_ids(IDS)
    plain = model.capture(batch, layers=[0, 2])
    first = Selection((Site("resid_post", 0),), NoneStrategy())
    second = Selection((Site("resid_post", 2),), NoneStrategy())
    with model.open(first) as a, model.open(second) as b:
        one, two = a.run(batch), b.run(batch)
    assert torch.equal(plain["resid_post", 0][0], one["resid_post", 0][0])
    assert torch.equal(plain["resid_post", 2][0], two["resid_post", 2][0])


class TwoBlocks(nn.Module):
    """No Hugging Face class at all: an embedding and a list of residual MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def test_a_plain_torch_model_works() -> None:
    torch.manual_seed(0)
    net = TwoBlocks()
    model = wrap_model(net)
    got = model.capture([[1, 2, 3], [4]])
    expected = net.blocks[0](net.table(torch.tensor([1, 2, 3])))
    assert torch.allclose(got["resid_post", 0][0], expected, atol=1e-6)
    assert not model.sites()[Site("attn_out", 0)].verified


def test_a_model_whose_modules_form_no_chain() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 6)
            self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            hidden = self.table(input_ids)
            return self.blocks[0](hidden) + self.blocks[1](hidden)

    with pytest.raises(ModelLoadError, match="no chain of blocks"):
        wrap_model(Shuffled())


def test_a_negative_layer_counts_from_the_models_end_in_every_place(model: HFModel) -> None:
    batch = model.capture(IDS, layers=[0, 1])
    assert batch.site("resid_post", -2) == Site("resid_post", 1)
    with pytest.raises(UnknownNameError, match="captured site"):
        batch.site("resid_post", -1)  # layer 2 was not captured
    with pytest.raises(BadInputError, match="3 layers"):
        batch.site("resid_post", -4)


def test_a_module_of_one_word_is_a_site(model: HFModel) -> None:
    batch = model.capture(IDS, sites="lm_head, logits")
    for a, b in zip(batch["lm_head"], batch["logits"], strict=True):
        assert torch.equal(a, b)


def test_one_layer_may_be_a_plain_number(model: HFModel) -> None:
    assert model.capture(IDS, layers=-1).sites == (Site("resid_post", 2),)


def test_a_batch_is_shown_in_one_line(model: HFModel) -> None:
    batch = model.capture(IDS, sites="resid_pre,resid_post", layers=[0, 2])
    expected = "<ActivationBatch 3 examples, 10 tokens, resid_post, resid_pre x 2 layers, float32>"
    assert repr(batch) == expected
