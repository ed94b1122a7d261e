"""Padding on the left: the same rows, or a refusal."""

from __future__ import annotations

from typing import Any

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

from actscope import Batch, wrap_model
from actscope.core.errors import BadInputError
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
