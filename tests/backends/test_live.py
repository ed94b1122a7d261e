"""Activations taken while decoding are those of a plain pass, up to the model's own noise."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from actscope import Batch, Site, wrap_model
from actscope.core.errors import BadInputError, ExampleError, UnknownNameError
from actscope.core.protocols import GenerationParams, Selection
from actscope.core.text import PROMPT, RESPONSE
from actscope.strategies import as_strategy
from actscope.testing.tiny_models import DECODERS, tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

PROMPTS = [[11, 12, 13, 14, 15, 16, 17, 18, 19], [31, 32], [50, 51, 52, 53, 54]]
NEW = 8


def free(family: str, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A model that never stops of its own accord."""
    hf = tiny_model(family, dtype, **config)
    hf.generation_config.eos_token_id = None
    return wrap_model(hf)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of a row relative to the row's largest value."""
    x, y = a.double(), b.double()
    size = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)  # a row of neurons may be all zeros
    return float(((x - y).abs() / size).max())


def own_noise(hf: Any, ids: list[int], prompt: int) -> float:
    """Plain Hugging Face: one pass against the same tokens decoded from the cache."""
    twin, tokens = copy.deepcopy(hf), torch.tensor([ids])
    with torch.no_grad():
        whole = twin(tokens, output_hidden_states=True, use_cache=False).hidden_states
        out = twin(tokens[:, :prompt], output_hidden_states=True, use_cache=True)
        parts = [out.hidden_states]
        for i in range(prompt, len(ids)):
            out = twin(tokens[:, i : i + 1], past_key_values=out.past_key_values,
                       output_hidden_states=True, use_cache=True)  # fmt: skip
            parts.append(out.hidden_states)
    decoded = [torch.cat(layer, 1) for layer in zip(*parts, strict=True)]
    return max(relative(a, b) for a, b in zip(whole, decoded, strict=True))


@pytest.mark.parametrize("family", DECODERS)
def test_live_is_replay_up_to_the_models_own_noise(family: str) -> None:
    model = free(family)
    sites = ["resid_post", "resid_pre", "embed"]
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites=sites, capture=how)
        for how in ("live", "replay")
    )
    assert (live.capture.mode, replay.capture.mode) == ("live", "replay")
    noise = max(
        own_noise(model.hf, row.token_ids.tolist(), len(prompt))
        for row, prompt in zip(replay.rows, PROMPTS, strict=True)
    )
    for a, b in zip(live.rows, replay.rows, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.phase.tolist() == b.phase.tolist()
    x, y = live.activations, replay.activations
    assert x.sites == y.sites and len(x.sites) == 7
    for name in ("offsets", "positions", "token_ids", "token_offsets", "phase"):
        assert np.array_equal(getattr(x, name), getattr(y, name)), name
    assert x.examples == y.examples
    worst = max(relative(a, b) for s in y.sites for a, b in zip(y[s], x[s], strict=True))
    assert noise < 1e-5 and worst <= 5 * noise + 1e-7


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "granite"])
def test_live_rows_are_hugging_faces_own_hidden_states(family: str) -> None:
    model = free(family)
    made = model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture="live")
    twin = copy.deepcopy(model.hf)
    for i, row in enumerate(made.rows):
        with torch.no_grad():
            states = twin(
                torch.tensor([row.token_ids.tolist()]), output_hidden_states=True, use_cache=False
            ).hidden_states
        for layer in range(model.n_layers - 1):
            rows = made.activations["resid_post", layer][i]
            assert len(rows) == len(row.token_ids) == len(PROMPTS[i]) + NEW
            assert relative(states[layer + 1][0], rows) < 1e-5


@pytest.mark.parametrize("family", DECODERS)
def test_every_verified_site_can_be_live(family: str) -> None:
    model = free(family)
    verified = [s for s, status in model.sites().items() if status.verified]
    sites = [str(s) for s in verified if s.layout != "blocks"]
    assert "logits" in sites and len(sites) > 30
    sites += ["z.1.head[1]", "k.1.head[0]"]
    if Site("mlp_post", 0) in verified:  # a mixture of experts has none
        sites.append("mlp_post.0.neuron[3,17]")
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites=sites, capture=how).activations
        for how in ("live", "replay")
    )
    for site in replay.sites:
        for a, b in zip(replay[site], live[site], strict=True):
            assert a.shape == b.shape
            assert relative(a, b) < 1e-4, site


def test_patterns_are_replayed_and_say_why() -> None:
    model = free("llama")
    made = model.generate(PROMPTS, NEW, temperature=0, sites=["pattern", "z"])
    assert made.capture.mode == "replay"
    assert "as long as the text" in made.capture.reason
    for i, row in enumerate(made.rows):
        assert made.activations["pattern", 1][i].shape == (4, len(row), len(row))
    with pytest.raises(BadInputError, match=r"as long as the text[\s\S]*capture='replay'"):
        model.generate(PROMPTS, NEW, temperature=0, sites="pattern", capture="live")


def test_a_module_of_the_users_own_choice_can_be_live() -> None:
    model = free("llama")
    sites = ["model.layers.1.mlp.gate_proj", "lm_head"]
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites=sites, capture=how).activations
        for how in ("live", "replay")
    )
    assert live["model.layers.1.mlp.gate_proj"][0].shape == (len(PROMPTS[0]) + NEW, 48)
    for site in replay.sites:
        for a, b in zip(replay[site], live[site], strict=True):
            assert relative(a, b) < 1e-4


def test_rows_that_stop_early_get_no_rows_of_padding() -> None:
    model = free("llama")
    whole = model.generate(PROMPTS, NEW, temperature=0)
    stops = [int(whole.rows[0].token_ids[-6]), int(whole.rows[2].token_ids[-3])]
    model.hf.generation_config.eos_token_id = stops
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture=how)
        for how in ("live", "replay")
    )
    lengths = []
    for row, before, prompt in zip(live.rows, whole.rows, PROMPTS, strict=True):
        new = before.token_ids[len(prompt) :].tolist()
        ends = [i + 1 for i, token in enumerate(new) if token in stops] or [NEW]
        assert row.token_ids.tolist() == prompt + new[: ends[0]]
        assert row.phase.tolist() == [PROMPT] * len(prompt) + [RESPONSE] * ends[0]
        lengths.append(ends[0])
    assert len(set(lengths)) > 1  # some stop before others
    for i, row in enumerate(live.rows):
        for layer in range(model.n_layers):
            a, b = live.activations["resid_post", layer][i], replay.activations["resid_post", layer]
            assert len(a) == len(row.token_ids)
            assert relative(b[i], a) < 1e-5


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_texts_do_not_depend_on_the_way_the_batch_or_the_order(temperature: float) -> None:
    model = free("qwen3")
    from actscope import Example

    examples = [Example(f"q{i}", token_ids=tuple(ids)) for i, ids in enumerate(PROMPTS)]
    texts = []
    for some in (examples, examples[::-1], *([e] for e in examples)):
        for how in ("live", "replay"):
            made = model.generate(some, NEW, temperature, 3, sites="embed", capture=how)
            texts.append({r.id: tuple(r.token_ids.tolist()) for r in made.rows})
    plain = model.generate(examples, NEW, temperature, 3)
    whole = {r.id: tuple(r.token_ids.tolist()) for r in plain.rows}
    assert all(text.items() <= whole.items() for text in texts)


def test_small_batches_give_the_same_activations_in_the_order_of_the_prompts() -> None:
    model = free("llama")
    whole = model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture="live")
    cut = model.generate(
        PROMPTS, NEW, temperature=0, sites="resid_post", capture="live", batch_tokens=12
    )
    assert [r.id for r in cut.activations.examples] == ["0", "1", "2"]
    for i in range(3):
        a, b = (x.activations["resid_post", 2][i] for x in (whole, cut))
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("span", ["all", "prompt", "response", "last:3", "2:-2"])
@pytest.mark.parametrize("strategy", ["none", "mean", "last", "exp_weighted:0.2", "custom"])
def test_spans_and_strategies_select_the_same_rows(span: str, strategy: str) -> None:
    model = free("llama")
    how = (lambda h: h[:, :5].sum(0)) if strategy == "custom" else strategy
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites=["resid_post", "embed"], strategy=how,
                       span=span, capture=way).activations
        for way in ("live", "replay")
    )  # fmt: skip
    assert live.pooled == replay.pooled == (strategy != "none")
    assert np.array_equal(live.offsets, replay.offsets)
    assert np.array_equal(live.positions, replay.positions)
    for site in replay.sites:
        assert live.arrays[site].shape == replay.arrays[site].shape
        assert live.arrays[site].dtype == replay.arrays[site].dtype
        np.testing.assert_allclose(live.arrays[site], replay.arrays[site], rtol=1e-4, atol=1e-4)


def test_an_example_without_tokens_in_the_span_is_an_error_and_the_rest_goes_on() -> None:
    model = free("llama")
    with pytest.raises(ExampleError, match="'1'"):
        model.generate(PROMPTS, 2, temperature=0, sites="embed", span="4:", capture="live")
    rows = Batch.from_ids(PROMPTS).rows
    selection = Selection(model.expand("embed"), as_strategy(None), _span("4:"))
    made, batch = model.generate_live(rows, GenerationParams(2, 0.0), selection)
    assert [f.index for f in batch.failures] == [1]
    assert [r.index for r in batch.examples] == [0, 2] and len(made) == 3


def _span(text: str) -> Any:
    from actscope import Span

    return Span.parse(text)


def test_bfloat16_within_its_own_noise() -> None:
    model = free("llama", torch.bfloat16)
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture=how)
        for how in ("live", "replay")
    )
    noise = own_noise(model.hf, replay.rows[0].token_ids.tolist(), len(PROMPTS[0]))
    x, y = live.activations, replay.activations
    worst = max(relative(a, b) for s in y.sites for a, b in zip(y[s], x[s], strict=True))
    assert 0 < worst <= 5 * noise < 0.1
    assert x.array("resid_post", 1).dtype == y.array("resid_post", 1).dtype


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_sliding_windows_are_passed(family: str) -> None:
    model = free(family, sliding_window=6)
    live, replay = (
        model.generate(PROMPTS, 20, temperature=0, sites="resid_post", capture=how).activations
        for how in ("live", "replay")
    )
    full = free(family).generate(PROMPTS, 20, temperature=0, sites="resid_post").activations
    for site in replay.sites:
        for a, b in zip(replay[site], live[site], strict=True):
            assert relative(a, b) < 1e-5
    last = replay.sites[-1]
    assert any(  # the window is narrow enough to make a difference
        x.shape != y.shape or relative(x, y) > 1e-3
        for x, y in zip(replay[last], full[last], strict=True)
    )


def test_recurrent_models_that_are_continued_one_by_one() -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    hf = RwkvForCausalLM(
        RwkvConfig(vocab_size=96, hidden_size=32, attention_hidden_size=32, num_hidden_layers=3,
                   context_length=64, intermediate_size=48)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf)
    assert not model.generates_in_batches
    live, replay = (
        model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture=how).activations
        for how in ("live", "replay")
    )
    for site in replay.sites:
        for a, b in zip(replay[site], live[site], strict=True):
            assert relative(a, b) < 1e-4


def without_cache() -> Any:
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    hf = OpenAIGPTLMHeadModel(config).eval()
    hf.generation_config.eos_token_id = None
    return wrap_model(hf)


def with_a_cache_that_is_wrong() -> Any:
    """A Llama that computes something else in the passes that read the cache."""
    hf = tiny_model("llama")
    hf.generation_config.eos_token_id = None

    def nudge(module: Any, args: Any, output: Any) -> Any:
        return output * 1.01 if output.shape[1] == 1 else output

    hf.model.layers[1].mlp.register_forward_hook(nudge)
    return wrap_model(hf)


def with_angles_that_follow_the_length() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    return free("llama", rope_parameters=rope)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (without_cache, "does not decode one token at a time"),
        (with_a_cache_that_is_wrong, "decoding moves blocks.1.resid_post"),
        (with_angles_that_follow_the_length, "rotary angles"),
    ],
)
def test_where_live_would_be_wrong_answers_are_replayed_and_the_reason_kept(
    make: Any, says: str
) -> None:
    model = make()
    made = model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", layers=[1])
    assert made.capture.mode == "replay" and says in made.capture.reason
    asked = model.generate(
        PROMPTS, NEW, temperature=0, sites="resid_post", layers=[1], capture="replay"
    )
    assert np.array_equal(made.activations.numpy("resid_post", 1),
                          asked.activations.numpy("resid_post", 1))  # fmt: skip
    with pytest.raises(BadInputError, match=says) as caught:
        model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", layers=[1], capture="live")
    assert "replay" in caught.value.next_step


def test_the_check_does_not_end_with_a_stop_token() -> None:
    """A model whose every token is a stop token would otherwise be compared on one step only."""
    model = with_a_cache_that_is_wrong()
    model.hf.generation_config.eos_token_id = list(range(96))
    made = model.generate(PROMPTS, NEW, temperature=0, sites="resid_post")
    assert made.capture.mode == "replay"


def test_hooks_are_gone_whatever_happens() -> None:
    model = free("llama")

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())

    model.generate(PROMPTS, 2, temperature=0, sites="resid_post", capture="live")
    assert hooks() == 0
    model.hf.lm_head.register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.generate(PROMPTS, 2, temperature=0, sites="resid_post", capture="live")
    assert hooks() == 1


def _fail(module: Any, args: Any, output: Any) -> None:
    raise RuntimeError("on purpose")


def test_an_open_session_that_stops_early_does_not_break_decoding() -> None:
    model = free("llama")
    plain = model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture="live")
    with model.open(Selection(model.expand("resid_pre", [0]), as_strategy(None))) as session:
        session.run(Batch.from_ids(PROMPTS))
        inside = model.generate(PROMPTS, NEW, temperature=0, sites="resid_post", capture="live")
        session.run(Batch.from_ids(PROMPTS))
    for a, b in zip(plain.rows, inside.rows, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
    for site in plain.activations.sites:
        assert np.array_equal(plain.activations.arrays[site], inside.activations.arrays[site])


def test_an_answer_may_fill_the_context_to_the_last_token(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = free("llama")
    capfd.readouterr()
    prompt = list(range(3, 51))
    made = model.generate([prompt], 16, temperature=0, sites="resid_post", capture="live")
    assert len(made.rows[0]) == model.context_length == 64
    replay = model.generate([prompt], 16, temperature=0, sites="resid_post", capture="replay")
    for site in replay.activations.sites:
        assert relative(replay.activations[site][0], made.activations[site][0]) < 1e-5
    assert capfd.readouterr() == ("", "")


def test_unknown_ways_are_named() -> None:
    with pytest.raises(UnknownNameError, match="alive"):
        free("llama").generate(PROMPTS, sites="embed", capture="alive")


def test_without_sites_nothing_is_captured() -> None:
    made = free("llama").generate(PROMPTS, 2, temperature=0)
    assert made.activations is None and made.capture is None


def test_a_text_prompt_is_live_too() -> None:
    hf = tiny_model("gpt2", vocab_size=BYTE_VOCAB)
    model = wrap_model(hf, tiny_tokenizer())
    made = model.generate(["ab", "a longer one"], 4, temperature=0, sites="resid_post")
    assert made.capture.mode == "live"
    for i, row in enumerate(made.rows):
        assert len(made.activations["resid_post", 0][i]) == len(row.token_ids)
