"""Folders that may lie on a server: addresses of fsspec, such as ``s3://bucket/runs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeGuard, cast

from actscope.core.errors import BadInputError
from actscope.stores._remote_path import RemotePath

__all__ = ["as_folder", "is_remote", "local_folder"]

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://(.*)", re.DOTALL)
_SQUEEZED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_LOCAL = ("file", "local")


def as_folder(place: str | Path, **options: Any) -> Path:
    """The path of a folder: a local one, or what fsspec calls an address.

    ``file:///folder`` is the local folder. An address of another protocol becomes an object with
    the methods of ``Path`` that runs need; nothing is asked of the server yet.

    Args:
        place: A path, or an address: ``s3://bucket/runs``, ``gs://bucket/runs``,
            ``memory://any/runs``. A path of universal_pathlib is taken with its options.
        options: What fsspec's file system of that protocol takes besides, such as
            ``endpoint_url`` and ``key`` for ``s3``. Never stored and never printed.

    Raises:
        BadInputError: a package is missing, the protocol is unknown, or the address names no
            folder.
    """
    if is_remote(place):
        return cast("Path", place.with_options(options))
    if getattr(place, "protocol", ""):  # universal_pathlib
        options = {**getattr(place, "storage_options", {}), **options}
        place = str(place)
    found = _ADDRESS.fullmatch(place) if isinstance(place, str) else None
    if found is not None and found[1] not in _LOCAL:
        return cast("Path", RemotePath.of(found[1], found[2], options))
    if options:
        raise BadInputError(
            f"{place} is a local folder, which takes no options", got=", ".join(options)
        )
    return _local(found[2], str(place)) if found is not None else _unsqueezed(Path(place))


def is_remote(path: object) -> TypeGuard[RemotePath]:
    """Whether a path is one of fsspec, and not of the operating system."""
    return isinstance(path, RemotePath)


def local_folder(place: str | Path) -> Path:
    """A path where only a local one will do.

    Raises:
        BadInputError: it is an address.
    """
    folder = as_folder(place)
    if is_remote(folder):
        raise BadInputError(
            f"{folder} is no local path",
            expected="a file or folder on this machine",
            next_step="use a local one, and copy it there (with get: from there): python -c "
            f"\"import fsspec; fsspec.filesystem('{folder.protocol}').put('HERE', "
            f"'{folder.inner}', recursive=True)\"",
        )
    return folder


def _local(rest: str, address: str) -> Path:
    from urllib.request import url2pathname

    host, _, path = rest.partition("/")
    if host not in ("", "localhost") or not path:
        raise BadInputError(
            "the address of a local folder has three slashes",
            got=address,
            expected="file:///the/folder",
        )
    return Path(url2pathname(f"/{path}"))


def _unsqueezed(path: Path) -> Path:
    """A local path, unless it was an address before ``Path`` took a slash from it."""
    first = path.parts[0] if path.parts else ""
    if _SQUEEZED.fullmatch(first) and not Path(first).exists():
        raise BadInputError(
            f"{path} is an address without its second slash, which pathlib.Path takes away",
            expected="a local folder, or, where addresses are taken, the address as text: "
            f"{first}//{'/'.join(path.parts[1:])}",
        )
    return path
