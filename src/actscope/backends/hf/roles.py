"""Whose words are these? The content of each turn, found in what a chat template wrote.

Every content is replaced by a word of its own and the template is rendered again: what stands
between those words is the template's. The conversation's real rendering must then be exactly those
pieces with the contents in between (as they are, or stripped, as many templates do), else the roles
are unknown. No mark of any template is known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from actscope.core.errors import ExampleError
from actscope.core.spelling import ROLES
from actscope.core.text import Message

__all__ = ["content_ranges"]

_TAGS = re.compile(r"(</?think>)")

Render = Callable[[Sequence[Message]], str]
Range = tuple[int, int, int]
"""First character, one past the last, and the number of the role in ``ROLES``."""


def content_ranges(messages: Sequence[Message], rendered: str, render: Render) -> list[Range]:
    """Where the contents of a conversation stand in its rendering.

    A content that the template leaves out has no range. Reasoning tags within a content stay where
    they are, since templates treat what they enclose by itself.

    Args:
        messages: The turns.
        rendered: What the template made of them.
        render: The template.

    Raises:
        ExampleError: kind ``no_roles``, the rendering is not the template's pieces around the
            contents.
    """
    marked, contents, roles = _marked(messages, rendered)
    pieces = [render(marked)]
    if contents:
        pieces = re.split(f"({'|'.join(contents)})", pieces[0])
    order = pieces[1::2]
    if len(set(order)) < len(order):
        raise _unknown("the template writes a content twice")
    between = pieces[::2]
    places = _fitted(rendered, between, [contents[word] for word in order])
    if places is None:
        raise _unknown("the template changes a content, or itself with a content")
    return [(start, end, roles[word]) for word, (start, end) in zip(order, places, strict=True)]


def _marked(
    messages: Sequence[Message], rendered: str
) -> tuple[list[Message], dict[str, str], dict[str, int]]:
    """The turns with a word for each content, the contents by word, and their roles."""
    seed = 0
    while f"Qz{seed}x" in rendered:
        seed += 1
    marked: list[Message] = []
    contents: dict[str, str] = {}
    roles: dict[str, int] = {}
    for message in messages:
        written = ""
        for part in _TAGS.split(message.content):
            if not part.strip() or _TAGS.fullmatch(part):
                written += part
                continue
            word = f"Qz{seed}x{len(contents)}kV"
            contents[word] = part
            roles[word] = ROLES.index(message.role) if message.role in ROLES else 0
            written += word
        marked.append(Message(message.role, written))
    return marked, contents, roles


def _fitted(text: str, between: list[str], contents: list[str]) -> list[tuple[int, int]] | None:
    """Bounds of each content such that the text is exactly pieces and contents in turn, or None.

    A content is taken as it is, or stripped on either side or both.
    """
    ways: list[tuple[int, list[tuple[int, int]]]] = (
        [(len(between[0]), [])] if text.startswith(between[0]) else []
    )
    for content, piece in zip(contents, between[1:], strict=True):
        forms = _forms(content)
        further: dict[int, list[tuple[int, int]]] = {}
        for at, places in ways:
            for form in forms:
                end = at + len(form)
                if text.startswith(form + piece, at):
                    further.setdefault(end + len(piece), [*places, (at, end)])
        ways = list(further.items())
    return next((places for at, places in ways if at == len(text)), None)


def _forms(content: str) -> dict[str, None]:
    """As it is, or stripped of white space or of line ends, on either side or both."""
    stripped = [
        strip(marks)
        for strip in (content.strip, content.lstrip, content.rstrip)
        for marks in (None, "\n")
    ]
    return dict.fromkeys([content, *stripped])


def _unknown(why: str) -> ExampleError:
    return ExampleError("no_roles", why)
