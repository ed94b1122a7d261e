"""Tokens to change: one set for a prompt, for its teacher-forced answer, and for every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError
from actscope.core.text import PROMPT, RESPONSE, Span
from actscope.selectors import chosen_tokens, reaches_new_tokens


def row(n_prompt: int, n_new: int, special: tuple[int, ...] = ()) -> TokenRow:
    length = n_prompt + n_new
    marks = np.isin(np.arange(length), special)
    phase = np.array([PROMPT] * n_prompt + [RESPONSE] * n_new, np.uint8)
    return TokenRow("x", np.arange(length), phase, marks)


def brute_force(text: str, n_prompt: int, n_new: int) -> list[int]:
    prompt, whole = list(range(n_prompt)), list(range(n_prompt + n_new))
    if text in ("all", "prompt", "response"):
        return {"all": whole, "prompt": prompt, "response": whole[n_prompt:]}[text]
    if text.startswith("last:"):
        return prompt[-int(text[5:]) :]
    start, end = (int(x) if x else None for x in text.split(":"))
    return prompt[start:end]


spans = st.sampled_from(
    ["all", "prompt", "response", "last:1", "last:3", "1:", ":-1", "0:2", "-2:"]
)


@given(spans, st.integers(2, 9), st.integers(0, 5), st.sets(st.integers(0, 13)))
def test_spans(text: str, n_prompt: int, n_new: int, marks: set[int]) -> None:
    want = brute_force(text, n_prompt, n_new)
    if want or text == "response":
        assert chosen_tokens(row(n_prompt, n_new), Span.parse(text)).tolist() == want
    ordinary = [p for p in want if p not in marks]
    span = Span.parse(text, exclude_special=True)
    if want or text == "response":
        found = chosen_tokens(row(n_prompt, n_new, tuple(marks)), span)
        assert found.tolist() == ordinary


@given(spans, st.integers(2, 9), st.integers(0, 5))
def test_a_growing_answer_moves_no_prompt_token(text: str, n_prompt: int, n_new: int) -> None:
    """What is chosen of the prompt at prefill is what a pass over prompt and answer chooses."""
    span = Span.parse(text)
    if not brute_force(text, n_prompt, 0) and text != "response":
        return
    before = chosen_tokens(row(n_prompt, 0), span).tolist()
    after = chosen_tokens(row(n_prompt, n_new), span).tolist()
    assert [p for p in after if p < n_prompt] == before
    new = [p for p in after if p >= n_prompt]
    assert new == (list(range(n_prompt, n_prompt + n_new)) if reaches_new_tokens(span) else [])


def test_positions() -> None:
    assert chosen_tokens(row(4, 3), (0, -1, 6)).tolist() == [0, 3, 6]
    assert chosen_tokens(row(4, 0), (3, -1)).tolist() == [3]  # one token under two names
    assert not reaches_new_tokens((0, 6))
    for wrong in (4, -5):
        with pytest.raises(BadInputError, match=f"example 'x' has no token {wrong}"):
            chosen_tokens(row(4, 0), (0, wrong))
    with pytest.raises(BadInputError, match="no token in the span 9:"):
        chosen_tokens(row(4, 3), Span.parse("9:"))
