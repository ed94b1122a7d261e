"""Text of tokens that arrive one by one, against decoding them all at once."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import spaced_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope import load_model
from actscope.backends.hf.unfolding import Unfolding, offsets_of_ids
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

BYTES = tiny_tokenizer()
SPACED = spaced_tokenizer(["the", "cat", "sat", "on", "a", "mat", "é"])
DEMO = load_model("demo").tokenizer
FIRST_BYTE = 4


def pieces(tokenizer: Any, ids: list[int]) -> tuple[list[str], Unfolding]:
    unfolding = Unfolding(tokenizer)
    found = [unfolding.add(i) for i in ids]
    return [*found, unfolding.finish()], unfolding


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", ["bytes", "spaced", "demo"])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_the_decoded_text_whatever_the_tokens(name: str, data: Any) -> None:
    tokenizer = {"bytes": BYTES, "spaced": SPACED, "demo": DEMO}[name]
    size = BYTE_VOCAB if name == "bytes" else len(tokenizer)
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=24))
    found, unfolding = pieces(tokenizer, ids)
    shown = "".join(c for c, s in zip(unfolding.text, unfolding.shown, strict=True) if s)
    whole = decoded(tokenizer, ids)
    assert "".join(found) == shown
    # SentencePiece's byte decoder takes a character back when bytes that make none follow it.
    if name != "spaced" or "\ufffd" not in whole:
        assert shown == whole
    assert len(unfolding.offsets) == len(ids)
    assert all(0 <= a <= b <= len(unfolding.text) for a, b in unfolding.offsets)


@pytest.mark.parametrize("name", ["bytes", "spaced", "demo"])
@given(text=st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_piece_ever_holds_half_a_character(name: str, text: str) -> None:
    tokenizer = {"bytes": BYTES, "spaced": SPACED, "demo": DEMO}[name]
    try:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except UnicodeEncodeError:
        return
    whole = decoded(tokenizer, ids)
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == whole
    assert "".join(found).count("\ufffd") == whole.count("\ufffd")


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=12))
def test_offsets_of_bytes_are_the_characters_they_are_bytes_of(text: str) -> None:
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    marks = set(BYTES.all_special_ids)
    if marks & set(ids):
        return
    spelled, offsets = offsets_of_ids(BYTES, ids)
    assert spelled == text
    expected = [i for i, c in enumerate(text) for _ in c.encode()]
    assert offsets.tolist() == [[i, i + 1] for i in expected]


def test_special_tokens_stand_in_the_text_and_are_not_shown() -> None:
    ids = [1, *BYTES("ab", add_special_tokens=False)["input_ids"], 2]
    found, unfolding = pieces(BYTES, ids)
    assert found == ["", "a", "b", "", ""]
    assert unfolding.text == "<bos>ab<u>"
    assert unfolding.offsets == [(0, 5), (5, 6), (6, 7), (7, 10)]


def test_a_character_of_four_tokens_appears_with_the_last_of_them() -> None:
    ids = BYTES("a🙂b", add_special_tokens=False)["input_ids"]
    found, unfolding = pieces(BYTES, ids)
    assert found == ["a", "", "", "", "🙂", "b", ""]
    assert unfolding.offsets == [(0, 1)] + [(1, 2)] * 4 + [(2, 3)]


def test_what_never_becomes_whole_is_spelled_as_the_decoder_does() -> None:
    ids = BYTES("a🙂", add_special_tokens=False)["input_ids"][:-1]
    found, _ = pieces(BYTES, ids)
    assert found[:-1] == ["a", "", "", ""] and found[-1].startswith("\ufffd")
    assert "".join(found) == decoded(BYTES, ids)


def test_the_first_word_of_an_answer_keeps_its_space_after_a_prompt() -> None:
    ids = SPACED("the cat sat", add_special_tokens=False)["input_ids"]
    assert [SPACED.convert_ids_to_tokens(i) for i in ids] == ["▁the", "▁cat", "▁sat"]
    assert offsets_of_ids(SPACED, ids[1:])[0] == "cat sat"
    text, offsets = offsets_of_ids(SPACED, ids[1:], before=ids[:1])
    assert text == " cat sat" and offsets.tolist() == [[0, 4], [4, 8]]
