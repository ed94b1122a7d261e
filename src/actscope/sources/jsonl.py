"""JSON Lines: one object a line."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._fields import Fields
from actscope.sources._files import (
    existing_file,
    parse_json,
    refuse_changed,
    state_of,
    to_text,
)
from actscope.sources._scan import Scan

__all__ = ["SOURCE", "JSONLSource"]

_BOM = b"\xef\xbb\xbf"


class JSONLSource:
    """A file with one JSON object a line. One pass checks every row; only byte offsets are kept.

    Blank lines are skipped and are no rows.

    Args:
        path: A UTF-8 file.
        text_field: Field of the text; ``text`` by default.
        id_field: Field of the id; ``id`` where there is one, else the row's index.
        messages_field: Field of a conversation; ``messages`` by default.

    Raises:
        SourceError: the file or a field is missing, a line is not a JSON object in UTF-8, or two
            rows have one id.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def __init__(
        self,
        path: str | Path,
        *,
        text_field: str | None = None,
        id_field: str | None = None,
        messages_field: str | None = None,
    ) -> None:
        self._path = existing_file(path)
        self._fields = Fields(text_field, id_field, messages_field)
        self._offsets = array("Q")
        self._lines = array("Q")
        self._state = state_of(self._path)
        scan = Scan(str(self._path))
        with self._open() as file:
            for offset, line, data in _lines(file, 0, 1):
                index = len(self._offsets)
                example = self._example(index, line, data)
                scan.add(example, f"{self._path}, line {line}")
                self._offsets.append(offset)
                self._lines.append(line)
        self._fingerprint = scan.finish(lambda i: next(self.examples(i, i + 1)).id)

    def __len__(self) -> int:
        return len(self._offsets)

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range, read from the file.

        Raises:
            SourceError: the file has changed since it was opened.
        """
        wanted = range(*slice(start, stop).indices(len(self)))
        if not wanted:
            return
        refuse_changed(self._path, self._state)
        with self._open() as file:
            lines = _lines(file, self._offsets[wanted.start], self._lines[wanted.start])
            for index, (_, line, data) in zip(wanted, lines, strict=False):
                yield self._example(index, line, data)

    def fingerprint(self) -> str:
        """Hex digest of every id, prompt and its metadata, in order."""
        return self._fingerprint

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise SourceError(f"cannot read {self._path}", got=error) from None

    def _example(self, index: int, line: int, data: bytes) -> Example:
        where = f"{self._path}, line {line} (row {index})"
        row: Any = parse_json(to_text(data, where), where)
        if not isinstance(row, Mapping):
            raise SourceError(
                f"{where} is not a JSON object",
                got=f"{row!r:.60}",
                expected='{"id": "...", "text": "..."}',
            )
        return self._fields.example(index, cast("Mapping[str, Any]", row), where)


def _lines(file: BinaryIO, offset: int, line: int) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, line number, bytes) of every line that is not blank."""
    file.seek(offset)
    for data in file:
        text = data.removeprefix(_BOM) if offset == 0 else data
        if text.strip():
            yield offset, line, text
        offset += len(data)
        line += 1


SOURCE = JSONLSource
