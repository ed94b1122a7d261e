"""Direct logit attribution on models: against weights read by hand, for every family."""

from __future__ import annotations

from typing import Any

import hf_references as ref
import numpy as np
import pytest
import torch
from model_state import state_of
from torch import nn

import actscope
from actscope import Add, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.testing.tiny_models import DECODERS, VOCAB, tiny_model

IDS = [5, 60, 7, 33, 21, 8]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CENTRED = {"gpt2", "phi", "gpt_neox", "falcon", "bloom", "opt", "cohere", "cohere2"}
FACTOR = {"cohere": 0.0625, "cohere2": 0.0625, "granite": 1 / 8.0}
_MODELS: dict[tuple[str, str], HFModel] = {}


def model_of(family: str, dtype: str = "float32") -> HFModel:
    if (family, dtype) not in _MODELS:
        _MODELS[family, dtype] = wrap_model(tiny_model(family, DTYPES[dtype]), None)
    return _MODELS[family, dtype]


def by_hand(model: HFModel, family: str, position: int, a: int, b: int | None) -> dict[str, float]:
    """The definition in float64, with weights found by their names in each family's code."""
    norm: Any = model.hf.get_submodule(ref.FINAL_NORM.get(family, ref.USUAL_FINAL_NORM))
    gain = norm.weight.detach().double().numpy()
    gain = gain + 1 if family.startswith("gemma") else gain
    head: Any = model.hf.get_output_embeddings()
    unembed = head.weight.detach().double().numpy() * FACTOR.get(family, 1.0)
    w = unembed[a] - (0 if b is None else unembed[b])
    got = model.capture([IDS], sites=["resid_pre", "attn_out", "mlp_out", "resid_post"])
    parts = {"embed": got["resid_pre", 0][0]}
    for layer in range(model.n_layers):
        parts |= {f"{k}.{layer}": got[k, layer][0] for k in ("attn_out", "mlp_out")}
    x = got["resid_post", -1][0][position].double().numpy()
    centre = (lambda v: v - v.mean()) if family in CENTRED else (lambda v: v)
    eps = next(getattr(norm, n) for n in ("eps", "variance_epsilon") if hasattr(norm, n))
    scale = 1 / np.sqrt((centre(x) ** 2).mean() + eps)
    return {
        name: float(scale * (w * gain) @ centre(part[position].double().numpy()))
        for name, part in parts.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", DECODERS)
def test_parts_are_those_of_the_definition_and_sum_to_the_logits(family: str, dtype: str) -> None:
    model = model_of(family, dtype)
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    for position, a, b in [(-1, 10, 11), (2, 40, None)]:
        found = model.logit_attribution(IDS, a, b, position=position)
        want = by_hand(model, family, position, a, b)
        assert list(found.names) == list(want)
        size = max(abs(v) for v in want.values())
        for name, value in want.items():
            assert found[name] == pytest.approx(value, abs=tolerance * size), name
        total = found.contributions.sum() + found.rest + found.bias
        assert total == pytest.approx(found.value, abs=tolerance * max(size, 1))
        assert abs(found.rest) <= tolerance * max(size, 1)
        assert found.error == pytest.approx(found.value - total, abs=1e-9)


@pytest.mark.parametrize("family", [f for f in DECODERS if not f.startswith("gemma2")])
def test_the_number_is_the_models_own_logit(family: str) -> None:
    model = model_of(family)
    logits = ref.hf_forward(model.hf, actscope.Batch.from_ids([IDS])).logits[0, -1]
    found = model.logit_attribution(IDS, 10, 11)
    assert found.value == pytest.approx(float(logits[10] - logits[11]), abs=1e-5)
    assert found.note == ""


def test_a_soft_cap_is_attributed_before_it_and_says_so() -> None:
    model = model_of("gemma2")
    twin = ref.module_outputs(model.hf, ["lm_head"], actscope.Batch.from_ids([IDS]))["lm_head"]
    found = model.logit_attribution(IDS, 10, 11)
    assert found.value == pytest.approx(float(twin[0, -1, 10] - twin[0, -1, 11]), abs=1e-5)
    assert "before the soft-cap" in found.note and "before the soft-cap" in str(found)


def test_an_intervention_shows_up_as_the_rest() -> None:
    model = model_of("llama")
    v = np.random.default_rng(0).standard_normal(32)
    plain = model.logit_attribution(IDS, 10, 11)
    with model.intervene(Add(v, layer=2, strength=5.0)):
        steered = model.logit_attribution(IDS, 10, 11)
    w = (model.hf.lm_head.weight[10] - model.hf.lm_head.weight[11]).detach().double().numpy()
    gain = model.hf.model.norm.weight.detach().double().numpy()
    added = steered.scale * float((w * gain) @ (5.0 * v / np.linalg.norm(v)))
    assert steered.rest == pytest.approx(added, rel=1e-4) and abs(added) > 1e-2
    assert abs(plain.rest) < 1e-5
    for name in plain.names:  # the parts themselves are as they were; only the scale is another
        assert steered[name] / steered.scale == pytest.approx(plain[name] / plain.scale, rel=1e-3)


class _Curved(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return torch.sinh(super().forward(x))


def test_a_curved_unembedding_is_refused() -> None:
    hf = tiny_model("llama")
    head = _Curved(32, VOCAB, bias=False)
    head.weight = hf.lm_head.weight
    hf.lm_head = head
    with pytest.raises(SiteUnavailableError, match="not linear in ln_final"):
        wrap_model(hf, None).logit_attribution(IDS, 10, 11)


class _OtherNorm(nn.Module):
    """Ignores scale, as a norm does, and is not linear at a fixed one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x) * (x.abs() / x.abs().mean(-1, keepdim=True)) ** 0.5


def test_another_norm_is_refused() -> None:
    hf = tiny_model("llama")
    hf.model.norm = _OtherNorm()
    with pytest.raises(SiteUnavailableError, match="no verified final norm"):
        wrap_model(hf, None).logit_attribution(IDS, 10, 11)


def test_bad_input() -> None:
    model = model_of("llama")
    before = state_of(model.hf)
    for position in (6, -7):
        with pytest.raises(BadInputError, match=f"no token {position}"):
            model.logit_attribution(IDS, 10, position=position)
    with pytest.raises(BadInputError, match="no such token id"):
        model.logit_attribution(IDS, VOCAB)
    with pytest.raises(BadInputError, match="one prompt at a time"):
        model.logit_attribution([IDS, IDS], 10)
    with pytest.raises(SiteUnavailableError, match="no verified final norm and unembedding"):
        wrap_model(tiny_model("bert"), None).logit_attribution(IDS, 10)
    assert state_of(model.hf) == before


def test_texts_and_token_texts() -> None:
    model = actscope.load_model("demo")
    text = "The ferry leaves at"
    logits = model.capture([text], sites="logits")["logits"][0][-1]
    best = int(logits.argmax())
    found = model.logit_attribution(text, model.tokenizer.decode([best]), "e")
    want = float(logits[best] - logits[model.token_id("e")])
    assert found.value == pytest.approx(want, abs=1e-4) and want > 0
    assert len(found.names) == 1 + 2 * model.n_layers
