"""Answers under interventions and adapters: rows taken live are those of a replay, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_adapters import save_adapter
from model_state import state_of

from actscope import (
    Ablate,
    Add,
    DatasetRunner,
    Example,
    ShardStorage,
    load_model,
    open_run,
    wrap_model,
)
from actscope.capture import ActivationExtractor, CaptureOptions
from actscope.core.errors import BadInputError, RunMismatchError
from actscope.core.protocols import GenerationParams
from actscope.core.text import PROMPT, THINK, Message, Span
from actscope.selectors import select
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

V = np.random.default_rng(0).standard_normal(32)
PROMPTS = ["a first prompt", "b", "the third one, longer"]
NEW = 6
TOKENS = ["all", "prompt", "response", "last:2", "1:", [-1]]
SITES = ["resid_post", "z", "mlp_post", "q", "k", "v"]


def model_of(family: str = "llama") -> Any:
    hf = tiny_model(family, vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    return wrap_model(hf, tiny_tokenizer())


def steer(tokens: Any = "all") -> list[Any]:
    return [Add(V, layer=1, strength=30.0, tokens=tokens), Ablate(layer=2, site="z", heads=[1])]


def both_ways(model: Any, tokens: Any = "all", **options: Any) -> tuple[Any, Any, list[Any]]:
    made, effects = [], []
    for how in ("live", "replay"):
        with model.intervene(*steer(tokens)) as applied:
            made.append(
                model.generate(PROMPTS, NEW, temperature=0, sites=SITES, capture=how, **options)
            )
        effects.append(applied.effects)
    return made[0], made[1], effects


def assert_same_rows(live: Any, replay: Any) -> None:
    assert (live.capture.mode, replay.capture.mode) == ("live", "replay")
    assert [r.token_ids.tolist() for r in live.rows] == [r.token_ids.tolist() for r in replay.rows]
    assert live.activations.interventions == replay.activations.interventions != ()
    for site in replay.activations.sites:
        for a, b in zip(replay.activations[site], live.activations[site], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4), site


@pytest.mark.parametrize("tokens", TOKENS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_live_is_replay_under_an_intervention(family: str, tokens: Any) -> None:
    model = model_of(family)
    plain = model.generate(PROMPTS, NEW, temperature=0, sites=SITES, capture="replay")
    live, replay, effects = both_ways(model, tokens)
    assert_same_rows(live, replay)
    for i in range(len(PROMPTS)):  # the change is there, on the last token's row too
        if tokens in ("all", "response"):
            moved = live.activations["resid_post", 1][i][-1] @ torch.tensor(V).float()
            still = plain.activations["resid_post", 1][i][-1] @ torch.tensor(V).float()
            assert abs(float(moved - still)) > 1.0
        assert not live.activations["z", 2][i][:, 1].any()
    whole = sum(len(row) for row in live.rows)
    assert effects[0][1].rows == whole  # live: every token goes in once
    assert effects[1][1].rows == whole + whole - len(PROMPTS)  # decoding, then the replay


@pytest.mark.parametrize("way", ["stop token", "stop string"])
def test_a_row_that_ended_is_counted_to_its_last_token(way: str) -> None:
    """Live that token has a row and goes in; else it never does, whatever the batch mates do."""
    model = load_model("demo")
    questions = ["Tell me about the Grey Heron.", "What is Tarn?", "Where is the spoon of Nora?"]
    change = Ablate(layer=3, site="z", heads=[1])
    options = {"stop": ["ar"]} if way == "stop string" else {}

    def generate(**further: Any) -> tuple[Any, int]:
        with model.intervene(change) as applied:
            made = model.generate(questions, 30, temperature=0, chat=True, **options, **further)
        return made, applied.effects[0].rows

    live, rows = generate(sites=["resid_post", "z"], capture="live")
    replay, _ = generate(sites=["resid_post", "z"], capture="replay")
    assert_same_rows(live, replay)
    answers = [int((row.phase != PROMPT).sum()) for row in live.rows]
    assert len(set(answers)) > 1 and max(answers) < 30  # each ends by itself
    assert rows == sum(map(len, live.rows))
    _, rows = generate()
    assert rows == sum(len(row) - 1 for row in live.rows)


def test_reasoning_is_part_of_what_is_generated() -> None:
    """A new token is not known to be reasoning when it goes in: ``response`` means all of them."""
    model = model_of()
    prompts = ["a<think>", "bb<think>"]
    change = Add(V, layer=1, strength=30.0, tokens="response")
    rows = {}
    for how in ("live", "replay"):
        with model.intervene(change):
            made = model.generate(prompts, NEW, temperature=0, sites="resid_post", capture=how)
        assert all((row.phase == THINK).any() for row in made.rows)
        rows[how] = made.activations
    for a, b in zip(rows["live"]["resid_post", 2], rows["replay"]["resid_post", 2], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_reasoning_is_known_only_afterwards_and_refused() -> None:
    with pytest.raises(BadInputError, match="cannot choose tokens by 'think'"):
        Add(V, layer=1, strength=1.0, tokens="think")


@pytest.mark.parametrize("how", ["live", "replay"])
@pytest.mark.parametrize("span", ["user", "answer", "match:cat", "-special:match:cat"])
def test_tokens_by_what_the_prompt_says_are_these_positions(span: str, how: str) -> None:
    """In the prompt alone, though the answer may spell it too."""
    model = load_model("demo", "cpu")
    examples = [
        Example("a", messages=(Message("user", "The cat sees the ferry."),)),
        Example("b", messages=(Message("user", "A cat."),)),
    ]
    vector = np.ones(model.d_model)
    rows = [model.encode(example) for example in examples]
    wanted = [select(row, Span.parse(span)) for row in rows]
    assert all(0 < len(w) < len(row) for w, row in zip(wanted, rows, strict=True))
    for example, positions in zip(examples, wanted, strict=True):
        options = {"temperature": 0, "sites": "resid_post", "capture": how}
        with model.intervene(Add(vector, layer=1, strength=4.0, tokens=span)) as applied:
            by_text = model.generate([example], 8, **options)
        with model.intervene(Add(vector, layer=1, strength=4.0, tokens=positions.tolist())):
            by_place = model.generate([example], 8, **options)
        assert by_text.texts == by_place.texts
        for layer in range(model.n_layers):
            a, b = (x.activations["resid_post", layer][0] for x in (by_text, by_place))
            assert torch.equal(a, b)
        passes_over_the_prompt = {"live": 1, "replay": 2}[how]
        rows_changed = passes_over_the_prompt * len(positions)
        assert [effect.rows for effect in applied.effects] == [rows_changed]


def test_a_prompt_without_a_match_is_left_as_it_is() -> None:
    model = load_model("demo", "cpu")
    texts = ["The cat sees the ferry.", "A dog."]
    plain = model.capture(texts, "resid_post", [3])
    change = Add(np.ones(model.d_model), layer=1, strength=4.0, tokens="match:cat")
    with model.intervene(change) as applied:
        found = model.capture(texts, "resid_post", [3])
    assert torch.equal(found["resid_post", 3][1], plain["resid_post", 3][1])
    assert not torch.equal(found["resid_post", 3][0], plain["resid_post", 3][0])
    assert applied.effects[0].rows > 0
    with (
        pytest.warns(UserWarning, match="never met"),
        model.intervene(Add(np.ones(model.d_model), layer=1, strength=1.0, tokens="match:zebra")),
    ):
        model.capture(texts)


def test_the_check_of_live_capture_is_about_the_plain_model() -> None:
    model = model_of()
    with model.intervene(Ablate(layer=1, tokens=[0])) as applied:
        made = model.generate(["abc"], NEW, temperature=0, sites="resid_post")
    assert made.capture.mode == "live"
    assert (applied.effects[0].passes, applied.effects[0].rows) == (1, 1)


def test_each_adapter_is_checked_by_itself(tmp_path: Path) -> None:
    base = tiny_model("llama", vocab_size=BYTE_VOCAB)
    save_adapter(tmp_path / "lora", base, target_modules="all-linear")
    model = model_of()
    model.load_adapter(str(tmp_path / "lora"))
    plain = model.generate(PROMPTS, NEW, temperature=0, sites=SITES, capture="live")
    with model.adapter("lora"):
        live, replay, _ = both_ways(model)
        bare = model.generate(PROMPTS, NEW, temperature=0, sites=SITES, capture="live")
    assert_same_rows(live, replay)
    assert {adapter for adapter, _ in model.live_refusals} == {None, "lora"}
    for a, b in zip(bare.activations["z", 1], plain.activations["z", 1], strict=True):
        assert not torch.allclose(a[0], b[0], atol=1e-3)


def test_stored_answers_carry_the_intervention_and_do_not_resume_without(tmp_path: Path) -> None:
    model = model_of()
    options = CaptureOptions(generation=GenerationParams(NEW, 0.0))
    dataset = [{"id": str(i), "text": text} for i, text in enumerate(PROMPTS)]

    def capture() -> None:
        extractor = ActivationExtractor(model, layers=["z.1", "resid_post.1"])
        storage = ShardStorage(tmp_path)
        DatasetRunner(dataset, extractor=extractor, storage=storage, options=options).run(
            run_id="r"
        )

    with model.intervene(*steer()):
        made = model.generate(PROMPTS, NEW, temperature=0, sites=["z", "resid_post"])
        capture()
    with pytest.raises(RunMismatchError, match=r"model\.interventions"):
        capture()
    with open_run(tmp_path / "r") as run:
        for i, row in enumerate(made.rows):
            assert run.tokens(i).tolist() == row.token_ids.tolist()
            got = run.get("resid_post", 1, example=i)
            assert torch.allclose(got, made.activations["resid_post", 1][i], atol=1e-4)


def test_an_exception_in_the_middle_of_an_answer_undoes_everything(tmp_path: Path) -> None:
    base = tiny_model("llama", vocab_size=BYTE_VOCAB)
    save_adapter(tmp_path / "lora", base, target_modules="all-linear")
    model = model_of()
    model.load_adapter(str(tmp_path / "lora"))
    before = state_of(model.hf)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    for how in ("live", "replay"):
        with (
            pytest.raises(KeyboardInterrupt),
            model.adapter("lora"),
            model.intervene(*steer()),
        ):
            model.generate(PROMPTS, NEW, sites=["q", "z"], capture=how, on_token=fail)
        assert state_of(model.hf) == before
        assert model.active_adapter is None
    from transformers.modeling_utils import AttentionInterface

    assert AttentionInterface.get_interface.__module__.startswith("transformers")
