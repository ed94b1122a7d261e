"""Spans against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.core.activations import TokenRow
from actscope.core.errors import ExampleError, UnknownNameError
from actscope.core.text import PROMPT, RESPONSE, Span
from actscope.selectors import select


def row(phase, special):
    n = len(phase)
    return TokenRow("x", np.arange(n), np.array(phase, np.uint8), np.array(special, np.bool_))


def by_hand(tokens, span):
    kept = []
    for i in range(len(tokens)):
        if span.kind == "prompt" and tokens.phase[i] != PROMPT:
            continue
        if span.kind == "response" and tokens.phase[i] != RESPONSE:
            continue
        if span.kind == "last" and i < len(tokens) - span.start:
            continue
        if span.kind == "range" and i not in list(range(len(tokens)))[span.start : span.end]:
            continue
        if span.exclude_special and tokens.special[i]:
            continue
        kept.append(i)
    return kept


bound = st.none() | st.integers(-12, 12)
spans = st.one_of(
    st.sampled_from(["all", "prompt", "response"]),
    st.integers(1, 12).map(lambda k: f"last:{k}"),
    st.tuples(bound, bound).map(lambda b: ":".join("" if x is None else str(x) for x in b)),
)
rows = st.lists(
    st.tuples(st.sampled_from([PROMPT, RESPONSE]), st.booleans()), min_size=1, max_size=10
)


@given(tokens=rows, text=spans, exclude=st.booleans())
def test_every_span_is_what_it_says(tokens, text, exclude):
    tokens = row(*zip(*tokens, strict=True))
    span = Span.parse(text, exclude_special=exclude)
    expected = by_hand(tokens, span)
    if expected:
        kept = select(tokens, span)
        assert kept.dtype == np.int64 and kept.tolist() == expected
    else:
        with pytest.raises(ExampleError) as caught:
            select(tokens, span)
        assert caught.value.kind == "empty_span"


ROW = row([PROMPT] * 4 + [RESPONSE] * 2, [True, False, False, True, False, True])


@pytest.mark.parametrize(
    ("text", "exclude", "kept"),
    [
        ("all", False, [0, 1, 2, 3, 4, 5]),
        ("all", True, [1, 2, 4]),
        ("prompt", False, [0, 1, 2, 3]),
        ("response", True, [4]),
        ("last:2", False, [4, 5]),
        ("last:2", True, [4]),
        ("last:99", False, [0, 1, 2, 3, 4, 5]),
        ("[1:3)", False, [1, 2]),
        ("-2:", False, [4, 5]),
        (":-5", False, [0]),
        ("-99:99", False, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_examples(text, exclude, kept):
    assert select(ROW, Span.parse(text, exclude_special=exclude)).tolist() == kept


@pytest.mark.parametrize(
    ("text", "exclude"), [("3:3", False), ("6:", False), ("4:2", False), ("last:1", True)]
)
def test_an_empty_span_is_an_error_of_that_example(text, exclude):
    with pytest.raises(ExampleError, match=r"'x'.*no token of 6"):
        select(ROW, Span.parse(text, exclude_special=exclude))


def test_a_response_that_is_not_there():
    with pytest.raises(ExampleError, match="response"):
        select(row([PROMPT] * 3, [False] * 3), Span("response"))


def test_no_such_span():
    with pytest.raises(UnknownNameError, match="prompts"):
        select(ROW, Span("prompts"))


def test_the_row_is_left_alone():
    kept = select(ROW, Span())
    kept[:] = 0
    assert select(ROW, Span()).tolist() == list(range(6))
