"""The two stacks of an encoder-decoder, named apart, against Hugging Face's own outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coverage_models
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import T5Config, T5ForConditionalGeneration

from actscope import Ablate, Add, Batch, Example, load_model, wrap_model
from actscope.backends.hf import HFModel
from actscope.cli.main import main
from actscope.core.errors import (
    BadInputError,
    ExampleError,
    ModelLoadError,
    SiteUnavailableError,
    UnknownNameError,
)
from actscope.core.sites import Site
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import tiny_tokenizer

START = 1
TYPES = ["t5", "bart"]
READ = [(9, 30, 12, 44, 51, 8), (19, 31)]
TARGETS = [[11, 22, 33], [40]]


def whole(name: str) -> Any:
    hf = coverage_models.tiny_model(f"seq2seq/{name}")
    hf.config.decoder_start_token_id = START
    hf.generation_config.decoder_start_token_id = START
    return hf


def decoder(name: str) -> HFModel:
    return wrap_model(whole(name), None, stack="decoder")


def examples() -> list[Example]:
    return [
        Example(str(i), token_ids=ids, metadata={"target": target})
        for i, (ids, target) in enumerate(zip(READ, TARGETS, strict=True))
    ]


def alone(hf: Any, place: int, **more: Any) -> Any:
    """Hugging Face's own pass over one example."""
    with torch.no_grad():
        return hf(
            input_ids=torch.tensor([READ[place]]),
            decoder_input_ids=torch.tensor([[START, *TARGETS[place]]]),
            output_hidden_states=True,
            use_cache=False,
            **more,
        )


@pytest.mark.parametrize("name", TYPES)
def test_the_decoder_against_hidden_states(name: str) -> None:
    model = decoder(name)
    got = model.capture(examples(), ["resid_pre", "resid_post", "logits"])
    for place in range(2):
        assert got.tokens(place).tolist() == [START, *TARGETS[place]]
        theirs = alone(model.hf, place)
        states = theirs.decoder_hidden_states
        for layer in range(model.n_layers):
            ours = got["resid_pre", layer][place]
            assert torch.allclose(ours, states[layer][0], rtol=1e-4, atol=1e-4)
        assert torch.allclose(got["logits"][place], theirs.logits[0], rtol=1e-4, atol=1e-4)
    last = got["resid_post", -1][0]
    assert torch.allclose(model.unembed(last), got["logits"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TYPES)
def test_the_encoder_against_hidden_states(name: str) -> None:
    hf = whole(name)
    model = wrap_model(hf, None, stack="encoder")
    assert not model.causal
    got = model.capture([list(ids) for ids in READ], "resid_pre")
    for place in range(2):
        states = alone(hf, place).encoder_hidden_states
        for layer in range(model.n_layers):
            ours = got["resid_pre", layer][place]
            assert torch.allclose(ours, states[layer][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_few_blocks_are_not_mistaken_for_the_parts_of_one(layers: int, stack: str) -> None:
    """The list of a block's own parts is longer than the list of blocks."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4,
        decoder_start_token_id=START, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = wrap_model(T5ForConditionalGeneration(config).eval(), None, stack=stack)
    assert model.n_layers == layers
    got = model.capture(examples(), "resid_pre")
    for place in range(2):
        hf = model.hf
        if stack == "encoder":
            with torch.no_grad():
                ids = torch.tensor([READ[place]])
                states = hf(input_ids=ids, output_hidden_states=True).hidden_states
        else:
            states = alone(hf, place).decoder_hidden_states
        for layer in range(layers):
            ours = got["resid_pre", layer][place]
            assert torch.allclose(ours, states[layer][0], rtol=1e-4, atol=1e-4)


def test_the_stacks_are_named_apart() -> None:
    hf = whole("t5")
    names = {wrap_model(hf, None, stack=s).identity.name for s in ("encoder", "decoder")}
    assert names == {"T5ForConditionalGeneration (encoder)", "T5ForConditionalGeneration (decoder)"}


@pytest.mark.parametrize("name", TYPES)
def test_patterns_of_the_decoder_are_of_its_own_attention(name: str) -> None:
    model = decoder(name)
    eager = whole(name)
    eager.set_attn_implementation("eager")
    got = model.capture(examples(), "pattern")
    for place in range(2):
        theirs = alone(eager, place, output_attentions=True)
        for layer in range(model.n_layers):
            expected = theirs.decoder_attentions[layer][0]
            assert torch.allclose(got["pattern", layer][place], expected, atol=1e-5)
            assert not torch.equal(expected[..., :1], theirs.cross_attentions[layer][0][..., :1])


def test_the_sum_of_a_block_has_three_terms() -> None:
    """Removing what is called attn_out and mlp_out leaves the attention to the encoder's text."""
    model = decoder("t5")
    block = model.hf.decoder.block[1]
    kinds = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    crossed: list[torch.Tensor] = []
    handle = block.layer[1].EncDecAttention.register_forward_hook(
        lambda m, a, out: crossed.append(out[0].clone())
    )
    rows = [model.encode(examples()[0])]
    got = model.capture(Batch(tuple(rows)), kinds, [1])
    handle.remove()
    pre, attn, mid, mlp, post = (got[k, 1][0] for k in kinds)
    assert torch.equal(((pre + attn) + crossed[0][0]), mid)
    assert torch.equal(mid + mlp, post)
    assert crossed[0].abs().max() > 1e-3
    assert "EncDecAttention" in model.sites()[Site("resid_mid", 1)].reason


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("capture", ["live", "replay"])
def test_answers(name: str, capture: str) -> None:
    model = decoder(name)
    made = model.generate(
        [list(ids) for ids in READ], 6, temperature=0.0, sites="resid_pre", capture=capture
    )
    assert made.activations is not None
    for place, row in enumerate(made.rows):
        ids = row.token_ids.tolist()
        with torch.no_grad():
            theirs = model.hf.generate(
                torch.tensor([READ[place]]), max_new_tokens=6, do_sample=False, num_beams=1
            )
            states = model.hf(
                input_ids=torch.tensor([READ[place]]),
                decoder_input_ids=torch.tensor([ids]),
                output_hidden_states=True,
            ).decoder_hidden_states
        if name == "t5":  # the checkpoint of BART forces tokens of its own
            assert ids == theirs[0].tolist()[: len(ids)]
        assert row.encoder_ids is not None and row.encoder_ids.tolist() == list(READ[place])
        for layer in range(model.n_layers):
            ours = made.activations["resid_pre", layer][place]
            assert torch.allclose(ours, states[layer][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("capture", ["auto", "live", "replay"])
@pytest.mark.parametrize("name", TYPES)
def test_a_target_does_not_stand_before_an_answer(name: str, capture: str) -> None:
    model = decoder(name)
    options: Any = {"temperature": 0.0, "sites": "resid_post", "capture": capture}
    made = model.generate(examples(), 4, **options)
    plain = model.generate([list(ids) for ids in READ], 4, **options)
    assert [r.token_ids.tolist() for r in made.rows] == [r.token_ids.tolist() for r in plain.rows]
    for a, b in zip(made.activations["resid_post", 1], plain.activations["resid_post", 1],
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_interventions_and_gradients_of_the_decoder() -> None:
    model = decoder("t5")
    rows = model.capture(examples(), ["logits", "attn_out"])
    with model.intervene(Ablate(layer=1, site="attn_out")) as applied:
        changed = model.capture(examples(), "logits")
    block = model.hf.decoder.block[1].layer[0].SelfAttention
    handle = block.register_forward_hook(lambda m, a, out: (torch.zeros_like(out[0]), *out[1:]))
    expected = alone(model.hf, 0).logits[0]
    handle.remove()
    assert torch.allclose(changed["logits"][0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed["logits"][0], rows["logits"][0], atol=1e-3)
    assert applied.passes == 1
    vector = torch.ones(model.d_model)
    with model.intervene(Add(vector, layer=2, strength=3.0)) as applied:
        model.generate([list(READ[0])], 4, temperature=0.0)
    assert applied.passes == 4
    found = model.gradients(examples(), lambda logits, batch: logits[:, 0, 5].sum(), "resid_post")
    assert float(found["resid_post", 0][0][0].abs().max()) > 0
    assert float(found["resid_post", 0][0][1:].abs().max()) == 0  # later tokens


def test_bad_input() -> None:
    hf = whole("t5")
    with pytest.raises(ModelLoadError, match="encoder-decoder") as caught:
        wrap_model(hf)
    assert "--stack" in caught.value.next_step
    with pytest.raises(UnknownNameError, match="stack"):
        wrap_model(hf, None, stack="decoders")
    with pytest.raises(ModelLoadError, match="one stack"):
        wrap_model(tiny_model("llama"), None, stack="decoder")
    model = wrap_model(hf, None, stack="decoder")
    with pytest.raises(BadInputError, match="the encoder has nothing to read"):
        model.capture(Batch.from_ids([[START, 5, 6]]))
    with pytest.raises(ExampleError, match="target is dict"):
        model.capture([Example("a", token_ids=(4, 5), metadata={"target": {}})])
    with pytest.raises(BadInputError, match="cannot generate"):
        wrap_model(hf, None, stack="encoder").generate([[4, 5]])
    mixed = Batch((model.encode(examples()[0]), Batch.from_ids([[START]]).rows[0]))
    with pytest.raises(BadInputError, match="no text for the encoder"):
        model.capture(mixed)
    with pytest.raises(SiteUnavailableError, match="normalises or rescales"):
        decoder("bart").capture(examples(), "attn_out")


def test_from_disk_by_the_command(tmp_path: Path) -> None:
    hf = whole("t5")
    tokenizer = tiny_tokenizer()
    hf = coverage_models.tiny_model("seq2seq/t5")
    hf.resize_token_embeddings(len(tokenizer))
    hf.generation_config.decoder_start_token_id = START
    hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a cat sat", "target": "on a mat"}\n{"text": "b"}\n')
    arguments = ["--model", str(tmp_path / "model"), "--source", str(data)]
    for stack in ("encoder", "decoder"):
        out = ["--stack", stack, "--out", str(tmp_path / stack)]
        assert CliRunner().invoke(main, ["capture", *arguments, *out]).exit_code == 0
    import actscope

    encoded, decoded = (actscope.open_run(tmp_path / s) for s in ("encoder", "decoder"))
    assert encoded.tokens(0).tolist() == tokenizer("a cat sat")["input_ids"]
    target = tokenizer("on a mat")["input_ids"]
    assert decoded.tokens(0).tolist() == [START, *target]
    assert decoded.tokens(1).tolist() == [START]
    model = load_model(str(tmp_path / "model"), "cpu", stack="decoder")
    with torch.no_grad():
        theirs = model.hf(
            input_ids=torch.tensor([tokenizer("a cat sat")["input_ids"]]),
            decoder_input_ids=torch.tensor([[START, *target]]),
            output_hidden_states=True,
        ).decoder_hidden_states
    ours = decoded.get("resid_post", 0, example=0)
    assert np.allclose(np.asarray(ours), theirs[1][0].numpy(), rtol=1e-4, atol=1e-4)
    refused = CliRunner().invoke(main, ["capture", *arguments, "--out", str(tmp_path / "x")])
    assert refused.exit_code != 0 and "--stack" in refused.output
