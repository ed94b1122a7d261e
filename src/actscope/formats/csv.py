"""One CSV a site for pooled runs, one line an example; tokens and texts beside it.

Values are the shortest decimals that read back as the same float32, float64 or float16. A cell that
a spreadsheet would run (``=``, ``+``, ``-``, ``@`` first, or a tab) gets an apostrophe in front;
``examples.jsonl`` has the ids as they are.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

from actscope.core.activations import ExampleRecord
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.formats._arrays import EXAMPLES, file_stem
from actscope.formats._format import RunFormat
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._layout import out_dtype
from actscope.formats._manifest import ExportFolder, UnitLine
from actscope.formats._records import records_of
from actscope.stores import fail_point

__all__ = ["FORMAT", "CsvFormat"]

TOKENS = "tokens.csv"
_LONGEST_LINE = 64 << 20


class CsvFormat(RunFormat):
    """Comma-separated values, pooled runs only."""

    name: ClassVar[str] = "csv"
    summary: ClassVar[str] = "one .csv a site of a pooled run, one line an example"

    def check(self, job: ExportJob) -> None:
        """Refuse rows of tokens."""
        for site in job.sites if len(job) else ():
            if not job.entry(site).pooled:
                raise BadInputError(
                    f"csv holds one line an example, and {site} has one row a token",
                    next_step="capture with --pool, or choose another format",
                )

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Append a line for each example, and cut off what a kill left behind."""
        records = records_of(unit["examples"], str(unit.stored.path))
        sizes: dict[str, int] = {}
        for site in job.sites:
            name = file_stem(str(site)) + ".csv"
            lines = _site_lines(records, unit[str(site)], name not in marks)
            sizes[name] = _append(job, name, marks, lines)
        sizes[EXAMPLES] = _append(job, EXAMPLES, marks, [unit["examples"].tobytes().decode()])
        sizes[TOKENS] = _append(job, TOKENS, marks, _token_lines(unit, TOKENS in marks))
        return sizes

    def comes_back(self, array: Array) -> Array:
        """Every NaN becomes the one NaN that has a text."""
        if array.dtype.kind != "f" or not np.isnan(array).any():
            return array
        return np.where(np.isnan(array), np.array(np.nan, array.dtype), array)

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The unit's lines of every file."""
        line = folder.units[unit]
        before = folder.units[unit - 1].marks if unit else {}
        found: dict[str, Array] = {}
        try:
            found["examples"] = np.frombuffer(_bytes(folder, EXAMPLES, line, before), np.uint8)
            for entry in line.sites:
                key = str(entry.site)
                text = _bytes(folder, file_stem(key) + ".csv", line, before)
                found[key] = _values(text, line, key, skip=unit == 0)
            found |= _tokens(
                _bytes(folder, TOKENS, line, before),
                line,
                folder.layout.place("rows.offsets", unit)[0],
                skip=unit == 0,
            )
        except (ValueError, UnicodeDecodeError, csv.Error, OverflowError) as error:
            raise DamagedRunError(
                f"a line of unit {line.unit!r} of {folder.path} is not what was exported",
                got=str(error)[:300],
                next_step="export the run again",
            ) from error
        n = line.shapes["rows.offsets"][0] - 1
        found["rows.offsets"] = np.arange(n + 1)
        found["rows.positions"] = np.zeros(0, np.int32)
        return found


def _safe(cell: str) -> str:
    """A text cell as a spreadsheet may see it."""
    text = cell.encode("utf-8", "backslashreplace").decode()
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _row(cells: list[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _site_lines(records: tuple[ExampleRecord, ...], rows: Array, header: bool) -> Iterator[str]:
    if header:
        yield _row(["id", "index", *(f"v{i}" for i in range(rows.shape[1]))])
    for record, row in zip(records, rows, strict=True):
        yield _row([_safe(record.id), record.index, *(str(value) for value in row)])


def _token_lines(unit: ExportUnit, begun: bool) -> Iterator[str]:
    if not begun:
        yield _row(["example", "position", "token_id", "phase"])
    offsets, phase = unit["tokens.offsets"], unit["tokens.phase"]
    ids = unit.get("tokens.ids")
    first, _ = unit.job.layout.place("rows.offsets", unit.number)
    for i in range(len(offsets) - 1):
        for position, at in enumerate(range(offsets[i], offsets[i + 1])):
            token = "" if ids is None else int(ids[at])
            yield f"{first + i},{position},{token},{int(phase[at])}\n"


def _append(job: ExportJob, name: str, marks: Mapping[str, int], lines: Any) -> int:
    path = job.folder / name
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(marks.get(name, 0))
        file.seek(0, os.SEEK_END)
        for line in lines:
            file.write(line.encode("utf-8"))
        file.flush()
        fail_point("export.half-written")
        os.fsync(file.fileno())
        return file.tell()


def _bytes(folder: ExportFolder, name: str, line: UnitLine, before: Mapping[str, int]) -> bytes:
    """The bytes a unit added to a file."""
    start, stop = int(before.get(name, 0)), int(line.marks[name])
    with folder.file(name).open("rb") as file:
        _refuse_size(file, start, stop)
        file.seek(start)
        return file.read(stop - start)


def _refuse_size(file: BinaryIO, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= os.fstat(file.fileno()).st_size:
        raise ValueError("a file is shorter than it was")


def _lines(text: bytes, skip: bool) -> Iterator[list[str]]:
    if any(len(raw) > _LONGEST_LINE for raw in text.split(b"\n")):
        raise ValueError("a line of more than 64 MiB")
    reader = csv.reader(io.StringIO(text.decode("utf-8"), newline=""))
    if skip:
        next(reader, None)
    return reader


def _values(text: bytes, line: UnitLine, key: str, skip: bool) -> Array:
    dtype = out_dtype(line.dtypes[key], keeps_bfloat16=False)
    n, width = line.shapes[key]
    rows = [cells[2:] for cells in _lines(text, skip)]
    if len(rows) != n or any(len(row) != width for row in rows):
        raise ValueError(f"{key} has other lines or columns")
    read = _READ[dtype.kind]
    return np.array([[read(cell) for cell in row] for row in rows], dtype).reshape(n, width)


_READ: dict[str, Callable[[str], Any]] = {
    "f": float,
    "i": int,
    "u": int,
    "b": lambda cell: cell == "True",
}


def _tokens(text: bytes, line: UnitLine, first: int, skip: bool) -> dict[str, Array]:
    rows = [[int(cell or 0) for cell in cells] for cells in _lines(text, skip)]
    table = np.array(rows, np.int64).reshape(-1, 4)
    n = line.shapes["tokens.offsets"][0] - 1
    counts = np.bincount(table[:, 0] - first, minlength=n)
    found: dict[str, Array] = {"tokens.phase": table[:, 3].astype(np.uint8)}
    found["tokens.offsets"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if "tokens.ids" in line.shapes:
        found["tokens.ids"] = np.ascontiguousarray(table[:, 2])
    return found


FORMAT = CsvFormat()
