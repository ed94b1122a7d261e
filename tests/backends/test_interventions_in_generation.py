"""Interventions in generation, prefill and every decode step: against passes without a cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from actscope import Ablate, Add, Batch, Clamp, Patch, Span, TokenRow, wrap_model
from actscope.backends.hf import HFModel
from actscope.backends.hf.passes import PassReader
from actscope.core.errors import BadInputError, RunError
from actscope.core.protocols import GenerationParams
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

V = np.random.default_rng(0).standard_normal(32)
S = 30.0  # tiny bloom repeats its last token unless pushed hard
STEP = torch.from_numpy(S * V / np.linalg.norm(V)).float()
PROMPTS = ["a first prompt", "b", "the third one, longer"]
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "cohere", "bloom", "opt", "mixtral"]
NEW = 6


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    hf = tiny_model(request.param, vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    return wrap_model(hf, tiny_tokenizer())


def brute_force(model: HFModel, layer: int, chosen: Any) -> list[list[int]]:
    """Greedy, one full pass a token, nothing cached or padded, the block's output changed by hand.

    ``chosen(length, n_prompt)`` gives the positions to change.
    """
    twin = copy.deepcopy(model.hf)
    now: list[int] = []

    def steer(module: Any, args: Any, output: Any) -> Any:
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        moved = tensor.clone()
        moved[:, now] += STEP
        return moved if isinstance(output, torch.Tensor) else (moved, *output[1:])

    twin.get_submodule(model._map.blocks.paths[layer]).register_forward_hook(steer)
    texts: list[list[int]] = []
    for prompt in PROMPTS:
        ids = list(model.tokenizer(prompt)["input_ids"])
        n_prompt = len(ids)
        for _ in range(NEW):
            now[:] = chosen(len(ids), n_prompt)
            with torch.no_grad():
                ids.append(int(twin(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        texts.append(ids)
    return texts


CHOICES = {
    "all": lambda length, prompt: list(range(length)),
    "prompt": lambda length, prompt: list(range(prompt)),
    "response": lambda length, prompt: list(range(prompt, length)),
    "last:2": lambda length, prompt: list(range(max(prompt - 2, 0), prompt)),
    "1:": lambda length, prompt: list(range(1, prompt)),
}


@pytest.mark.parametrize("tokens", CHOICES)
def test_greedy_under_an_intervention_is_the_slow_loop(model: HFModel, tokens: str) -> None:
    want = brute_force(model, 1, CHOICES[tokens])
    with model.intervene(Add(V, layer=1, strength=S, tokens=tokens)) as applied:
        made = model.generate(PROMPTS, max_new_tokens=NEW, temperature=0)
    assert [row.token_ids.tolist() for row in made.rows] == want
    applied.check()
    rows = sum(
        len(CHOICES[tokens](len(ids) - 1, len(ids) - NEW)) for ids in want
    )  # the last token is never fed back
    (effect,) = applied.effects
    assert (effect.rows, effect.changed) == (rows, rows)
    assert effect.projection == pytest.approx(S, rel=1e-4)
    batches = 1 if model._generates_in_batches else len(PROMPTS)
    passes = batches * (1 if tokens in ("prompt", "last:2", "1:") else NEW)
    assert effect.passes == (passes - batches if tokens == "response" else passes)


def test_the_intervention_changes_texts_at_all(model: HFModel) -> None:
    plain = brute_force(model, 1, lambda length, prompt: [])
    assert plain != brute_force(model, 1, CHOICES["all"])
    assert [r.token_ids.tolist() for r in _greedy(model).rows] == plain


def _greedy(model: HFModel) -> Any:
    return model.generate(PROMPTS, max_new_tokens=NEW, temperature=0)


def test_strength_0_and_sampling_are_the_plain_texts(model: HFModel) -> None:
    params = {"max_new_tokens": 8, "temperature": 1.2, "seed": 3}
    plain = model.generate(PROMPTS, **params)
    zero = [Add(V, layer="all", strength=0.0), Add(V, layer=0, site="mlp_out", strength=0.0)]
    with model.intervene(*zero):
        again = model.generate(PROMPTS, **params)
    assert again.texts == plain.texts


def test_captured_generations_see_the_same_tokens_changed(model: HFModel) -> None:
    """The teacher-forced pass over prompt and response changes what generation changed."""
    for tokens in CHOICES:
        with model.intervene(Add(V, layer=1, strength=S, tokens=tokens)):
            made = model.generate(
                PROMPTS, max_new_tokens=NEW, temperature=0, sites=["resid_post", "logits"]
            )
        for i, row in enumerate(made.rows):
            n_prompt = len(row) - NEW
            logits = made.activations["logits"][i]
            predicted = logits[n_prompt - 1 : -1].argmax(-1).tolist()
            assert predicted == row.token_ids[n_prompt:].tolist(), tokens


def test_rows_that_ended_are_not_counted() -> None:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    free = wrap_model(hf, tiny_tokenizer())
    with free.intervene(Add(V, layer=1, strength=S)):
        made = free.generate(PROMPTS, max_new_tokens=NEW, temperature=0)
    stop = int(made.rows[1].token_ids[-NEW + 2])  # what the second text says third
    hf.generation_config.eos_token_id = stop
    model = wrap_model(hf, tiny_tokenizer())
    with model.intervene(Add(V, layer=1, strength=S)) as applied:
        made = model.generate(PROMPTS, max_new_tokens=NEW, temperature=0)
    lengths = [len(row) for row in made.rows]
    assert lengths[1] < len(model.tokenizer(PROMPTS[1])["input_ids"]) + NEW
    assert applied.effects[0].rows == sum(length - 1 for length in lengths)


def test_special_tokens_can_be_left_out() -> None:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf, tiny_tokenizer())
    marks = set(model.tokenizer.all_special_ids)
    with model.intervene(
        Add(V, layer=1, strength=1.0, tokens=Span("all", exclude_special=True))
    ) as applied:
        made = model.generate(PROMPTS, max_new_tokens=30, temperature=1.5, seed=1)
    fed = [row.token_ids[:-1].tolist() for row in made.rows]
    ordinary = sum(token not in marks for ids in fed for token in ids)
    assert applied.effects[0].rows == ordinary < sum(map(len, fed))


def test_composed_at_prefill_and_decode(model: HFModel) -> None:
    """A patched prompt position persists in the cache; new tokens are clamped."""
    source = model.capture(["z first prompt"], layers=0)
    with model.intervene(
        Patch(source, layer=0, tokens=[0, 1]), Clamp(V, layer=2, value=4.0, tokens="response")
    ) as applied:
        made = model.generate(["a first prompt"], max_new_tokens=4, temperature=0)
        forced = model.capture(Batch(tuple(made.rows)), sites=["resid_post", "logits"])
    applied.check()
    n_prompt = len(made.rows[0]) - 4
    predicted = forced["logits"][0][n_prompt - 1 : -1].argmax(-1).tolist()
    assert predicted == made.rows[0].token_ids[n_prompt:].tolist()
    assert torch.equal(forced["resid_post", 0][0][:2], source["resid_post", 0][0][:2])
    along = forced["resid_post", 2][0][n_prompt:] @ (STEP / S)
    torch.testing.assert_close(along, torch.full_like(along, 4.0), rtol=0, atol=1e-3)


def test_positions_of_a_generation_are_in_its_prompt(model: HFModel) -> None:
    with (
        pytest.raises(BadInputError, match='tokens="response"'),
        model.intervene(Add(V, layer=1, strength=1.0, tokens=[30])),
    ):
        model.generate(["short"], max_new_tokens=2)
    with (
        pytest.raises(BadInputError, match="no row for token"),
        model.intervene(Patch("short", layer=1, tokens="all")),
    ):
        model.generate(["shirt"], max_new_tokens=3)


def test_models_without_a_cache_and_models_with_a_state() -> None:
    """A model that runs the whole text again for every token changes the same tokens."""
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf, tiny_tokenizer())
    plan = Add(V, layer=1, strength=S, tokens="response")
    with model.intervene(plan) as cached:
        want = model.generate(PROMPTS, max_new_tokens=NEW, temperature=0)
    hf._supports_cache_class = True
    original = type(hf).prepare_inputs_for_generation

    def whole(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        kwargs.pop("next_sequence_length", None)
        made = original(self, input_ids, **{**kwargs, "past_key_values": None, "use_cache": False})
        mask = kwargs["attention_mask"]
        made["input_ids"] = input_ids
        made["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        made["use_cache"], made["past_key_values"] = False, None
        return made

    hf.prepare_inputs_for_generation = whole.__get__(hf)
    with model.intervene(plan) as rerun:
        got = model.generate(PROMPTS, max_new_tokens=NEW, temperature=0)
    assert [r.token_ids.tolist() for r in got.rows] == [r.token_ids.tolist() for r in want.rows]
    assert cached.effects[0].rows == len(PROMPTS) * (NEW - 1)
    assert rerun.effects[0].rows == len(PROMPTS) * sum(range(NEW))


def test_plain_generate_of_the_inner_model_is_refused_not_misread() -> None:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    model = wrap_model(hf, tiny_tokenizer())
    with (
        pytest.raises(BadInputError, match=r"model\.generate"),
        model.intervene(Add(V, layer=1, strength=S)),
    ):
        hf.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, pad_token_id=0)


def test_a_pass_that_was_not_announced_is_refused() -> None:
    batch = Batch.from_ids([[5, 6, 7], [8]], "left")
    with pytest.raises(RunError, match="not the one that was announced"):
        PassReader(batch).read(np.zeros((2, 2), np.int64), None)
    with pytest.raises(RunError, match="announced"):
        PassReader(batch).read(np.zeros((1, 3), np.int64), None)
    reader = PassReader(batch, generating=True)
    reader.read(np.zeros((2, 3), np.int64), 3)
    with pytest.raises(RunError, match="a mask of 9"):
        reader.read(np.zeros((2, 1), np.int64), 9)
    single = PassReader(batch)
    single.read(np.zeros((2, 3), np.int64), 3)
    with pytest.raises(RunError, match="announced"):
        single.read(np.zeros((2, 1), np.int64), 4)


def test_the_check_of_batched_generation_is_about_the_plain_model() -> None:
    """It runs once, with prompts of its own; an open context must not get into it."""
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf, tiny_tokenizer())
    params = GenerationParams(max_new_tokens=2, temperature=0)
    rows = [TokenRow.from_ids("a", list(range(5, 25))), TokenRow.from_ids("b", list(range(9, 29)))]
    with model.intervene(Ablate(layer=1, tokens=[15])) as applied:
        assert "_generates_in_batches" not in vars(model)
        model.generate_rows(rows, params)
    assert vars(model)["_generates_in_batches"] is True
    assert (applied.effects[0].passes, applied.effects[0].rows) == (1, 2)
