"""The few file operations that durability rests on, each a place where a test can kill the process.

A file is published in four steps: write a temporary file in the same folder, flush it to the disk,
give it its name, flush the folder. ``ACTSCOPE_FAIL_AT="point[:nth[:how]]"`` stops the process the
nth time it reaches a point of ``FAIL_POINTS``: ``how`` is a signal (``SIGKILL``, the default,
``SIGINT``, ``SIGTERM``) or an error of the operating system (``ENOSPC``, ``EIO``).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from actscope.core.errors import (
    ActscopeError,
    DiskFullError,
    OutputFolderError,
    RunError,
    StorageError,
)
from actscope.stores._remote import is_remote
from actscope.stores._remote_path import RemotePath, read_range
from actscope.stores._remote_writes import create, upload

__all__ = [
    "FAIL_POINTS",
    "REMOTE_FAIL_POINTS",
    "TEMP_PREFIX",
    "disk_errors",
    "fail_point",
    "make_folder",
    "move",
    "publish",
    "put_if_absent",
    "read_limited",
    "sync_folder",
]

TEMP_PREFIX = ".tmp-"

What = Literal["run", "data", "commit", "export"]

_WRITE_STEPS = ("created", "half-written", "written", "synced")
_PUT_STEPS = ("linked", "unlinked", "folder-synced")
_CLAIM_STEPS = ("claimed", "renamed", "folder-synced")

FAIL_POINTS: tuple[str, ...] = (
    "folder.made",
    "folder.synced",
    *(f"run.{step}" for step in (*_WRITE_STEPS, *_PUT_STEPS)),
    *(f"data.{step}" for step in (*_WRITE_STEPS, "renamed", "folder-synced")),
    *(f"commit.{step}" for step in (*_WRITE_STEPS, *_PUT_STEPS)),
)
"""Every point on the usual path, in the order a run reaches them."""

CLAIM_FAIL_POINTS: tuple[str, ...] = tuple(
    f"{what}.{step}" for what in ("run", "commit") for step in _CLAIM_STEPS
)
"""Points reached only where the file system has no hard links."""

REMOTE_FAIL_POINTS: tuple[str, ...] = (
    "run.sending",
    "run.sent",
    *(f"data.{step}" for step in (*_WRITE_STEPS, "sending", "sent")),
    "commit.sending",
    "commit.sent",
)
"""Every point on the usual path of a run in a remote folder, in the order a run reaches them."""

CARE_FAIL_POINTS: tuple[str, ...] = (
    "repair.moved",
    "repair.folder-synced",
    "sweep.removed",
    "delete.moved",
    "delete.folder-synced",
    "delete.removed",
)
"""Points of what is done to a run besides writing it."""

REMOTE_CARE_FAIL_POINTS: tuple[str, ...] = ("repair.copied", "repair.moved")
"""Points of a repair in a remote folder, where moving is copying and deleting."""

CLAIM_PATIENCE = 2.0
"""Seconds after which a claim without its file counts as left by a killed writer."""

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EACCES}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}

_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR}

_reached: dict[str, int] = {}

T = TypeVar("T")


def fail_point(name: str) -> None:
    """Stop here if the environment says so."""
    armed = os.environ.get("ACTSCOPE_FAIL_AT")
    if not armed:
        return
    point, nth, how = (*armed.split(":"), "", "")[:3]
    if point != name:
        return
    _reached[armed] = _reached.get(armed, 0) + 1
    if _reached[armed] != int(nth or 1):
        return
    if how.startswith("E"):
        code: int = getattr(errno, how)
        raise OSError(code, os.strerror(code))
    os.kill(os.getpid(), getattr(signal, how or "SIGKILL"))


@contextlib.contextmanager
def disk_errors(doing: str, path: Path) -> Generator[None]:
    """Turn what the operating system says into an error that says what to do.

    Args:
        doing: What was going on, such as ``writing unit 3``.
        path: Where.
    """
    try:
        yield
    except ActscopeError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"the disk is full or a file size limit was reached while {doing}",
                got=f"{error.strerror} at {path}",
                next_step="free some space and run the same command again: "
                "committed units are safe, and it goes on after them",
            ) from error
        if is_remote(path):
            raise StorageError(
                f"the remote folder failed while {doing}",
                got=f"{error.strerror or error} at {path}",
                next_step="run the same command again: committed units are safe",
            ) from error
        if error.errno in _IN_THE_WAY:
            blocking = next((p for p in (path, *path.parents) if p.is_file()), path)
            raise OutputFolderError(
                f"{blocking} is a file",
                expected="a folder, or nothing yet",
                next_step="choose another output folder",
            ) from error
        if error.errno in _READ_ONLY:
            raise OutputFolderError(
                f"{path} cannot be written",
                got=error.strerror,
                next_step="choose another output folder or change its permissions",
            ) from error
        raise RunError(
            f"the disk failed while {doing}",
            got=f"{error.strerror or error} at {path}",
            next_step="mend the disk and run the same command again: committed units are safe",
        ) from error


class _RawFile(io.FileIO):
    """A new file whose first write can be cut in half by a fail point."""

    def __init__(self, path: Path, what: What) -> None:
        super().__init__(path, "x+")
        self._half: str | None = f"{what}.half-written"

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        if self._half is None:
            return super().write(data) or 0
        point, self._half = self._half, None
        written = super().write(memoryview(data)[: max(1, len(data) // 2)]) or 0
        fail_point(point)
        return written


@contextlib.contextmanager
def _written_temp(
    folder: Path, what: What, write: Callable[[BinaryIO], T]
) -> Generator[tuple[Path, T]]:
    """A temporary file that was written and flushed to the disk; removed if still there after."""
    path = folder / f"{TEMP_PREFIX}{what}-{os.getpid()}-{secrets.token_hex(6)}"
    try:
        with io.BufferedRandom(_RawFile(path, what)) as file:
            fail_point(f"{what}.created")
            result = write(file)
            file.flush()
            fail_point(f"{what}.written")
            os.fsync(file.fileno())
        fail_point(f"{what}.synced")
        yield path, result
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def publish(
    folder: Path, what: What, write: Callable[[BinaryIO], T], name_of: Callable[[T], str]
) -> T:
    """Write a file that appears whole or not at all.

    Args:
        folder: Where.
        what: The prefix of the fail points.
        write: Fills the file.
        name_of: The file's name, from what ``write`` returned. A file of that name is replaced.
    """
    if is_remote(folder):
        return _send(folder, what, write, name_of)
    with _written_temp(folder, what, write) as (temp, result):
        temp.replace(folder / name_of(result))
        fail_point(f"{what}.renamed")
        sync_folder(folder)
        fail_point(f"{what}.folder-synced")
    return result


def _send(
    folder: RemotePath, what: What, write: Callable[[BinaryIO], T], name_of: Callable[[T], str]
) -> T:
    """Publish to a remote folder: write the file here, then send it under its name."""
    with (
        tempfile.TemporaryDirectory(prefix="actscope-") as here,
        disk_errors("writing a file that is to be sent", Path(here)),
        _written_temp(Path(here), what, write) as (temp, result),
    ):
        fail_point(f"{what}.sending")
        upload(temp, folder / name_of(result))
        fail_point(f"{what}.sent")
    return result


def put_if_absent(path: Path, what: What, data: bytes) -> bool:
    """Create a file with some bytes unless it exists; it appears whole or not at all.

    Returns:
        Whether this call created it.
    """
    if is_remote(path):
        fail_point(f"{what}.sending")
        created = create(path, data)
        fail_point(f"{what}.sent")
        return created
    with _written_temp(path.parent, what, lambda file: file.write(data)) as (temp, _):
        try:
            os.link(temp, path)
        except FileExistsError:
            sync_folder(path.parent)  # whoever gave the name may not have flushed it yet
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _claim_and_rename(temp, path, what)
        fail_point(f"{what}.linked")
        temp.unlink()
        fail_point(f"{what}.unlinked")
        sync_folder(path.parent)
        fail_point(f"{what}.folder-synced")
    return True


def _claim_and_rename(temp: Path, path: Path, what: What) -> bool:
    """Put-if-absent without hard links: whoever creates the claim exclusively may rename.

    Creating the file itself exclusively would show readers a half-written one. A claim without its
    file was left by a killed writer; it is taken over. The file is looked for once more under the
    claim: another writer may have claimed, renamed and let go between our first look and our claim.
    """
    claim = path.with_name(f"{TEMP_PREFIX}claim-{path.name}")
    if not path.exists():
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            _wait_for(path, CLAIM_PATIENCE)
        fail_point(f"{what}.claimed")
    created = not path.exists()
    if created:
        temp.replace(path)
        fail_point(f"{what}.renamed")
    sync_folder(path.parent)
    fail_point(f"{what}.folder-synced")
    claim.unlink(missing_ok=True)
    return created


def _wait_for(path: Path, seconds: float) -> None:
    """Wait until a file exists, but no longer than some seconds."""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that the names in it survive a power cut; servers do that themselves."""
    # Folders cannot be opened on Windows; the file system journals names itself
    if os.name == "nt" or is_remote(folder):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, flushing every name on the way.

    The name of a folder that exists is flushed too: the writer that made it may have been killed
    before, or may not have got there yet.
    """
    if is_remote(path):  # object stores have no folders: one is there with its first file
        return
    if path.is_dir():
        with contextlib.suppress(OSError):  # a folder above ours need not be ours to open
            sync_folder(path.parent)
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fail_point("folder.made")
    sync_folder(path.parent)
    fail_point("folder.synced")


def move(path: Path, target: Path, what: str) -> None:
    """Give a file or folder another name on the same disk, durably.

    Args:
        path: What to move.
        target: Its new name; a file of that name is replaced.
        what: The prefix of the fail points.
    """
    remote = [place for place in (path, target) if is_remote(place)]
    if remote:
        source, copy = remote
        _copy_and_delete(source, copy, what)
        return
    path.replace(target)
    fail_point(f"{what}.moved")
    sync_folder(target.parent)
    if path.parent != target.parent:
        sync_folder(path.parent)
    fail_point(f"{what}.folder-synced")


def _copy_and_delete(path: RemotePath, target: RemotePath, what: str) -> None:
    """Move on a server, which has no such step: for a moment both are there."""
    if not create(target, path.read_bytes()):
        raise FileExistsError(str(target))
    fail_point(f"{what}.copied")
    path.unlink()
    fail_point(f"{what}.moved")


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a small file; a link is not followed.

    Raises:
        ValueError: it is larger than the limit.
    """
    if is_remote(path):
        return _refuse_larger(read_range(path, 0, limit + 1), limit)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:  # noqa: PTH123 - opened from a handle
        return _refuse_larger(file.read(limit + 1), limit)


def _refuse_larger(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return data
