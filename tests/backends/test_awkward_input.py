"""Inputs and models that once gave wrong numbers or raw errors, each against a plain reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import coverage_models
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Phi3Config

from actscope import Add, Batch, Example, Patch, load_model, wrap_model
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.core.generation import GenerationParams
from actscope.testing.tiny_models import tiny_model

IDS = np.random.default_rng(0).integers(8, 96, 8).tolist()


def llava(text: Any) -> Any:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=95)
    hf = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    hf.generation_config.eos_token_id = None
    return hf


def longrope(original: int) -> Phi3Config:
    factors = [1.0, 1.5, 2.0, 3.0]
    return Phi3Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        original_max_position_embeddings=original, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
                         "long_factor": factors, "original_max_position_embeddings": original},
    )  # fmt: skip


def test_a_wrappers_text_configuration_counts() -> None:
    model = wrap_model(llava(longrope(16)))
    assert model.context_length == 256
    prompt = np.random.default_rng(1).integers(8, 90, 12).tolist()
    made = model.generate([prompt], 12, temperature=0, sites="resid_post")
    assert made.capture is not None and made.capture.mode == "replay"
    assert "longrope" in made.capture.reason
    with pytest.raises(BadInputError, match="do not fit"):
        model.generate([prompt], 250)


def test_a_vision_language_checkpoint_keeps_its_head(tmp_path: Path) -> None:
    hf = llava(longrope(64))
    hf.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu")
    assert type(model.hf) is LlavaForConditionalGeneration
    with torch.no_grad():
        ids = model.hf.generate(torch.tensor([IDS]), max_new_tokens=4, do_sample=False)[0]
    made = model.generate([IDS], 4, temperature=0)
    assert made.rows[0].token_ids.tolist() == ids.tolist()


def test_queries_rotated_by_column_are_refused_beside_padding_on_the_left() -> None:
    model = wrap_model(coverage_models.tiny_model("roformer"))
    ragged = Batch.from_ids([IDS, IDS[:3]], "left")
    alone = model.capture([IDS[:3]], ["resid_post", "v"])
    beside = model.capture(ragged, ["resid_post", "v"])
    for site in alone.sites:
        assert torch.allclose(alone[site][0], beside[site][1], rtol=1e-4, atol=1e-5)
    for site in ("q", "k", "q.head[0]"):
        with pytest.raises(BadInputError, match="padding on the left changes"):
            model.capture(ragged, site)
    right = Batch.from_ids([IDS, IDS[:3]])
    a, b = model.capture(right, "q")["q", 0][1], model.capture([IDS[:3]], "q")["q", 0][0]
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "jamba"])
def test_the_plain_models_own_generate_is_refused_inside_an_intervention(name: str) -> None:
    model = wrap_model(coverage_models.tiny_model(name))
    change = Add(np.ones(model.d_model), layer=0, strength=5.0, tokens=[0], site="resid_pre")
    with model.intervene(change) as applied:
        with pytest.raises(BadInputError, match="no filled cache"):
            model.hf.generate(torch.tensor([IDS]), max_new_tokens=4, do_sample=False)
        assert [effect.rows for effect in applied.effects] == [1]  # the prompt's pass
    with model.intervene(change) as applied:
        model.generate([IDS], 4, temperature=0)
    assert [effect.rows for effect in applied.effects] == [1]


@pytest.mark.parametrize("tokens", [[-1], [-2, -1], [7], "prompt", "last:2", "1:3"])
def test_an_answered_prompt_patched_with_itself_is_unchanged(tokens: Any) -> None:
    """Positions count within the prompt on both sides, whatever the source answered."""
    model = wrap_model(tiny_model("llama"))
    made = model.generate([IDS], 6, temperature=0, sites="resid_post", layers=[1])
    plain = model.capture([IDS], "logits")["logits"][0]
    with model.intervene(Patch(made.activations, layer=1, tokens=tokens)) as applied:
        found = model.capture([IDS], "logits")["logits"][0]
    assert torch.equal(found, plain)
    assert applied.effects[0].rows > 0
    other = model.generate([IDS[::-1]], 6, temperature=0, sites="resid_post", layers=[1])
    with model.intervene(Patch(other.activations, layer=1, tokens=tokens)):
        assert not torch.equal(model.capture([IDS], "logits")["logits"][0], plain)


def test_attribution_of_a_stream_that_holds_more_is_refused() -> None:
    """A decoder that attends to an encoder's text adds what no part names."""
    hf = coverage_models.tiny_model("seq2seq/t5")
    hf.config.decoder_start_token_id = hf.generation_config.decoder_start_token_id = 1
    model = wrap_model(hf, stack="decoder")
    example = Example("a", token_ids=tuple(IDS), metadata={"target": IDS[:4]})
    with pytest.raises(SiteUnavailableError, match="holds more than embed, attn_out and mlp_out"):
        model.logit_attribution(example, 10)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    model = wrap_model(tiny_model("llama"))
    greedy = model.generate([IDS], 6, temperature=0).rows[0].token_ids.tolist()
    assert model.generate([IDS], 6, temperature=temperature).rows[0].token_ids.tolist() == greedy


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "0.7"}, {"temperature": None}, {"temperature": True}, {"top_p": "1"},
        {"top_p": None}, {"stop": 5}, {"stop": [5]}, {"max_new_tokens": 2.5}, {"n": "2"},
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_of_another_kind_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=next(iter(options)).replace("_", ".")):
        GenerationParams(**options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.capture([[1.9, 2.9]]), "neither token ids"),
        (lambda m: m.capture([[True, False]]), "neither token ids"),
        (lambda m: m.capture([{"token_ids": [1.5]}]), "no whole numbers"),
        (lambda m: m.capture([IDS], span=5), "span"),
        (lambda m: m.capture([IDS], layers=slice(0, 2)), "layers are"),
        (lambda m: m.capture([IDS], sites=5), "sites are"),
        (lambda m: m.capture([IDS], batch_tokens=0), "batch_tokens"),
        (lambda m: m.capture([IDS], batch_tokens="9"), "batch_tokens"),
        (lambda m: m.capture([IDS], chat=True), "no chat template"),
        (lambda m: m.logit_attribution(IDS, 1.5), "no such token id"),
    ],
)
def test_input_of_another_kind_is_refused(call: Any, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        call(wrap_model(tiny_model("llama")))


def test_numbers_of_other_libraries_are_token_ids() -> None:
    model = wrap_model(tiny_model("llama"))
    expected = model.capture([IDS])["resid_post", 0][0]
    for ids in (np.array(IDS), torch.tensor(IDS), np.array(IDS, dtype=np.uint8)):
        assert torch.equal(model.capture([ids])["resid_post", 0][0], expected)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "actscope", "--help"], capture_output=True, text=True, check=True
    )
    assert "capture" in done.stdout
