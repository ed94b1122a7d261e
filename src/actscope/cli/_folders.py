"""Folders of runs as they are written on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["FOLDER"]


class _Folder(click.Path):
    """A local path, or an address such as ``s3://bucket/runs``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an address keeps both its slashes."""
        if isinstance(value, str) and "://" in value:
            from actscope.stores import as_folder

            return as_folder(value)
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)
"""What every command takes that reads or writes runs."""
