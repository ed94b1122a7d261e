"""Opening data files, wherever they lie: on a server they are fetched in part, or copied here."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Generator, Mapping
from pathlib import Path

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._formats import TensorFile, UnitFormat, checksum_file
from actscope.stores._io import disk_errors
from actscope.stores._remote import is_remote
from actscope.stores._remote_path import RemotePath

__all__ = ["at_hand", "open_data"]

_CHUNK = 8 << 20


def open_data(path: Path, unit_format: UnitFormat, expected: str) -> TensorFile:
    """Open a unit's data file.

    Args:
        path: The file.
        unit_format: Its format.
        expected: Its committed checksum, which a file that is copied here must have.

    Raises:
        DamagedRunError: it is not what was committed.
        StorageError: its server cannot be reached, or refuses.
    """
    if not is_remote(path):
        return unit_format.read(path)
    if unit_format.ranged is not None:
        return unit_format.ranged(path)
    return _Copy(path, unit_format, expected)


@contextlib.contextmanager
def at_hand(path: Path, unit_format: UnitFormat) -> Generator[Path]:
    """A data file as a local one: itself, or a copy for as long as it is used.

    Raises:
        DamagedRunError: it is gone.
        StorageError: its server cannot be reached, or refuses.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="actscope-") as here:
        yield _copied(path, Path(here), unit_format)


class _Copy:
    """A file of a format whose reader wants a local one: a copy, deleted when it is closed."""

    def __init__(self, path: RemotePath, unit_format: UnitFormat, expected: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="actscope-"))
        self._forget = weakref.finalize(self, _remove, folder, os.getpid())
        try:
            copy = _copied(path, folder, unit_format)
            if checksum_file(copy) != expected:
                raise DamagedRunError(
                    f"{path} is damaged: its checksum is not the committed one",
                    next_step="`actscope runs repair` takes the unit back",
                )
            self._file = unit_format.read(copy)
        except BaseException:
            self._forget()
            raise

    @property
    def header(self) -> Mapping[str, str]:
        """The texts it was written with."""
        return self._file.header

    def names(self) -> list[str]:
        """Its tensors."""
        return self._file.names()

    def read(self, name: str) -> Array:
        """One tensor, read-only."""
        return self._file.read(name)

    def close(self) -> None:
        """Let go of the copy and delete it."""
        self._file.close()
        self._forget()


def _remove(folder: Path, process: int) -> None:
    """Delete a copy, in the process that made it: a forked one only forgets it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _copied(path: RemotePath, folder: Path, unit_format: UnitFormat) -> Path:
    if unit_format.place is not None:
        raise BadInputError(
            f"{path} belongs to a run of the {unit_format.name} store, which is read on a local "
            "disk alone",
            next_step="copy the run's folder here: python -c \"import fsspec; "
            f"fsspec.filesystem('{path.protocol}').get('BUCKET/RUN', 'RUN', recursive=True)\"",
        )
    target = folder / f"data{unit_format.suffix}"
    try:
        with (
            path.open("rb") as source,
            disk_errors(f"fetching {path}", folder),
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, _CHUNK)
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path} is gone") from error
    return target
