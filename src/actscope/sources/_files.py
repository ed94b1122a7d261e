"""Reading files with errors that name the file, the line and the next step."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, NoReturn

from actscope.core.errors import SourceError

__all__ = ["existing_file", "parse_json", "read_text", "refuse_changed", "state_of", "to_text"]


def existing_file(spec: str | Path) -> Path:
    """The path of a file that can be opened.

    Raises:
        SourceError: there is none, with the closest name beside it.
    """
    path = Path(spec).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise SourceError(f"{path} is a folder", expected="a file")
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    except (OSError, ValueError) as error:  # a NUL, a name too long, a folder without permission
        raise SourceError(f"cannot look for {str(path)!r}", got=error) from None
    close = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {str(path.parent / close[0])!r}?" if close else "check the path"
    raise SourceError(f"there is no file {str(path)!r}", next_step=hint)


def state_of(path: Path) -> tuple[int, int]:
    """Size and modification time: what tells that a file was written again.

    Raises:
        SourceError: it is gone.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"cannot read {path}", got=error) from None
    return status.st_size, status.st_mtime_ns


def refuse_changed(path: Path, before: tuple[int, int]) -> None:
    """Compare a file with its state when the source was opened.

    Raises:
        SourceError: it has changed since.
    """
    if state_of(path) != before:
        raise SourceError(
            f"{path} has changed since it was opened",
            next_step="start again: the fingerprint belongs to the earlier content",
        )


def to_text(data: bytes, where: str) -> str:
    """UTF-8 bytes as text.

    Raises:
        SourceError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where} is not UTF-8",
            got=f"byte 0x{data[error.start]:02x} at byte {error.start}",
            next_step="convert it, for example with `iconv -f latin1 -t utf-8`",
        ) from None


def read_text(path: Path) -> str:
    r"""The text of a file: no byte order mark, and every line end is ``\n``.

    Raises:
        SourceError: it cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}", got=error) from None
    text = to_text(data, str(path)).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, where: str) -> Any:
    """A JSON value; NaN and infinities are refused, as JSON has none.

    Raises:
        SourceError: the text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not valid JSON", got=error) from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
