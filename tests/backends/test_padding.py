"""Rows do not depend on padding; where the model's own would, it is refused or texts run apart."""

from __future__ import annotations

from typing import Any

import coverage_models
import numpy as np
import pytest
import torch
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from actscope import Batch, MeanStrategy, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import BadInputError
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import Span
from actscope.strategies import NoneStrategy
from actscope.testing.tiny_models import DECODERS, ENCODERS, tiny_model

IDS = [[11, 12, 13, 14, 15, 16, 17, 18, 19], [21, 22, 23, 24]]
SIZE: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3}


def rwkv() -> Any:
    return RwkvForCausalLM(
        RwkvConfig(**SIZE, attention_hidden_size=32, intermediate_size=48, context_length=64)
    )


def recurrent_gemma() -> Any:
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            **SIZE, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48,
            lru_width=32, attention_window_size=16,
        )
    )  # fmt: skip


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(**SIZE, state_size=8))


def wrapped(make: Any) -> Any:
    torch.manual_seed(0)
    hf = make().eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return wrap_model(hf)


def moved(model: Any, side: str) -> float:
    """How far the shorter row is from itself alone, relative to its largest value."""
    together, alone = model.capture(Batch.from_ids(IDS, side)), model.capture([IDS[1]])
    worst = 0.0
    for site in alone.sites:
        a, b = alone[site][0], together[site][1]
        worst = max(worst, float(((a - b).abs() / a.abs().amax(-1, keepdim=True)).max()))
    return worst


@pytest.mark.parametrize("make", [rwkv, recurrent_gemma])
def test_a_recurrent_state_that_runs_over_padding_is_refused(make: Any) -> None:
    model = wrapped(make)
    with pytest.raises(BadInputError, match="padding on the left changes") as caught:
        model.capture(Batch.from_ids(IDS, "left"))
    assert "padding is on the right" in caught.value.next_step
    assert moved(model, "right") < 1e-4
    same = [ids[:4] for ids in IDS]  # nothing is padded here
    a, b = (model.capture(Batch.from_ids(same, side)) for side in ("left", "right"))
    assert all(torch.equal(x, y) for s in a.sites for x, y in zip(a[s], b[s], strict=True))


def test_a_recurrent_state_that_skips_padding_is_not() -> None:
    model = wrapped(mamba)
    assert moved(model, "left") < 1e-4 and moved(model, "right") < 1e-4


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_either_the_rows_are_the_same_or_it_is_refused(family: str) -> None:
    model = wrap_model(tiny_model(family))
    assert moved(model, "right") < 1e-4
    try:
        assert moved(model, "left") < 1e-4
    except BadInputError:
        assert family == "distilbert"  # it takes no position ids: its positions count the padding


TEXTS = [[9, 30, 12, 44, 51, 8], [60, 11, 35], [70, 9, 13, 25, 40, 22], [33], [81, 12, 15]]


def tiny(name: str) -> HFModel:
    return wrap_model(coverage_models.tiny_model(name))


def count_passes(model: HFModel) -> list[Any]:
    passes: list[Any] = []
    model.hf.register_forward_pre_hook(lambda m, args: passes.append(args))
    return passes


def test_a_model_whose_rows_move_with_padding_on_the_right_runs_one_length_at_a_time() -> None:
    model = tiny("cpmant")
    assert not model.pads_alike("right")
    passes = count_passes(model)
    together = model.capture(Batch.from_ids(TEXTS), sites=["resid_post", "logits"])
    assert len(passes) == 3  # lengths 6, 3 and 1
    assert [r.id for r in together.examples] == ["0", "1", "2", "3", "4"]
    assert [r.index for r in together.examples] == [0, 1, 2, 3, 4]
    for i, ids in enumerate(TEXTS):
        assert together.tokens(i).tolist() == ids
        alone = model.capture([ids], sites=["resid_post", "logits"])
        for site in alone.sites:
            assert torch.allclose(together[site][i], alone[site][0], rtol=1e-4, atol=1e-5)


def test_a_model_that_pads_alike_runs_once() -> None:
    model = wrap_model(tiny_model("llama"))
    assert model.pads_alike("left") and model.pads_alike("right")
    passes = count_passes(model)
    model.capture(Batch.from_ids(TEXTS, "left"), sites=["resid_post"])
    assert len(passes) == 1


def test_equal_lengths_ask_nothing() -> None:
    model = tiny("mamba")
    passes = count_passes(model)
    model.capture(Batch.from_ids([TEXTS[0], TEXTS[2]], "left"), sites=["resid_post"])
    assert len(passes) == 1


def test_pooled_rows_and_examples_without_a_span() -> None:
    model = tiny("cpmant")
    batch = Batch.from_ids(TEXTS)
    pooled = model.capture(batch, sites=["resid_post"], strategy=MeanStrategy())
    assert pooled.pooled and pooled["resid_post", 1].shape == (5, 32)
    for i, ids in enumerate(TEXTS):
        alone = model.capture([ids], sites=["resid_post"], strategy=MeanStrategy())
        assert torch.allclose(pooled["resid_post", 1][i], alone["resid_post", 1][0], atol=1e-5)
    selection = Selection((Site("resid_post", 0),), NoneStrategy(), Span.parse("[2:5)"))
    with model.open(selection) as session:
        found = session.run(batch)
    assert [f.id for f in found.failures] == ["3"]  # one token: nothing at 2
    assert [r.id for r in found.examples] == ["0", "1", "2", "4"]
    assert [r.index for r in found.examples] == [0, 1, 2, 4]
    assert np.diff(found.offsets).tolist() == [3, 1, 3, 1]
