"""Where prompts come from. One file per source; a source is read once when it is opened.

That pass finds every error before a model is loaded, and gives the fingerprint.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actscope.core.errors import BadInputError, SourceError
from actscope.core.protocols import Source
from actscope.core.registry import Registry
from actscope.sources._memory import InMemory

__all__ = ["SOURCES", "InMemory", "open_source"]

SOURCES: Registry[Callable[..., Source]] = Registry("actscope.sources", "SOURCE", "source")


def open_source(spec: str | Path, **options: Any) -> Source:
    """A source by path or name.

    Args:
        spec: A path whose ending tells the format (``a.jsonl``, ``a.csv``, ``a.parquet``,
            ``a.txt``, a prompt set ``a.json``, a folder of ``.txt`` files); or ``FORMAT:PATH``
            (``jsonl:a.log``); or packaged data (``demo:texts/short``, ``demo:prompts``).
        options: What the format takes: ``text_field``, ``id_field`` and ``messages_field`` for
            rows with fields, ``whole`` for a text file. An option that is None is as if not given.

    Raises:
        SourceError: it cannot be read, or its format cannot be told.
        UnknownNameError: no such packaged data.
        BadInputError: an option the format does not take.
    """
    name, rest = _format_of(spec)
    kind = SOURCES.get(name)
    given = {key: value for key, value in options.items() if value is not None}
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for key in given:
        if key not in known and len(known) == len(parameters):
            raise BadInputError(
                f"a source of the format {name!r} takes no {key}",
                expected=", ".join(known) or "no options",
            )
    return kind(rest, **given)


def _format_of(spec: str | Path) -> tuple[str, str | Path]:
    """The format's name, and the path or name after its prefix."""
    if not str(spec):
        raise SourceError("the source has no name", next_step="give a path or FORMAT:PATH")
    prefix, colon, rest = str(spec).partition(":")
    prefix = prefix.replace("-", "_")
    if isinstance(spec, str) and colon and prefix in SOURCES.names():
        return prefix, rest
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return "folder", path
        exists = path.is_file()
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot look for {str(spec)!r}", got=error) from None
    by_suffix = _suffixes()
    if path.suffix.lower() in by_suffix:
        return by_suffix[path.suffix.lower()], path
    formats = ", ".join(f"{name}:" for name in SOURCES.names())
    if exists:
        raise SourceError(
            f"cannot tell the format of {path}",
            got=f"the ending {path.suffix!r}",
            expected=", ".join(sorted(by_suffix)),
            next_step=f"write the format before it: one of {formats}",
        )
    raise SourceError(
        f"there is no file or folder {str(spec)!r}",
        next_step=f"check the path; a format may stand before it: one of {formats}",
    )


def _suffixes() -> dict[str, str]:
    """Ending -> format, of every source that has endings of its own."""
    return {
        suffix: name
        for name in SOURCES.names()
        for suffix in getattr(SOURCES.get(name), "suffixes", ())
    }
