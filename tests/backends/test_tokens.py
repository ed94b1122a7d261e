"""Texts and conversations become tokens with exactly one BOS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actscope import Example, Message, wrap_model
from actscope.core.errors import BadInputError, ExampleError
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return wrap_model(tiny_model("llama", vocab_size=BYTE_VOCAB), tiny_tokenizer())


@pytest.mark.parametrize(
    "text",
    ["plain", "", " ", "naïve 🙂", "שלום", "a\0b", "\u202eabc", "<pad>", "<u>hi", "x" * 40],
)
def test_text_is_tokenised_as_the_tokenizer_does(model: Any, text: str) -> None:
    row = model.encode(Example("e", text=text))
    assert row.token_ids.tolist() == model.tokenizer(text)["input_ids"]
    assert row.special.tolist() == [i in model.tokenizer.all_special_ids for i in row.token_ids]
    assert (row.token_ids == model.tokenizer.bos_token_id).sum() == 1


def test_a_text_that_begins_with_bos_gets_no_second_one(model: Any) -> None:
    row = model.encode(Example("e", text="<bos>hello"))
    assert row.token_ids.tolist() == model.tokenizer("hello")["input_ids"]


def test_chat_has_one_bos_and_is_what_the_template_writes(model: Any) -> None:
    tokenizer = model.tokenizer
    row = model.encode(Example("e", text="hello"), chat=True)
    assert tokenizer.decode(row.token_ids) == "<bos><u>hello<a>"
    assert (row.token_ids == tokenizer.bos_token_id).sum() == 1
    turns = (Message("user", "hello"), Message("assistant", "yes"), Message("user", "why"))
    row = model.encode(Example("e", messages=turns))
    expected = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in turns],
        add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    assert row.token_ids.tolist() == list(expected)


def test_what_cannot_be_tokenised_is_an_error_of_that_example(model: Any) -> None:
    with pytest.raises(ExampleError, match="Unicode") as caught:
        model.encode(Example("e", text="a\ud800b"))
    assert caught.value.kind == "bad_text"
    with pytest.raises(ExampleError, match="no system role") as caught:
        model.encode(Example("e", messages=(Message("system", "x"), Message("user", "y"))))
    assert caught.value.kind == "chat_template"


def test_chat_without_a_template(model: Any) -> None:
    plain = wrap_model(model.hf, tiny_tokenizer(chat=False))
    with pytest.raises(BadInputError, match="no chat template"):
        plain.encode(Example("e", text="x"), chat=True)


def test_a_tokenizer_without_pad_token_gives_the_same_rows(model: Any) -> None:
    padless = wrap_model(model.hf, tiny_tokenizer(pad=False))
    assert padless.tokenizer.pad_token_id is None
    texts = ["a long enough text", "short"]
    a, b = model.capture(texts), padless.capture(texts)
    for site in a.sites:
        assert np.array_equal(a.arrays[site], b.arrays[site])


def test_identity_hashes_follow_the_tokenizer_and_not_its_use(model: Any) -> None:
    other = wrap_model(model.hf, tiny_tokenizer(chat=False))
    assert other.identity.tokenizer == model.identity.tokenizer
    assert other.identity.chat_template == "" != model.identity.chat_template
    used = tiny_tokenizer()
    used(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert wrap_model(model.hf, used).identity == model.identity


def test_a_conversation_that_the_assistant_ended_is_not_opened_again(model: Any) -> None:
    turns = (Message("user", "hello"), Message("assistant", "yes"))
    row = model.encode(Example("e", messages=turns))
    assert model.tokenizer.decode(row.token_ids) == "<bos><u>hello<u>yes"


def test_template_marks_that_are_added_and_marked_special_are_special() -> None:
    """As in Llama 3: no named special token, yet ``skip_special_tokens`` skips it."""
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<|tool|>")])
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB + 2)
    row = wrap_model(hf, tokenizer).encode(Example("e", text="a<|eot|>b<|tool|>"))
    assert row.special.tolist() == [True, False, True, False, False]
    assert tokenizer.decode(row.token_ids, skip_special_tokens=True) == "ab<|tool|>"
