"""Parquet tables, read by row group."""

from __future__ import annotations

import base64
import math
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, ClassVar, cast

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._fields import Fields
from actscope.sources._files import existing_file, refuse_changed, state_of
from actscope.sources._scan import Scan

__all__ = ["SOURCE", "ParquetSource", "parquet_rows"]

_BATCH = 1024
_Rows = Iterator[dict[str, Any]]


class ParquetSource:
    """A Parquet file. One pass checks every row; then only the row groups asked for are read.

    Values that JSON does not have become texts in the metadata: dates in ISO form, decimals, bytes
    in base64; a NaN or an infinity becomes null.

    Args:
        path: The file.
        text_field: Column of the text; ``text`` by default.
        id_field: Column of the id; ``id`` where there is one, else the row's index.
        messages_field: Column of a conversation; ``messages`` by default.

    Raises:
        SourceError: pyarrow is not installed, the file cannot be read, a column is missing, or two
            rows have one id.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

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
        self._state = state_of(self._path)
        self._starts = [0, *accumulate(_row_group_sizes(self._path))]
        self._ahead: tuple[int, _Rows] | None = None  # the row a finished range stopped before
        scan = Scan(str(self._path))
        for index, example in enumerate(self.examples()):
            scan.add(example, f"{self._path}, row {index}")
        self._fingerprint = scan.finish(lambda i: next(self.examples(i, i + 1)).id)

    def __len__(self) -> int:
        return self._starts[-1]

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range; one that follows the range before goes on reading there.

        Raises:
            SourceError: the file has changed since it was opened.
        """
        wanted = range(*slice(start, stop).indices(len(self)))
        if not wanted:
            return
        refuse_changed(self._path, self._state)
        rows = self._from(wanted.start)
        for index, row in zip(wanted, rows, strict=False):
            example = self._fields.example(index, row, f"{self._path}, row {index}")
            yield replace(example, metadata=_plain(example.metadata))
        if wanted.stop < len(self):
            self._ahead = (wanted.stop, rows)

    def fingerprint(self) -> str:
        """Hex digest of every id, prompt and its metadata, in order."""
        return self._fingerprint

    def _from(self, start: int) -> _Rows:
        """The rows from one on: those of a row group before it have to be read over."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == start:
            return ahead[1]
        first = bisect_right(self._starts, start) - 1
        rows = _rows(self._path, range(first, len(self._starts) - 1))
        return islice(rows, start - self._starts[first], None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}  # an open file stays in its process


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every row, with values as JSON has them.

    Raises:
        SourceError: pyarrow is not installed, or the file cannot be read.
    """
    groups = range(len(_row_group_sizes(path)))
    return (_plain(row) for row in _rows(path, groups)) if groups else iter(())


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise SourceError(
            "reading Parquet needs pyarrow", next_step="pip install 'actscope[parquet]'"
        ) from None
    return parquet


def _row_group_sizes(path: Path) -> list[int]:
    parquet = _parquet()
    if not path.stat().st_size:
        return []
    with _as_source_error(path), parquet.ParquetFile(path) as file:
        metadata = file.metadata
        return [int(metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)]


def _rows(path: Path, groups: range) -> _Rows:
    with _as_source_error(path), _parquet().ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=list(groups)):
            yield from cast("list[dict[str, Any]]", batch.to_pylist())


@contextmanager
def _as_source_error(path: Path) -> Generator[None]:
    """Turn what a broken file raises into an error that names it."""
    from pyarrow.lib import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise SourceError(f"{path} is not a readable Parquet file", got=error) from None


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    return str(value) if isinstance(value, (Decimal, timedelta)) else value


SOURCE = ParquetSource
