"""Rows do not depend on padding, and where the model's own would, texts run one length at a time."""

from __future__ import annotations

from typing import Any

import coverage_models
import numpy as np
import pytest
import torch

from actscope import Batch, MeanStrategy, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import Span
from actscope.strategies import NoneStrategy
from actscope.testing.tiny_models import tiny_model

TEXTS = [[9, 30, 12, 44, 51, 8], [60, 11, 35], [70, 9, 13, 25, 40, 22], [33], [81, 12, 15]]


def tiny(name: str) -> HFModel:
    return wrap_model(coverage_models.tiny_model(name))


def count_passes(model: HFModel) -> list[Any]:
    passes: list[Any] = []
    model.hf.register_forward_pre_hook(lambda m, args: passes.append(args))
    return passes


@pytest.mark.parametrize(
    ("name", "side"), [("mamba", "left"), ("rwkv", "left"), ("cpmant", "right")]
)
def test_a_model_whose_rows_move_with_padding_runs_one_length_at_a_time(
    name: str, side: str
) -> None:
    model = tiny(name)
    assert not model.pads_alike(side)
    passes = count_passes(model)
    together = model.capture(Batch.from_ids(TEXTS, side), sites=["resid_post", "logits"])
    assert len(passes) == 3  # lengths 6, 3 and 1
    assert [r.id for r in together.examples] == ["0", "1", "2", "3", "4"]
    assert [r.index for r in together.examples] == [0, 1, 2, 3, 4]
    for i, ids in enumerate(TEXTS):
        assert together.tokens(i).tolist() == ids
        alone = model.capture([ids], sites=["resid_post", "logits"])
        for site in alone.sites:
            assert torch.allclose(together[site][i], alone[site][0], rtol=1e-4, atol=1e-5)


def test_the_plain_pass_of_such_a_model_really_moves() -> None:
    """What the split is for: Hugging Face's own rows of a left-padded text differ."""
    hf = coverage_models.tiny_model("mamba")
    short = torch.tensor([TEXTS[1]])
    padded = torch.tensor([[0, 0, 0, *TEXTS[1]]])
    with torch.no_grad():
        alone = hf(input_ids=short, use_cache=False).logits
        beside = hf(input_ids=padded, use_cache=False).logits[:, 3:]
    assert (alone - beside).abs().max() > 1e-2 * alone.abs().max()


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
    model = tiny("mamba")
    batch = Batch.from_ids(TEXTS, "left")
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
