"""A plain text file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from actscope.core.text import Example
from actscope.sources._files import existing_file, read_text
from actscope.sources._memory import InMemory

__all__ = ["SOURCE", "TextSource"]


class TextSource(InMemory):
    """One example a line, or the whole file as one.

    Lines of nothing but white space are no examples; the others are taken as they are. Ids are
    the examples' positions.

    Args:
        path: A UTF-8 file.
        whole: Take the whole file as one example, without the line end that closes it.

    Raises:
        SourceError: there is no such file, or it is not UTF-8.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text")

    def __init__(self, path: str | Path, *, whole: bool = False) -> None:
        text = read_text(existing_file(path))
        if whole:
            texts = [text.removesuffix("\n")] if text else []
        else:
            texts = [line for line in text.split("\n") if line.strip()]
        super().__init__([Example(str(i), text=text) for i, text in enumerate(texts)])


SOURCE = TextSource
