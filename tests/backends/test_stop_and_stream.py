"""Where answers stop, several answers to a prompt, and text while it is made."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import STYLES, spaced_tokenizer, with_template
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StoppingCriteriaList, StopStringCriteria

from actscope import Example, Message, load_model, wrap_model
from actscope.backends.hf.answer_text import AnswerText, said_by
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.protocols import GenerationParams
from actscope.core.text import RESPONSE
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

BYTES = tiny_tokenizer()
SPACED = spaced_tokenizer(["the", "cat", "sat", "on", "a", "mat", "é", ".", ","])
PROMPTS = ["a first prompt", "b", "the third one, longer than the others"]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


def answers(made: Any) -> list[list[int]]:
    return [r.token_ids[r.phase == RESPONSE].tolist() for r in made.rows]


# --- stop strings -------------------------------------------------------------------------------

QUESTIONS = ["Who lives by the harbour?", "Tell me about the Grey Heron.", "What is Tarn?"]


@pytest.mark.parametrize(
    "stop",
    [["."], [" the"], ["e"], ["ar", "el"], ["the harbour"], [", "], [".\n"], ["no such text"],
     ["\n\n"], ["ing"], ["s a"]],
)  # fmt: skip
def test_greedy_answers_stop_where_hugging_faces_own_criterion_stops(demo: Any, stop: Any) -> None:
    made = demo.generate(QUESTIONS, 40, temperature=0, chat=True, stop=stop)
    twin = copy.deepcopy(demo.hf)
    for row, answer, text in zip(made.rows, answers(made), made.texts, strict=True):
        prompt = row.token_ids[row.phase != RESPONSE].tolist()
        with torch.no_grad():
            out = twin.generate(
                torch.tensor([prompt]), max_new_tokens=40, do_sample=False,
                stopping_criteria=StoppingCriteriaList([StopStringCriteria(demo.tokenizer, stop)]),
            )  # fmt: skip
        assert answer == out[0, len(prompt) :].tolist()
        whole = demo.tokenizer.decode(answer, skip_special_tokens=True)
        cuts = [whole.find(s) for s in stop if s in whole]
        assert text == (whole[: min(cuts)] if cuts else whole)


def test_the_cases_above_stop_somewhere_and_within_tokens(demo: Any) -> None:
    free = demo.generate(QUESTIONS, 40, temperature=0, chat=True)
    stopped = demo.generate(QUESTIONS, 40, temperature=0, chat=True, stop=["ar", "el"])
    assert any(len(a) < len(b) for a, b in zip(answers(stopped), answers(free), strict=True))
    assert all(f.startswith(t) for f, t in zip(free.texts, stopped.texts, strict=True))


def test_rows_keep_the_token_that_completes_the_stop_string_and_the_text_does_not(
    demo: Any,
) -> None:
    free = demo.generate(QUESTIONS, 20, temperature=0, chat=True)
    ids = answers(free)[1]
    stop = demo.tokenizer.decode(ids[5:8])  # three tokens long
    assert free.texts[1].count(stop) == 1
    made = demo.generate(
        QUESTIONS, 20, temperature=0, chat=True, stop=stop, sites="embed", capture="live"
    )
    assert answers(made)[1] == ids[:8]
    assert made.texts[1] == free.texts[1][: free.texts[1].index(stop)]
    assert len(made.activations["embed"][1]) == len(made.rows[1])
    others = [i for i in (0, 2) if stop not in free.texts[i]]
    assert others and all(made.texts[i] == free.texts[i] for i in others)


def test_a_stop_string_may_be_a_special_token() -> None:
    answer = AnswerText(BYTES, ["<u>"])
    ids = [*BYTES("hi", add_special_tokens=False)["input_ids"], 2]
    assert "".join(answer.add(i, last=False).text for i in ids) == "hi"
    assert answer.stopped


def test_the_same_text_live_replayed_alone_and_together(demo: Any) -> None:
    def texts(prompts: Any, **how: Any) -> list[str]:
        return demo.generate(prompts, 30, 0.8, 2, chat=True, stop=[". ", "\n"], **how).texts

    examples = [Example(f"q{i}", text=q) for i, q in enumerate(QUESTIONS)]
    plain = texts(examples)
    assert plain == texts(examples, sites="embed", capture="live")
    assert plain == texts(examples, sites="embed", capture="replay")
    assert plain == [texts([e])[0] for e in examples]
    assert plain == texts(examples[::-1])[::-1]


ALPHABET = "ab\n é🙂"


@given(
    text=st.text(st.sampled_from(ALPHABET), max_size=14),
    stop=st.lists(st.text(st.sampled_from(ALPHABET), min_size=1, max_size=4), max_size=3),
    last=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_stop_strings_against_looking_at_the_whole_text_after_each_token(
    text: str, stop: list[str], last: bool
) -> None:
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    answer = AnswerText(BYTES, stop)
    pieces: list[str] = []
    for place, token in enumerate(ids):
        pieces.append(answer.add(token, last=last and place == len(ids) - 1).text)
        so_far = BYTES.decode(ids[: place + 1])
        found = [so_far.find(s) for s in stop if s in so_far]
        assert answer.stopped == bool(found)
        if found:
            assert "".join(pieces) == answer.whole.text == text[: min(found)]
            return
        assert so_far.startswith("".join(pieces))
    if last:
        assert "".join(pieces) == answer.whole.text == text
    else:  # what is held back is the beginning of a stop string, and no more
        rest = text[len("".join(pieces)) :]
        assert not rest or any(s.startswith(rest) for s in stop)


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [7]])
def test_stop_strings_that_are_none(demo: Any, stop: Any) -> None:
    if stop == "":
        stop = [stop]
    with pytest.raises(BadInputError, match="stop string"):
        demo.generate(["x"], 2, stop=stop)


def test_stop_strings_without_a_tokenizer() -> None:
    with pytest.raises(BadInputError, match="need a tokenizer") as caught:
        wrap_model(tiny_model("llama")).generate([[5, 6]], 2, stop=["a"])
    assert "wrap_model" in caught.value.next_step


# --- several answers ----------------------------------------------------------------------------


def test_samples_are_called_by_number_and_the_first_is_the_answer_alone(demo: Any) -> None:
    examples = [Example("q", text=QUESTIONS[0]), Example("r", text=QUESTIONS[1])]
    alone = demo.generate(examples, 16, 3.0, 4, chat=True)
    three = demo.generate(examples, 16, 3.0, 4, chat=True, n=3, sites="embed")
    assert [r.id for r in three.rows] == ["q#0", "q#1", "q#2", "r#0", "r#1", "r#2"]
    assert [e.id for e in three.activations.examples] == [r.id for r in three.rows]
    assert [three.texts[0], three.texts[3]] == alone.texts
    assert len(set(three.texts)) == 6
    five = demo.generate(examples[::-1], 16, 3.0, 4, chat=True, n=5)
    by_id = dict(zip((r.id for r in five.rows), five.texts, strict=True))
    assert [by_id[r.id] for r in three.rows] == three.texts  # more samples change none


def test_many_samples_draw_from_the_models_distribution() -> None:
    from scipy.stats import chisquare

    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    model = wrap_model(hf, tiny_tokenizer())
    made = model.generate([[1, 70, 80]], 1, 0.5, 11, top_k=8, n=3000, batch_tokens=20_000)
    drawn = [int(r.token_ids[-1]) for r in made.rows]
    with torch.no_grad():
        logits = copy.deepcopy(hf)(torch.tensor([[1, 70, 80]])).logits[0, -1].double()
    top = logits.topk(8)
    counts = np.array([drawn.count(int(i)) for i in top.indices])
    assert counts.sum() == 3000
    expected = torch.softmax(top.values / 0.5, 0).numpy() * 3000
    assert chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("n", "temperature", "says"), [(0, 1.0, "n must be"), (-1, 1.0, "n must"), (2, 0.0, "greedy")]
)
def test_numbers_of_samples_that_mean_nothing(
    demo: Any, n: int, temperature: float, says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        demo.generate(["x"], 2, temperature, n=n)


# --- conversations ------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_several_turns_are_continued_as_the_template_writes_them(style: str) -> None:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB, max_position_embeddings=512)
    hf.generation_config.eos_token_id = None
    tokenizer = with_template(tiny_tokenizer(), STYLES[style])
    model = wrap_model(hf, tokenizer)
    turns = [("user", "hello"), ("assistant", "yes"), ("user", "why")]
    example = Example("e", messages=tuple(Message(*turn) for turn in turns))
    made = model.generate([example], 5, temperature=0)
    ids = list(
        tokenizer.apply_chat_template(
            [{"role": r, "content": c} for r, c in turns], add_generation_prompt=True,
            return_dict=False,
        )
    )  # fmt: skip
    assert ids.count(tokenizer.bos_token_id) == STYLES[style].count("bos_token")
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))
    assert made.rows[0].token_ids.tolist() == ids


# --- while it is made ---------------------------------------------------------------------------


def streamed(model: Any, prompts: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    told: dict[str, list[tuple[int, str]]] = {}

    def listen(identity: str, token: int, text: str) -> None:
        told.setdefault(identity, []).append((token, text))

    return model.generate(prompts, *args, on_token=listen, **options), told


@pytest.mark.parametrize("options", [{}, {"stop": ["."]}, {"sites": "embed", "capture": "live"},
                                     {"n": 2}, {"batch_tokens": 60}])  # fmt: skip
def test_every_new_token_is_told_once_in_order_and_pieces_join(demo: Any, options: Any) -> None:
    made, told = streamed(demo, QUESTIONS, 30, 0.9, 5, chat=True, **options)
    for row, answer, text in zip(made.rows, answers(made), made.texts, strict=True):
        assert [token for token, _ in told[row.id]] == answer
        assert "".join(piece for _, piece in told[row.id]) == text
    assert len(told) == len(made.rows)
    plain = demo.generate(QUESTIONS, 30, 0.9, 5, chat=True, **options)
    assert plain.texts == made.texts


@pytest.mark.parametrize("seed", range(4))
def test_pieces_join_for_bytes_that_may_make_no_character(seed: int) -> None:
    """A random model writes random bytes: hardly any of them are whole characters."""
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = [7]
    model = wrap_model(hf, tiny_tokenizer())
    made, told = streamed(model, PROMPTS, 20, 1.5, seed)
    plain = model.generate(PROMPTS, 20, 1.5, seed)
    for row, answer, text in zip(made.rows, answers(made), made.texts, strict=True):
        assert "".join(piece for _, piece in told[row.id]) == text
        assert text == model.tokenizer.decode(answer, skip_special_tokens=True)
    assert made.texts == plain.texts


@given(text=st.text(min_size=1, max_size=16))
@settings(max_examples=150, deadline=None)
def test_pieces_are_whole_characters(text: str) -> None:
    for tokenizer in (BYTES, SPACED):
        try:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except UnicodeEncodeError:
            continue
        answer = AnswerText(tokenizer)
        pieces = [answer.add(t, last=i == len(ids) - 1).text for i, t in enumerate(ids)]
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(pieces) == whole == said_by(tokenizer, ids, thinking=False)[0].text
        assert sum(p.count("\ufffd") for p in pieces) == whole.count("\ufffd")


def test_a_token_is_told_before_the_next_one_is_made(demo: Any) -> None:
    steps: list[int] = []
    handle = demo.hf.lm_head.register_forward_hook(lambda *_: steps.append(0))
    try:
        seen: list[int] = []
        demo.generate(
            [QUESTIONS[0]], 6, 0.9, chat=True, on_token=lambda *_: seen.append(len(steps))
        )
    finally:
        handle.remove()
    first = seen[0]
    assert [n - first for n in seen] == list(range(len(seen))) and len(seen) > 1


def test_what_a_listener_raises_ends_the_generation(demo: Any) -> None:
    def stop(identity: str, token: int, text: str) -> None:
        raise KeyError(identity)

    with pytest.raises(KeyError, match="'0'"):
        demo.generate([QUESTIONS[0]], 6, chat=True, on_token=stop)
    assert demo.generate([QUESTIONS[0]], 2, chat=True).texts


def test_without_a_tokenizer_tokens_are_told_all_the_same() -> None:
    model = wrap_model(tiny_model("llama"))
    made, told = streamed(model, [[5, 6, 7]], 4, 0.0)
    assert [t for t, _ in told["0"]] == answers(made)[0]
    assert made.texts == [""] and {piece for _, piece in told["0"]} == {""}


def test_parameters_by_themselves() -> None:
    assert GenerationParams(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    assert GenerationParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_an_option_that_is_none_is_named_with_the_closest(demo: Any) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'top_p'"):
        demo.generate(["x"], 2, topp=0.5)
