"""Generation: the model's own, seeded per example, with activations of every token."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from actscope import wrap_model
from actscope.core.errors import BadInputError
from actscope.core.protocols import GenerationParams
from actscope.core.text import PROMPT, RESPONSE
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

PROMPTS = ["a first prompt", "b", "the third one, longer than the others"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def model(request: pytest.FixtureRequest) -> Any:
    hf = tiny_model(request.param, vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    return wrap_model(hf, tiny_tokenizer())


def test_greedy_is_the_models_own_greedy_loop(model: Any) -> None:
    made = model.generate(PROMPTS, max_new_tokens=6, temperature=0)
    twin = copy.deepcopy(model.hf)
    for row, text in zip(made.rows, PROMPTS, strict=True):
        ids = model.tokenizer(text)["input_ids"]
        for _ in range(6):  # plain full forwards, no cache, no padding
            with torch.no_grad():
                ids.append(int(twin(torch.tensor([ids])).logits[0, -1].argmax()))
        assert row.token_ids.tolist() == ids
        assert row.phase.tolist() == [PROMPT] * (len(ids) - 6) + [RESPONSE] * 6


def test_sampling_does_not_depend_on_batch_mates_or_order(model: Any) -> None:
    rows = [model.encode(e) for e in _examples()]
    params = GenerationParams(max_new_tokens=8, temperature=1.3, seed=5, top_p=0.95, top_k=50)
    together = {g.row.id: g.row.token_ids.tolist() for g in model.generate_rows(rows, params)}
    backwards = {
        g.row.id: g.row.token_ids.tolist() for g in model.generate_rows(rows[::-1], params)
    }
    alone = {
        g.row.id: g.row.token_ids.tolist() for r in rows for g in model.generate_rows([r], params)
    }
    assert together == backwards == alone
    other = GenerationParams(max_new_tokens=8, temperature=1.3, seed=6)
    assert together != {
        g.row.id: g.row.token_ids.tolist() for g in model.generate_rows(rows, other)
    }


def _examples() -> list[Any]:
    from actscope import Example

    return [Example(f"q{i}", text=text) for i, text in enumerate(PROMPTS)]


def test_sampling_draws_from_the_models_distribution() -> None:
    """Chi-square of 4000 first tokens against softmax(logits / T), seeds fixed."""
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf, tiny_tokenizer())
    from actscope import TokenRow

    rows = [TokenRow.from_ids(f"n{i}", [1, 70, 80]) for i in range(4000)]
    params = GenerationParams(max_new_tokens=1, temperature=0.5, seed=11, top_k=8)
    drawn = [int(g.row.token_ids[-1]) for g in model.generate_rows(rows, params)]
    with torch.no_grad():
        logits = copy.deepcopy(hf)(torch.tensor([[1, 70, 80]])).logits[0, -1].double()
    top = logits.topk(8)
    expected = torch.softmax(top.values / 0.5, 0).numpy()
    counts = np.array([drawn.count(int(i)) for i in top.indices])
    assert counts.sum() == 4000  # nothing outside the top 8
    assert chisquare(counts, expected * 4000).pvalue > 1e-3


def test_early_stop_ends_the_row_and_keeps_the_stop_token() -> None:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    free = wrap_model(hf, tiny_tokenizer())
    first = free.generate(PROMPTS, max_new_tokens=6, temperature=0)
    stop = int(first.rows[0].token_ids[-4])  # the third new token of prompt 0
    stopping = copy.deepcopy(hf)
    stopping.generation_config.eos_token_id = [stop]
    made = wrap_model(stopping, tiny_tokenizer()).generate(PROMPTS, max_new_tokens=6, temperature=0)
    for row, before in zip(made.rows, first.rows, strict=True):
        new = before.token_ids[before.phase == RESPONSE].tolist()
        end = new.index(stop) + 1 if stop in new else 6
        assert row.token_ids[row.phase == RESPONSE].tolist() == new[:end]


def test_activations_cover_prompt_and_response_row_by_row(model: Any) -> None:
    made = model.generate(PROMPTS, max_new_tokens=5, temperature=0, sites=["resid_post", "logits"])
    assert made.activations is not None
    for i, row in enumerate(made.rows):
        assert len(made.activations["resid_post", 1][i]) == len(row.token_ids)
        logits = made.activations["logits"][i]
        prompt = int((row.phase == PROMPT).sum())
        predicted = logits.argmax(-1).tolist()
        # Row i is token i: the token after it is read from row i.
        assert predicted[prompt - 1 : -1] == row.token_ids[prompt:].tolist()
    assert made.activations.phase.tolist() == np.concatenate([r.phase for r in made.rows]).tolist()


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 5000}, "fit"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": True}, "n must be a whole number"),
        ({"n": "2"}, "n must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"stop": [""]}, "stop string"),
        ({"stop": ["a", None]}, "stop string"),
        ({"capture": "later"}, "later"),
        ({"span": "user:"}, "user:"),
    ],
)
def test_parameters_without_meaning(model: Any, params: dict[str, Any], says: str) -> None:
    if model.context_length is None:
        pytest.fail("the tiny models have a context length")
    with pytest.raises(BadInputError, match=says):
        model.generate(["x"], sites="embed", **params)


@pytest.mark.parametrize("how", [{}, {"sites": "resid_post"}, {"sites": "embed", "capture": "live"},
                                 {"n": 2, "stop": ["a"]}])  # fmt: skip
def test_an_encoder_cannot_generate(how: dict[str, Any]) -> None:
    model = wrap_model(tiny_model("bert", vocab_size=BYTE_VOCAB), tiny_tokenizer())
    with pytest.raises(BadInputError, match="cannot generate") as caught:
        model.generate(["x"], **how)
    assert "causal" in str(caught.value)


@pytest.mark.parametrize("dataset", [["x"], []])
def test_a_run_with_answers_of_an_encoder_writes_nothing(tmp_path: Any, dataset: Any) -> None:
    from actscope import ActivationExtractor, DatasetRunner, ShardStorage
    from actscope.capture import CaptureOptions

    model = wrap_model(tiny_model("bert", vocab_size=BYTE_VOCAB), tiny_tokenizer())
    options = CaptureOptions(generation=GenerationParams(3))
    runner = DatasetRunner(
        dataset, None, ActivationExtractor(model), ShardStorage(tmp_path), options=options
    )
    with pytest.raises(BadInputError, match="cannot generate"):
        runner.run(run_id="r")
    assert not any(tmp_path.iterdir())


def test_the_checkpoints_generation_defaults_do_not_change_texts(model: Any) -> None:
    plain = [r.token_ids.tolist() for r in model.generate(PROMPTS, 8, temperature=0).rows]
    own = model.hf.generation_config
    model.hf.generation_config = copy.deepcopy(own)
    model.hf.generation_config.update(
        repetition_penalty=3.0, min_new_tokens=8, temperature=0.1, do_sample=True, top_k=2
    )
    edited = model.hf.generation_config
    try:
        again = model.generate(PROMPTS, 8, temperature=0)
        assert model.hf.generation_config is edited
    finally:
        model.hf.generation_config = own
    assert [r.token_ids.tolist() for r in again.rows] == plain


def test_a_recurrent_model_that_mixes_batch_mates_is_run_row_by_row() -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=BYTE_VOCAB, hidden_size=32, attention_hidden_size=32, num_hidden_layers=3,
        context_length=64, intermediate_size=48,
    )  # fmt: skip
    hf = RwkvForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf, tiny_tokenizer())
    texts = ["a short one", "another that is a good deal longer", "c"]
    together = model.generate(texts, max_new_tokens=6, temperature=0)
    for row, text in zip(together.rows, texts, strict=True):
        ids = model.tokenizer(text)["input_ids"]
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(hf(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert row.token_ids.tolist() == ids


def test_attention_models_generate_in_batches(model: Any) -> None:
    assert model.generates_in_batches


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -0.5])
def test_temperatures_that_are_no_numbers(model: Any, temperature: float) -> None:
    with pytest.raises(BadInputError, match="temperature"):
        model.generate(["x"], temperature=temperature)


def test_generating_and_loading_say_nothing(
    tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from actscope import load_model

    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    load_model(str(tmp_path)).generate(PROMPTS, max_new_tokens=2, temperature=0.9)
    assert capfd.readouterr() == ("", "")
