"""Comma- and tab-separated tables."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._fields import Fields
from actscope.sources._files import existing_file, to_text
from actscope.sources._memory import InMemory

__all__ = ["SOURCE", "CSVSource"]

_LONGEST_CELL = 2**31 - 1
_LIMIT_LOCK = threading.Lock()


class CSVSource(InMemory):
    """A table with a header line; every cell is text. The file is read into memory.

    Args:
        path: A UTF-8 file; ``.tsv`` is tab-separated.
        text_field: Column of the text; ``text`` by default.
        id_field: Column of the id; ``id`` where there is one, else the row's index.
        messages_field: Column of a conversation written as JSON.

    Raises:
        SourceError: the file or a column is missing, a row has another number of cells than the
            header, or two rows have one id.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def __init__(
        self,
        path: str | Path,
        *,
        text_field: str | None = None,
        id_field: str | None = None,
        messages_field: str | None = None,
    ) -> None:
        file = existing_file(path)
        fields = Fields(text_field, id_field, messages_field)
        super().__init__(list(_examples(file, fields)), str(file))


def _examples(path: Path, fields: Fields) -> Iterator[Example]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}", got=error) from None
    text = to_text(data, str(path)).removeprefix("\ufeff")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with _no_cell_limit():
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = _header(next((cells for cells in rows if cells), []), path)
            index = 0
            for cells in rows:
                if not cells:
                    continue
                where = f"{path}, line {rows.line_num} (row {index})"
                if len(cells) != len(header):
                    raise SourceError(
                        f"{where} has another number of cells than the header",
                        got=len(cells),
                        expected=f"{len(header)}: {', '.join(header)}",
                        next_step='a cell with a comma or a line end needs quotes: "..."',
                    )
                yield fields.example(index, dict(zip(header, cells, strict=True)), where)
                index += 1
        except csv.Error as error:
            raise SourceError(f"{path}, line {rows.line_num}: broken CSV", got=error) from None


def _header(names: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{path}: a column occurs twice in the header", got=", ".join(twice))
    return names


@contextmanager
def _no_cell_limit() -> Generator[None]:
    """Lift the reader's limit of 131,072 characters a cell; documents are longer."""
    with _LIMIT_LOCK:
        before = csv.field_size_limit(_LONGEST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


SOURCE = CSVSource
