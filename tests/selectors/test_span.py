"""Spans against brute force."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, ExampleError, UnknownNameError
from actscope.core.spelling import ROLES, Spelling
from actscope.core.text import PHASE_NAMES, PROMPT, RESPONSE, THINK, Span
from actscope.selectors import select


def row(phase, special, spelling=None):
    n = len(phase)
    ids, phase, special = np.arange(n), np.array(phase, np.uint8), np.array(special, np.bool_)
    return TokenRow("x", ids, phase, special, spelling and (lambda: spelling))


def by_hand(tokens, span):
    """One token after the other, one character after the other."""
    kept = []
    spelling = tokens.spelling()
    matched = set()
    if span.kind == "match":
        for found in re.finditer(span.pattern, spelling.text):
            matched |= set(range(*found.span()))
    last_of_prompt = max((i for i in range(len(tokens)) if tokens.phase[i] == PROMPT), default=-1)
    for i in range(len(tokens)):
        if span.kind in PHASE_NAMES and PHASE_NAMES[tokens.phase[i]] != span.kind:
            continue
        if span.kind == "answer" and i != last_of_prompt:
            continue
        if span.kind in ROLES[1:] and ROLES[spelling.roles[i]] != span.kind:
            continue
        if span.kind == "match" and not matched & set(range(*spelling.offsets[i])):
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
    st.sampled_from(
        ["all", "prompt", "response", "think", "answer", "system", "user", "assistant"]
    ),
    st.sampled_from(["match:a", "match:b+", "match:^a", "match:.$", "match:c*", "match:-special"]),
    st.integers(1, 12).map(lambda k: f"last:{k}"),
    st.tuples(bound, bound).map(lambda b: ":".join("" if x is None else str(x) for x in b)),
)


@st.composite
def rows(draw):
    """Tokens that spell stretches of a text: empty, over one another, out of order."""
    text = draw(st.text(st.sampled_from("abc\n"), max_size=8))
    n = draw(st.integers(1, 10))
    several = {"min_size": n, "max_size": n}
    place = st.integers(0, len(text))
    ends = draw(st.lists(st.tuples(place, place).map(sorted), **several))
    spelling = Spelling(
        text,
        np.array(ends, np.int64),
        np.array(draw(st.lists(st.integers(0, 3), **several)), np.uint8),
    )
    phase = draw(st.lists(st.sampled_from([PROMPT, RESPONSE, THINK]), **several))
    return row(phase, draw(st.lists(st.booleans(), **several)), spelling)


@settings(max_examples=500)
@given(tokens=rows(), text=spans, exclude=st.booleans())
def test_every_span_is_what_it_says(tokens, text, exclude):
    span = Span.parse(text, exclude_special=exclude)
    expected = by_hand(tokens, span)
    if expected:
        kept = select(tokens, span)
        assert kept.dtype == np.int64 and kept.tolist() == expected
    else:
        with pytest.raises(ExampleError) as caught:
            select(tokens, span)
        assert caught.value.kind == "empty_span"


@given(text=spans, exclude=st.booleans())
def test_a_span_reads_back_what_it_is_called(text, exclude):
    span = Span.parse(text, exclude_special=exclude)
    assert Span.parse(str(span)) == span


@given(a=st.tuples(spans, st.booleans()), b=st.tuples(spans, st.booleans()))
def test_two_spans_are_called_alike_only_if_they_are_one(a, b):
    one, other = (Span.parse(t, exclude_special=e) for t, e in (a, b))
    assert (str(one) == str(other)) == (one == other)


@given(tokens=rows(), keep=st.data(), text=spans)
def test_fewer_tokens_keep_what_they_spell(tokens, keep, text):
    mask = np.array(keep.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))
    if not mask.any():
        return
    fewer = tokens.take(mask)
    assert fewer.token_ids.tolist() == np.flatnonzero(mask).tolist()
    span = Span.parse(text)
    try:
        assert select(fewer, span).tolist() == by_hand(fewer, span)
    except ExampleError:
        assert by_hand(fewer, span) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [("match:(", "unterminated"), ("match:", "needs an expression"), ("match:a{2,1}", "repeat")],
)
def test_expressions_that_are_none(text, says):
    with pytest.raises(BadInputError, match=says):
        Span.parse(text)


@pytest.mark.parametrize("text", ["users", "match", "match :a", "last", "last:-1", "asistant", ""])
def test_words_that_are_no_span(text):
    with pytest.raises(UnknownNameError) as caught:
        Span.parse(text)
    assert "match:REGEX" in str(caught.value)


def test_a_row_of_ids_spells_nothing():
    for text in ("user", "match:a"):
        with pytest.raises(ExampleError, match="token ids alone") as caught:
            select(row([PROMPT], [False]), Span.parse(text))
        assert caught.value.kind == "no_text"


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
