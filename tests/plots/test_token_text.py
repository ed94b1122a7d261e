"""Whatever a token holds, it can be seen and harms nothing."""

import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.plots.token_text import plain, shortened, visible

ANYTHING = st.text(st.characters())


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        (" the", "·the"),
        ("  ", "··"),
        ("\n\n", "⏎⏎"),
        ("\tif", "⇥if"),
        ("", "∅"),
        ("\x00", "\\x00"),
        ("\r", "\\x0d"),
        ("\xa0x", "\\xa0x"),
        ("\u202egnp", "\\u202egnp"),
        ("\u200b", "\\u200b"),
        ("\ud800", "\\ud800"),
        ("<b>", "<b>"),
        ("日本", "日本"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_visible(token, seen):
    assert visible(token) == seen


def test_a_label_keeps_its_spaces():
    assert plain("two cats\n·") == "two cats⏎·"


@given(ANYTHING)
def test_nothing_unseen_is_left_and_xml_can_hold_it(text):
    for seen in (visible(text), plain(text)):
        left = {unicodedata.category(c) for c in seen if c != " "}
        assert not left & {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}
    element = ElementTree.Element("t")
    element.text = visible(text)
    assert ElementTree.fromstring(ElementTree.tostring(element)).text == visible(text)


@given(ANYTHING, st.integers(1, 20))
def test_shortened_is_a_prefix(text, longest):
    short = shortened(text, longest)
    assert len(short) <= longest
    assert short == text or (short[-1] == "…" and text.startswith(short[:-1]))
