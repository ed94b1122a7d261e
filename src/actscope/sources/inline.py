"""Prompts written on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from actscope.core.text import Example
from actscope.sources._memory import InMemory

__all__ = ["SOURCE", "InlineSource"]


class InlineSource(InMemory):
    """Texts as they are; ids are their positions.

    Args:
        texts: One text, or several.
    """

    def __init__(self, texts: str | Sequence[str]) -> None:
        given = [texts] if isinstance(texts, str) else list(texts)
        super().__init__([Example(str(i), text=text) for i, text in enumerate(given)])


SOURCE = InlineSource
