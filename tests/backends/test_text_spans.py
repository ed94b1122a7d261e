"""Spans that follow the text: turns of a conversation and matches of an expression."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from chat_templates import SHOUTING, STYLES, TWICE, spaced_tokenizer, with_template
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope import Example, Message, Span, load_model, wrap_model
from actscope.capture.prepare import truncated
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.text import PROMPT
from actscope.selectors import select
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

HF = tiny_model("llama", vocab_size=BYTE_VOCAB, max_position_embeddings=2048)
HF.generation_config.eos_token_id = None

# Each role speaks an alphabet of its own, which no template uses: whose a character is can be seen.
ALPHABETS = {"system": "αβγδε", "user": "жзикл", "assistant": "あいうえお"}


def words(role: str) -> st.SearchStrategy[str]:
    letters = st.text(st.sampled_from(ALPHABETS[role]), min_size=1, max_size=4)
    return st.lists(letters, min_size=1, max_size=3).map(" ".join)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    turns = draw(st.integers(1, 5))
    found = [Message("system", draw(words("system")))] if draw(st.booleans()) else []
    for i in range(turns):
        role = "user" if i % 2 == 0 else "assistant"
        space = draw(st.sampled_from(["", " ", "\n"]))
        found.append(Message(role, space + draw(words(role)) + draw(st.sampled_from(["", "\n"]))))
    return found


def kept_text(tokenizer: Any, row: Any, span: str) -> str:
    try:
        return tokenizer.decode(row.token_ids[select(row, Span.parse(span))])
    except ExampleError as error:
        assert error.kind == "empty_span", error
        return ""


@pytest.mark.parametrize("style", STYLES)
@given(turns=conversations())
@settings(max_examples=60, deadline=None)
def test_a_role_is_exactly_the_characters_of_its_contents(style: str, turns: list[Message]) -> None:
    model = wrap_model_once(style)
    row = model.encode(Example("e", messages=tuple(turns)))
    text = model.tokenizer.decode(row.token_ids)
    for role, alphabet in ALPHABETS.items():
        said = "".join(m.content for m in turns if m.role == role)
        kept = kept_text(model.tokenizer, row, role)
        letters = [c for c in kept if not c.isspace()]
        assert letters == [c for c in text if c in alphabet]  # every letter of the role's turns
        assert letters == [c for c in said if not c.isspace()]  # and the template kept them all
        assert len(kept) <= len(said)  # no more white space than the contents have


_MODELS: dict[str, Any] = {}


def wrap_model_once(style: str) -> Any:
    if style not in _MODELS:
        _MODELS[style] = wrap_model(HF, with_template(tiny_tokenizer(), STYLES[style]))
    return _MODELS[style]


CONVERSATION = (
    Message("system", "be brief"),
    Message("user", "user or assistant?"),
    Message("assistant", "user"),
    Message("user", "user"),
)


@pytest.mark.parametrize("style", STYLES)
def test_contents_that_look_like_the_template_and_like_each_other(style: str) -> None:
    model = wrap_model_once(style)
    row = model.encode(Example("e", messages=CONVERSATION))
    assert kept_text(model.tokenizer, row, "system") == "be brief"
    assert kept_text(model.tokenizer, row, "user") == "user or assistant?user"
    assert kept_text(model.tokenizer, row, "assistant") == "user"
    text = model.tokenizer.decode(row.token_ids)
    starts = select(row, Span.parse("assistant"))
    assert starts[0] > len(text[: text.index("user or assistant?")].encode())


def test_tokens_that_reach_over_a_border_belong_to_the_content() -> None:
    tokenizer = with_template(
        spaced_tokenizer(["the", "cat", "sat", "[INST]", "[/INST]"]), STYLES["brackets"]
    )
    model = wrap_model(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    row = model.encode(Example("e", messages=(Message("user", "the cat"),)))
    kept = select(row, Span.parse("user"))
    assert tokenizer.convert_ids_to_tokens(row.token_ids[kept]) == ["▁the", "▁cat"]


def test_the_reasoning_of_an_earlier_turn_is_left_out_and_the_last_ones_kept() -> None:
    model = wrap_model_once("forgetful")
    said = "<think>\nhmm\n</think>\n\nyes"
    turns = (Message("user", "q"), Message("assistant", said), Message("user", "r"))
    row = model.encode(Example("e", messages=turns))
    assert kept_text(model.tokenizer, row, "assistant") == "yes"
    row = model.encode(Example("e", messages=turns[:2]))
    assert kept_text(model.tokenizer, row, "assistant") == "hmmyes"


def test_plain_text_as_a_user_turn() -> None:
    model = wrap_model_once("chatml")
    row = model.encode(Example("e", text="hello"), chat=True)
    assert kept_text(model.tokenizer, row, "user") == "hello"
    with pytest.raises(ExampleError, match=r"no token of \d+ is left in the span system"):
        select(row, Span.parse("system"))


def test_a_system_turn_that_the_template_writes_itself_is_nobodys_content() -> None:
    model = wrap_model_once("defaulted")
    row = model.encode(Example("e", text="hello"), chat=True)
    assert "You are helpful" in model.tokenizer.decode(row.token_ids)
    assert kept_text(model.tokenizer, row, "system") == ""
    assert kept_text(model.tokenizer, row, "user") == "hello"


@pytest.mark.parametrize(
    ("template", "says"), [(SHOUTING, "changes a content"), (TWICE, "writes a content twice")]
)
def test_a_template_that_cannot_be_followed_is_an_error_of_the_example(
    template: str, says: str
) -> None:
    model = wrap_model(HF, with_template(tiny_tokenizer(), template))
    row = model.encode(Example("e", messages=CONVERSATION))
    with pytest.raises(ExampleError, match=says) as caught:
        select(row, Span.parse("user"))
    assert caught.value.kind == "no_roles"
    assert len(select(row, Span.parse("prompt"))) == len(row)


def test_examples_that_are_no_conversations() -> None:
    model = wrap_model_once("chatml")
    for example, says in [
        (Example("t", text="hello"), "plain text"),
        (Example("i", token_ids=(5, 6)), "token ids"),
    ]:
        with pytest.raises(ExampleError, match=f"{example.id}.*{says}") as caught:
            select(model.encode(example), Span.parse("user"))
        assert caught.value.kind == "no_roles" and "--chat" in caught.value.next_step


@pytest.mark.parametrize("span", ["user", "match:a", "assistant", "system"])
def test_a_tokenizer_without_offsets_is_refused_with_a_way_on(span: str) -> None:
    for tokenizer in (SlowTokenizer(), None):
        model = wrap_model(HF, tokenizer)
        with pytest.raises(BadInputError, match=f"the span {span}") as caught:
            model.capture([[5, 6, 7]], span=span)
        assert "prompt" in caught.value.next_step and "fast" in caught.value.next_step
        assert len(model.capture([[5, 6, 7]], span="answer")["resid_post", 0][0]) == 1


class SlowTokenizer:
    """A tokenizer in Python: it has no offsets to give."""

    is_fast = False
    all_special_ids = ()
    pad_token_id = 0
    chat_template = None
    bos_token_id = None
    eos_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


@given(
    text=st.text(st.sampled_from("abé🙂 \n"), min_size=1, max_size=14),
    pattern=st.sampled_from(
        ["a", "a+b", "é", "(?<=a)b", "[^a]+", "🙂.", r"\s", "^.", "b|é$", "a*"]
    ),
)
@settings(max_examples=300, deadline=None)
def test_match_keeps_the_tokens_that_spell_a_character_of_a_match(text: str, pattern: str) -> None:
    model = wrap_model_once("chatml")
    row = model.encode(Example("e", text=text))
    inside = {i for m in re.finditer(pattern, text) for i in range(m.start(), m.end())}
    of_byte = [i for i, c in enumerate(text) for _ in c.encode()]
    expected = [1 + place for place, i in enumerate(of_byte) if i in inside]  # after BOS
    if expected:
        assert select(row, Span.parse(f"match:{pattern}")).tolist() == expected
        as_ids = model.encode(Example("i", token_ids=tuple(row.token_ids[1:].tolist())))
        found = select(as_ids, Span.parse(f"match:{pattern}")).tolist()
        assert found == [i - 1 for i in expected]
    else:
        with pytest.raises(ExampleError, match="no token"):
            select(row, Span.parse(f"match:{pattern}"))


def test_match_by_words_of_a_real_vocabulary() -> None:
    model = load_model("demo")
    batch = model.capture(["The ferry leaves at noon."], span="match:f[a-z]+y", layers=[0])
    row = model.encode(Example("e", text="The ferry leaves at noon."))
    kept = batch.positions.tolist()
    assert "ferry" in model.tokenizer.decode(row.token_ids[kept])
    assert len(model.tokenizer.decode(row.token_ids[kept]).split()) == 1


def test_match_and_roles_follow_into_the_answer() -> None:
    model = wrap_model_once("chatml")
    made = model.generate(["ab"], 6, temperature=0, chat=True)
    row = made.rows[0]
    new = select(row, Span.parse("response"))
    assert len(new) == 6
    ordinary = [i for i in new if not row.special[i]]
    assert select(row, Span.parse("assistant")).tolist() == ordinary
    spelled = row.spelling().text
    prompt = model.tokenizer.decode(row.token_ids[row.phase == PROMPT])
    assert spelled.startswith(prompt) and len(spelled) > len(prompt)
    everything = select(row, Span.parse(r"match:(?s).+"))
    assert everything.tolist() == list(range(len(row)))


def test_a_truncated_prompt_keeps_its_words() -> None:
    model = wrap_model_once("chatml")
    row = model.encode(Example("e", text="one two three"))
    short = truncated(row, 6, "left")
    kept = select(short, Span.parse("match:three"))
    assert model.tokenizer.decode(short.token_ids[kept]) == "three"
    with pytest.raises(ExampleError, match="no token"):
        select(short, Span.parse("match:one"))


def test_spans_and_pooling_go_together() -> None:
    model = wrap_model_once("trimmed")
    turns = list(CONVERSATION)
    row = model.encode(Example("e", messages=CONVERSATION))
    whole = model.capture([turns], layers=[1]).numpy("resid_post", 1)
    pooled = model.capture([turns], layers=[1], strategy="mean", span="user")
    kept = select(row, Span.parse("user"))
    assert 0 < len(kept) < len(row)
    np.testing.assert_allclose(
        pooled.numpy("resid_post", 1)[0], whole[kept].mean(0), rtol=1e-5, atol=1e-6
    )


def test_answer_is_where_the_first_new_token_is_read() -> None:
    model = wrap_model_once("trimmed")
    for way in ("live", "replay"):
        made = model.generate(
            ["ab", "a longer one"], 3, temperature=0, chat=True, sites="logits", span="answer",
            capture=way,
        )  # fmt: skip
        for i, row in enumerate(made.rows):
            first = row.token_ids[row.phase != PROMPT][0]
            assert made.activations["logits"][i].argmax(-1).tolist() == [first]


@pytest.mark.parametrize("span", ["user", "assistant", "match:[a-z]", "answer"])
def test_text_spans_are_the_same_live_and_replayed(span: str) -> None:
    model = wrap_model_once("trimmed")
    live, replay = (
        model.generate(["ab", "a longer one"], 5, temperature=0, chat=True, sites="resid_post",
                       span=span, capture=way).activations
        for way in ("live", "replay")
    )  # fmt: skip
    assert np.array_equal(live.positions, replay.positions)
    for site in replay.sites:
        np.testing.assert_allclose(live.arrays[site], replay.arrays[site], rtol=1e-4, atol=1e-4)


def test_special_tokens_may_be_left_out() -> None:
    model = wrap_model(HF, tiny_tokenizer())
    row = model.encode(Example("e", text="hi"), chat=True)
    span = Span.parse("match:(?s).+", exclude_special=True)
    assert model.tokenizer.decode(row.token_ids[select(row, span)]) == "hi"
