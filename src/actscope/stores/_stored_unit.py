"""Reading units of a run: commit records on demand, tensors checked when they are first read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import cast

from actscope.core.arrays import Array, dtype_name
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._codecs import values_of
from actscope.stores._data_files import open_data
from actscope.stores._formats import MappedFile, TensorFile, UnitFormat, checksum, checksum_file
from actscope.stores._records import (
    COMMITS,
    CommitRecord,
    RunRecord,
    TensorEntry,
    encode_unit,
    load_commit,
)
from actscope.stores._remote import is_remote
from actscope.stores._run_folder import STORES

__all__ = ["StoredUnit", "UnitFiles", "data_path", "format_of"]

_OPEN_FILES = 32
_RECENT_BYTES = 256 << 20


def format_of(record: RunRecord, folder: Path) -> UnitFormat:
    """The file format of a run.

    Raises:
        BadInputError: no store of that name is installed.
    """
    if record.store not in STORES.names():
        raise BadInputError(
            f"{folder} was written by a store that is not installed",
            got=record.store,
            expected="one of " + ", ".join(STORES.names()),
        )
    return STORES.get(record.store).unit_format


def data_path(folder: Path, commit: CommitRecord, unit_format: UnitFormat) -> Path:
    """Where a unit's data lies, checked against what a writer would have written.

    Raises:
        DamagedRunError: the path leads elsewhere, or the file is gone or has another size.
    """
    place, _, name = commit.path.partition("/")
    plain = "/" not in name and "\\" not in name and "\0" not in name
    if place != unit_format.folder or not plain or not name.endswith(unit_format.suffix):
        raise DamagedRunError(
            f"the commit record of unit {commit.unit!r} names no data file of this run",
            got=repr(commit.path),
        )
    path = folder / place / name
    if path.is_symlink() or not path.is_file():
        raise DamagedRunError(
            f"{path} is missing",
            got="a link" if path.is_symlink() else "no file",
            expected=f"the data of unit {commit.unit!r}",
            next_step="`actscope runs repair` takes the unit back, so that it is captured again",
        )
    size = path.stat().st_size
    if size != commit.bytes:
        raise DamagedRunError(f"{path} has {size} bytes, {commit.bytes} were committed")
    return path


class UnitFiles:
    """The data files that are open, the least recently used closed first.

    Arrays of formats that cannot be mapped are kept for a while, so that going through the examples
    of a unit does not read it once for each. Units may be read in several threads. A process that
    was forked, such as a worker of a ``DataLoader``, opens files of its own: it would share the
    place in each with its parent, and read what the other asked for.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, TensorFile] = OrderedDict()
        self._recent: OrderedDict[tuple[Path, str], Array] = OrderedDict()
        self._recent_bytes = 0
        self._lock = RLock()
        self._process = os.getpid()

    def get(self, path: Path, unit_format: UnitFormat, expected: str) -> TensorFile:
        """An open file; see ``open_data``."""
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), RLock()
            self._open = OrderedDict()
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        # Not under the lock: others need not wait for the disk
        file = open_data(path, unit_format, expected)
        with self._lock:
            self._open.setdefault(path, file)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            return file

    def recent(
        self,
        path: Path,
        name: str,
        read: Callable[[], Array],
        side_by_side: bool,
    ) -> Array:
        """A tensor that is not read where it lies.

        Args:
            path: Its file's path.
            name: Its name.
            read: Reads and checks it; what raises is not kept.
            side_by_side: Whether several tensors of the file may be read at once.
        """
        key = (path, name)
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
            if not side_by_side:
                return self._kept(key, read())
        array = read()
        with self._lock:
            return self._kept(key, array)

    def _kept(self, key: tuple[Path, str], array: Array) -> Array:
        before = self._recent.pop(key, None)
        self._recent[key] = array
        self._recent_bytes += array.nbytes - (0 if before is None else before.nbytes)
        while self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes
        return array

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            self._recent.clear()
            self._recent_bytes = 0
            while self._open:
                self._open.popitem()[1].close()


class StoredUnit:
    """One committed unit of a run.

    Args:
        folder: The run's folder.
        file_name: The commit record's name.
        run: What ``run.json`` says.
        unit_format: The run's file format.
        files: The files that are open.
    """

    def __init__(
        self,
        folder: Path,
        file_name: str,
        run: RunRecord,
        unit_format: UnitFormat,
        files: UnitFiles,
    ) -> None:
        self._folder = folder
        self._file_name = file_name
        self._run = run
        self._format = unit_format
        self._remote = is_remote(folder)
        self._mapped = unit_format.mapped and not self._remote
        self._files = files
        self._checked: set[str] = set()

    @cached_property
    def commit(self) -> CommitRecord:
        """Its commit record.

        Raises:
            DamagedRunError: the record is not as it was written, or belongs to another run.
        """
        record = load_commit(self._folder, self._file_name)
        if record.fingerprint != self._run.fingerprint:
            raise DamagedRunError(
                f"{self._folder / COMMITS / self._file_name} belongs to a run of another spec",
                got=record.fingerprint,
                expected=self._run.fingerprint,
            )
        return record

    @cached_property
    def path(self) -> Path:
        """Its data file; the first use checks that it is there, and whole where needed."""
        path = data_path(self._folder, self.commit, self._format)
        if self._remote or not self._format.check_first:  # a copy is compared on its way here
            return path
        if checksum_file(path) != self.commit.xxh3:
            raise DamagedRunError(f"{path} is damaged: its checksum is not the committed one")
        return path

    def _file(self) -> TensorFile:
        file = self._files.get(self.path, self._format, self.commit.xxh3)
        if dict(file.header) != self._header:
            raise DamagedRunError(
                f"{self.path} holds another unit", got=dict(file.header), expected=self._header
            )
        return file

    @cached_property
    def _header(self) -> dict[str, str]:
        return {"unit": encode_unit(self.commit.unit), "fingerprint": self.commit.fingerprint}

    def read(self, name: str) -> Array:
        """A tensor, read-only; its checksum is verified the first time.

        Raises:
            DamagedRunError: it is not what was committed.
        """
        entry = self.commit.tensors.get(name)
        if entry is None:
            raise BadInputError(
                f"unit {self.commit.unit!r} holds no {name!r}",
                expected="one of " + ", ".join(self.commit.tensors),
            )
        file = self._file()
        if not self._in_place(entry):

            def read() -> Array:
                array = values_of(file, name, entry)
                self._check(name, array)
                return array

            return self._files.recent(self.path, name, read, self._format.mapped)
        array = file.read(name)
        if name not in self._checked:
            self._check(name, array)
            self._checked.add(name)
        return array

    def _in_place(self, entry: TensorEntry) -> bool:
        """Whether a tensor's values are read where they lie."""
        return self._mapped and entry.coding is None

    def _check(self, name: str, array: Array) -> None:
        entry = self.commit.tensors[name]
        what = (dtype_name(array.dtype), array.shape)
        if what != (entry.dtype, entry.shape) or checksum(array) != entry.xxh3:
            raise self._damaged(name, *what)

    def _damaged(self, name: str, dtype: str, shape: tuple[int, ...]) -> DamagedRunError:
        entry = self.commit.tensors[name]
        return DamagedRunError(
            f"tensor {name!r} of {self.path} is damaged: it is not what was committed",
            got=f"{dtype} {list(shape)}",
            expected=f"{entry.dtype} {list(entry.shape)}, checksum {entry.xxh3}",
            next_step="`actscope runs repair` takes the unit back",
        )

    def read_into(self, name: str, target: Array) -> None:
        """Copy a whole tensor to an array of its shape, checked on the way.

        Raises:
            DamagedRunError: it is not what was committed.
        """
        entry = self.commit.tensors[name]
        if not self._in_place(entry) or dtype_name(target.dtype) != entry.dtype:
            target[:] = self.read(name)
            return
        file = cast("MappedFile", self._file())
        there = file.read(name)
        what = (dtype_name(there.dtype), there.shape)
        if what != (entry.dtype, entry.shape) or file.read_into(name, target) != entry.xxh3:
            raise self._damaged(name, *what)
        self._checked.add(name)

    def private(self, name: str, start: int, stop: int) -> Array:
        """Rows of a tensor that the caller may change."""
        array = self.read(name)
        if self._in_place(self.commit.tensors[name]):
            return cast("MappedFile", self._file()).private(name, start, stop)
        return array[start:stop].copy()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the commit record."""
        return self.commit.tensors[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor, from the commit record."""
        return self.commit.tensors[name].dtype
