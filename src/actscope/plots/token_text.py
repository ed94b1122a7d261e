"""Tokens as a reader can see them. A token is untrusted text: any character may be in it."""

from __future__ import annotations

import unicodedata

__all__ = ["plain", "shortened", "visible"]

_MARKS = {" ": "·", "\n": "⏎", "\t": "⇥"}
# Controls, formatting (such as bidirectional overrides), surrogates, private use, unassigned,
# separators other than the plain space: none of them has a look of its own.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}


def visible(token: str) -> str:
    r"""A token with its white space shown: ``" the\n"`` becomes ``·the⏎``.

    Characters without a look of their own are written as escapes (``\u202e``), so that no token can
    turn the text around it, vanish, or break the file it is written to. The empty token is ``∅``.
    """
    return "".join(_one(character) for character in token) or "∅"


def plain(text: str) -> str:
    """A label with its spaces as they are and everything else that cannot be seen escaped."""
    return "".join(c if c == " " else _one(c) for c in text)


def shortened(text: str, longest: int) -> str:
    """A text of at most ``longest`` characters, an ellipsis in place of the rest."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _one(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    if unicodedata.category(character) in _UNSEEN:
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character
