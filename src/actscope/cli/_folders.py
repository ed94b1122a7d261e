"""Folders of runs as they are written on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actscope.core.errors import BadInputError

__all__ = ["FOLDER", "LOCAL_FOLDER", "NEW_FOLDER", "refuse_no_folder"]

GONE_WITH_THE_PROCESS = ("memory",)
"""Protocols whose files nobody can read once the command has ended."""


class _Folder(click.Path):
    """A local path, or an address such as ``s3://bucket/runs``.

    Args:
        to_write: Whether something is written there, to be found again.
    """

    def __init__(self, *, to_write: bool = False) -> None:
        super().__init__(path_type=Path)
        self._to_write = to_write

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an address keeps both its slashes."""
        if isinstance(value, str) and "://" in value:
            from actscope.stores import as_folder, is_remote

            folder = as_folder(value)
            if self._to_write and is_remote(folder) and folder.protocol in GONE_WITH_THE_PROCESS:
                raise BadInputError(
                    f"{folder} lasts only as long as this command: nobody could read it afterwards",
                    expected="a folder, or an address such as s3://bucket/runs/a",
                    next_step="memory:// is for Python, within one process: "
                    'ShardStorage("memory://runs")',
                )
            return folder
        return super().convert(value, param, ctx)


class _LocalFolder(click.Path):
    """A path on this machine: an address would become a folder of that name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if isinstance(value, str) and "://" in value:
            from actscope.stores import local_folder

            return local_folder(value)
        return super().convert(value, param, ctx)


FOLDER = _Folder()
"""What every command takes that reads runs."""

NEW_FOLDER = _Folder(to_write=True)
"""Where a command writes what it made."""

LOCAL_FOLDER = _LocalFolder(path_type=Path, file_okay=False)
"""Of commands that know local files alone."""


def refuse_no_folder(folder: Path) -> None:
    """Make sure that there is a folder to look into.

    Raises:
        BadInputError: there is none.
    """
    if not folder.is_dir():
        what = "this is a file, not a folder" if folder.is_file() else "there is no such folder"
        raise BadInputError(what, got=folder)
