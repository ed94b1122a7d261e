"""Gradients with respect to activations: against torch on plain HF code, and finite differences."""

from __future__ import annotations

import copy
from typing import Any

import hf_references as ref
import numpy as np
import pytest
import torch
from model_state import state_of

from actscope import Add, Batch, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.testing.tiny_models import VOCAB, tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

FAMILIES = [
    "llama", "gpt2", "gemma2", "gpt_neox", "cohere", "bloom", "opt", "granite", "mixtral",
]  # fmt: skip
_MODELS: dict[tuple[str, torch.dtype], HFModel] = {}


def model_of(family: str, dtype: torch.dtype = torch.float32) -> HFModel:
    if (family, dtype) not in _MODELS:
        _MODELS[family, dtype] = wrap_model(tiny_model(family, dtype), None)
    return _MODELS[family, dtype]


def batch_of(side: str = "right") -> Batch:
    rng = np.random.default_rng(7)
    return Batch.from_ids([rng.integers(3, VOCAB, size=n).tolist() for n in (7, 4)], side)


def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Something curved that looks at every token of every example."""
    total = logits.new_zeros(())
    for i, row in enumerate(batch.rows):
        left = batch.padding_side == "left"
        own = logits[i, -len(row) :] if left else logits[i, : len(row)]
        total = total + torch.log_softmax(own, -1)[:, 5].sum() * (i + 1)
    return total


def sites_of(family: str) -> list[str]:
    kinds = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
    return [k for k in kinds if k != "resid_mid" or family not in ref.PARALLEL]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_torchs_own_gradients_of_plain_hf_code(family: str, side: str) -> None:
    """Tensors kept by plain hooks on a copy, gradients by backward(), nothing of ours between."""
    model, batch = model_of(family), batch_of(side)
    found = model.gradients(batch, loss_of, sites=["resid_post", "attn_out", "mlp_out"])
    twin = copy.deepcopy(model.hf)
    block = ref.BLOCKS.get(family, ref.USUAL_BLOCKS)
    parts = {
        "resid_post": "",
        "attn_out": "." + ref.ATTENTION.get(family, ref.USUAL_ATTENTION),
        "mlp_out": "." + ref.MLP.get(family, ref.USUAL_MLP),
    }
    kept: dict[tuple[str, int], torch.Tensor] = {}

    def keep(key: tuple[str, int]) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) else output
            tensor.retain_grad()
            kept[key] = tensor

        return hook

    for layer in range(model.n_layers):
        for kind, part in parts.items():
            path = f"{block}.{layer}{part}"
            twin.get_submodule(path).register_forward_hook(keep((kind, layer)))
    arguments = ref.hf_arguments(batch)
    if side == "left" and family not in ("bloom",):
        arguments["position_ids"] = (arguments["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    value = loss_of(twin(**arguments, use_cache=False).logits, batch)
    value.backward()
    assert found.loss == pytest.approx(float(value.detach()), rel=1e-5)
    for (kind, layer), tensor in kept.items():
        scale = ref.SCALE.get(family, 1.0) if kind != "resid_post" else 1.0
        assert tensor.grad is not None
        theirs = ref.rows_of(tensor.grad / scale, batch)
        for mine, reference in zip(found[kind, layer], theirs, strict=True):
            assert reference.abs().max() > 1e-5
            size = float(reference.abs().max())
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5 * size)


# RMS norms and some softmaxes of HF models compute in float32 whatever the model's dtype is.
STRICT = {"gpt2": 1e-6, "gpt_neox": 1e-6, "opt": 1e-6}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mixtral"])  # no float64 experts
def test_finite_differences_in_float64(family: str) -> None:
    model, batch = model_of(family, torch.float64), batch_of()
    sites = sites_of(family)
    found = model.gradients(batch, loss_of, sites=sites, layers=1)
    rng = np.random.default_rng(0)

    def loss_at(site: str, v: Any, token: int, strength: float) -> float:
        with model.intervene(Add(v, layer=1, site=site, strength=strength, tokens=[token])):
            logits = model.capture(batch, sites="logits")["logits"]
        width = max(len(row) for row in batch.rows)
        padded = torch.stack(
            [torch.nn.functional.pad(x, (0, 0, 0, width - len(x))) for x in logits]
        )
        return float(loss_of(padded, batch))

    for site in sites:
        for token in (0, 2):
            v = rng.standard_normal(32)
            v /= np.linalg.norm(v)
            h = 1e-3 if family in STRICT else 1e-2
            a, b, c, d = (loss_at(site, v, token, k * h) for k in (-2, -1, 1, 2))
            slope = (a - 8 * b + 8 * c - d) / (12 * h)  # exact up to h^4
            ours = sum(float(g[token].double() @ torch.from_numpy(v)) for g in found[site, 1])
            size = sum(float(g[token].norm()) for g in found[site, 1])
            assert abs(slope - ours) <= STRICT.get(family, 5e-3) * size, (site, token)
            assert abs(ours) > 1e-3 * size


def test_one_name_or_the_other_is_one_gradient() -> None:
    model, batch = model_of("gemma2"), batch_of()
    found = model.gradients(batch, loss_of, sites=["resid_post", "resid_pre", "embed", "ln_final"])
    for a, b in zip(found["resid_post", 0], found["resid_pre", 1], strict=True):
        assert torch.equal(a, b)
    scale = float(np.sqrt(32.0))  # gemma multiplies embeddings before block 0
    for a, b in zip(found["embed"], found["resid_pre", 0], strict=True):
        ratio = (a.norm() / b.norm()).item()
        assert ratio == pytest.approx(scale, rel=1e-2) or ratio == pytest.approx(1.0, rel=1e-4)


def test_the_logit_difference_is_each_examples_own() -> None:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    model = wrap_model(hf, tiny_tokenizer())
    texts = ["one prompt", "two"]
    a, b = model.token_id("e"), model.token_id("x")
    loss = model.logit_difference("e", "x")
    together = model.gradients(texts, loss, layers=[0, 2])
    logits = model.capture(texts, sites="logits")["logits"]
    assert together.loss == pytest.approx(sum(float(x[-1, a] - x[-1, b]) for x in logits), rel=1e-5)
    for i, text in enumerate(texts):
        alone = model.gradients([text], loss, layers=[0, 2])
        for layer in (0, 2):
            mine, other = alone["resid_post", layer][0], together["resid_post", layer][i]
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    # after the last block only the last token still matters
    assert (together["resid_post", 2][0][:-1] == 0).all()
    left = Batch(tuple(model.encode(e) for e in _examples(texts)), "left")
    padded_left = model.gradients(left, loss, layers=0)
    for mine, other in zip(padded_left["resid_post", 0], together["resid_post", 0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def _examples(texts: list[str]) -> Any:
    from actscope.core.text import as_examples

    return as_examples(texts)


def test_inside_an_intervention_it_is_the_changed_model() -> None:
    model, batch = model_of("llama", torch.float64), batch_of()
    v = np.random.default_rng(0).standard_normal(32)
    plain = model.gradients(batch, loss_of, layers=0)
    with model.intervene(Add(v, layer=1, strength=8.0)) as applied:
        steered = model.gradients(batch, loss_of, layers=0)
    applied.check()
    assert not torch.equal(plain["resid_post", 0][0], steered["resid_post", 0][0])
    assert len(steered.values.interventions) == 1
    from actscope import Ablate

    with model.intervene(Ablate(v, layer=1, tokens=[2])):
        ablated = model.gradients(batch, loss_of, layers=1)["resid_post", 1]
        before = model.gradients(batch, loss_of, sites="mlp_out", layers=1)["mlp_out", 1]
    u = torch.from_numpy(v / np.linalg.norm(v))
    assert abs(float(ablated[0][2] @ u)) > 1e-6  # with respect to what leaves the block
    assert abs(float(before[0][2] @ u)) < 1e-12  # what is ablated cannot matter


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_nothing_is_left_on_the_model(family: str) -> None:
    model, batch = model_of(family), batch_of()
    first = next(model.hf.parameters())
    first.requires_grad_(False)
    before = state_of(model.hf)
    with torch.no_grad():
        model.gradients(batch, loss_of)
    assert state_of(model.hf) == before

    def broken(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.gradients(batch, broken)
    assert state_of(model.hf) == before
    first.requires_grad_(True)
    assert any(p.requires_grad for p in model.hf.parameters())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda logits, batch: logits, "one number"),
        (lambda logits, batch: 3.0, "one number"),
        (lambda logits, batch: logits.sum().detach(), "does not depend on the logits"),
        (lambda logits, batch: logits.sum() * float("inf"), "not finite"),
    ],
)
def test_losses_that_are_none(loss: Any, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        model_of("llama").gradients(batch_of(), loss, layers=0)


def test_other_bad_input() -> None:
    model = model_of("llama")
    with pytest.raises(SiteUnavailableError, match="read but not changed"):
        model.gradients(batch_of(), loss_of, sites="logits")
    with pytest.raises(BadInputError, match="at least one example"):
        model.gradients([], loss_of)
    with pytest.raises(BadInputError, match="100 tokens; the context holds"):
        model.gradients([[5] * 100], loss_of)
    with pytest.raises(SiteUnavailableError, match="returns no logits"):
        wrap_model(tiny_model("bert"), None).gradients(batch_of(), loss_of)
    with torch.inference_mode(), pytest.raises(BadInputError, match="inference_mode"):
        model.gradients(batch_of(), loss_of)
    with pytest.raises(BadInputError, match="no such token id"):
        model.logit_difference(5, VOCAB)
    with pytest.raises(BadInputError, match="needs a tokenizer"):
        model.logit_difference("a", 3)
    spoken = wrap_model(tiny_model("llama", vocab_size=BYTE_VOCAB), tiny_tokenizer())
    with pytest.raises(BadInputError, match="is not one token"):
        spoken.logit_difference("several tokens", 3)
    with pytest.raises(BadInputError, match="is not one token"):
        spoken.logit_difference("", 3)
