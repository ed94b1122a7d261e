"""What a run writes to a server: whole files, and files that must not be there yet.

A commit is a file that is created only if there is none. That has to be one step of the server:
looking first and writing then lets two writers in. So only file systems that are known to have the
step are written to, and each server is asked to prove it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from pathlib import Path

from actscope.core.errors import OutputFolderError, StorageError
from actscope.stores._remote import is_remote
from actscope.stores._remote_path import RemotePath
from actscope.stores._servers import asking

__all__ = ["create", "prove_conditional", "refuse_unconditional", "upload"]

CONDITIONAL = ("memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
"""Protocols whose file systems create conditionally, and whose uploads appear whole or not at all.

s3fs sends ``If-None-Match: *`` and gcsfs ``ifGenerationMatch=0`` for ``pipe_file(mode="create")``,
adlfs an upload without overwriting. fsspec's default is to look first and write then.
"""

_IN_MEMORY = threading.Lock()
"""``memory://`` looks first too, but lies in this process: a lock makes it one step."""

_PAUSES = (0.05, 0.2, 0.8, 2.0)
_PROVEN: set[RemotePath] = set()


def refuse_unconditional(path: Path) -> None:
    """Refuse a place where two writers could both commit a unit; local paths pass.

    Raises:
        OutputFolderError: its file system has no conditional create.
    """
    if is_remote(path) and path.protocol not in CONDITIONAL:
        raise OutputFolderError(
            f"runs cannot be written to {path}",
            got=f"{path.protocol}://, whose file system cannot create a file only if there is none",
            expected="one of " + ", ".join(f"{name}://" for name in CONDITIONAL),
            next_step="write the run to a local folder, and copy it there when it is complete",
        )


def prove_conditional(path: Path) -> None:
    """Ask a server to create a file that is there, which it must refuse; local paths pass.

    Servers that only speak like S3 may not know the condition and overwrite. The file is written
    with the bytes it has, so nothing changes there either. Each bucket is asked once a process.

    Args:
        path: A file that was committed.

    Raises:
        OutputFolderError: the server overwrote it.
    """
    if not is_remote(path):
        return
    bucket = path
    while bucket.parent is not bucket:
        bucket = bucket.parent
    if bucket in _PROVEN:
        return
    if create(path, path.read_bytes()):
        raise OutputFolderError(
            f"runs cannot be written to {path.parent}: its server ignores conditions",
            got="it overwrote a file that was to be created only if there is none",
            expected="a server with conditional writes (If-None-Match), or newer packages",
            next_step="write the run to a local folder, and copy it there when it is complete",
        )
    _PROVEN.add(bucket)


def create(path: RemotePath, data: bytes) -> bool:
    """Create a file with some bytes unless it exists; it appears whole or not at all.

    Returns:
        Whether this call created it. False too where an answer got lost and the file was created
        by the first of two tries: the caller compares what is there with what it wanted.

    Raises:
        StorageError: the server cannot be reached, or refuses.
        OutputFolderError: there is no such bucket.
    """
    pauses = iter(_PAUSES)
    with asking(path), _no_bucket(path):
        while True:
            try:
                with _IN_MEMORY if path.protocol == "memory" else contextlib.nullcontext():
                    path.fs.pipe_file(path.inner, data, mode="create")
                return True
            except FileExistsError:
                return False
            except Exception as error:
                code = _code(error)
                if code in ("PreconditionFailed", "412"):
                    return False
                pause = next(pauses, None)
                if code not in ("ConditionalRequestConflict", "409") or pause is None:
                    raise
                time.sleep(pause)  # S3 asks for that while another create is under way


def upload(source: Path, target: RemotePath) -> None:
    """Send a local file; it appears whole or not at all, and one of that name is replaced.

    Raises:
        StorageError: the server cannot be reached, or refuses, or has another size in the end.
        OutputFolderError: there is no such bucket.
    """
    size = source.stat().st_size
    with asking(target), _no_bucket(target):
        if target.protocol == "memory":  # whose put_file fills the file in view of everyone
            target.fs.pipe_file(target.inner, source.read_bytes())
        else:
            target.fs.put_file(str(source), target.inner)
    there = target.stat().st_size
    if there != size:
        raise StorageError(
            f"{target} did not arrive whole",
            got=f"{there} bytes",
            expected=f"{size} bytes",
            next_step="run the same command again: committed units are safe",
        )


@contextlib.contextmanager
def _no_bucket(path: RemotePath) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise OutputFolderError(
            f"{path} has no place to lie in",
            got=str(error) or "the server knows no such bucket",
            next_step="make the bucket with the service's own tools, or choose another",
        ) from error


def _code(error: BaseException) -> str:
    """What S3 calls an error, which s3fs hands on as the cause of its own."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""
