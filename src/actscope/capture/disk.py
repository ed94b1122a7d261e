"""Where a run would lie: whether anything can be written there, and how much is free."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from actscope.capture.sizes import readable_bytes
from actscope.core.errors import NotEnoughDiskError, OutputFolderError

__all__ = ["free_disk", "free_local_disk", "refuse_bytes", "refuse_unwritable"]


def free_disk(path: Path) -> int | None:
    """Free bytes where a path is, or would be; None where nobody knows: in remote folders."""
    return None if _is_remote(path) else free_local_disk(path)


def free_local_disk(path: Path) -> int:
    """Free bytes of the disk where a local path is, or would be."""
    return shutil.disk_usage(_nearest(path)).free


def refuse_bytes(need: int, free: int | None, path: Path) -> None:
    """Compare two figures; where it is not known how much is free, anything goes.

    Raises:
        NotEnoughDiskError: the first is larger.
    """
    if free is not None and need > free:
        raise NotEnoughDiskError(
            f"the run needs {readable_bytes(need)} and does not fit the disk of {path}",
            got=f"{readable_bytes(free)} free",
            next_step="fewer sites or layers, --pool, --span, --limit, --storage-dtype float16, "
            "or another disk",
        )


def refuse_unwritable(path: Path) -> None:
    """Make sure that a folder can be made at a path, or files in it where it exists.

    Permissions do not tell: a read-only disk and the folders of the kernel grant more than they
    give. So a nameless file is opened there and is gone at once.

    Raises:
        OutputFolderError: naming the file that is in the way, or the folder that takes nothing.
        StorageError: the server of a remote folder cannot be reached, or refuses.
    """
    if _is_remote(path):  # its store asked when it was made, and the first request will tell
        path.exists()
        return
    place = _nearest(path)
    if not place.is_dir():
        raise OutputFolderError(f"{place} is a file", expected="a folder, or nothing yet")
    try:
        tempfile.TemporaryFile(dir=place, prefix=".tmp-").close()
    except OSError as error:
        raise OutputFolderError(
            f"nothing can be written in {place}",
            got=error.strerror or type(error).__name__,
            next_step="choose another output folder",
        ) from error


def _nearest(path: Path) -> Path:
    """The path itself, or its nearest ancestor that exists and can be looked at."""
    place = path.absolute()
    while not os.path.exists(place) and place != place.parent:  # noqa: PTH110 (never raises)
        place = place.parent
    return place


def _is_remote(path: Path) -> bool:
    from actscope.stores import as_folder, is_remote

    return is_remote(as_folder(path))
