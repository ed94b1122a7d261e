"""What a file format has to offer to hold units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import xxhash

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.stores._remote_path import RemotePath

__all__ = [
    "FileSums",
    "MappedFile",
    "TensorFile",
    "UnitFormat",
    "as_bytes",
    "checksum",
    "checksum_file",
    "sums_after_writing",
]

_CHUNK = 8 << 20


class TensorFile(Protocol):
    """An open data file."""

    @property
    def header(self) -> Mapping[str, str]:
        """The texts it was written with: the unit's id and the spec's fingerprint."""
        ...

    def names(self) -> list[str]:
        """Its tensors."""
        ...

    def read(self, name: str) -> Array:
        """One tensor, read-only.

        Raises:
            DamagedRunError: there is none, or it cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of the file; arrays that were read stay good."""
        ...


class MappedFile(TensorFile, Protocol):
    """An open data file whose tensors are read over the file's own pages, so reading is free."""

    def read_into(self, name: str, target: Array) -> str:
        """Fill a contiguous array of a tensor's dtype and shape; returns the tensor's checksum."""
        ...

    def private(self, name: str, start: int, stop: int) -> Array:
        """Rows of one tensor that the caller may change without anyone else seeing it."""
        ...


@dataclass(frozen=True)
class FileSums:
    """Checksums of a file and of each of its tensors."""

    file: str
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class UnitFormat:
    """How units become files.

    Attributes:
        name: The store's name, the stem of its file.
        folder: Where data files lie in a run.
        suffix: How their names end.
        keeps_bfloat16: Whether the format has bfloat16.
        write: Fills an empty file with tensors and a header, and returns the checksums.
        read: Opens a file.
        check_first: Whether a file's checksum must be right before its reader may see it, because
            the reader is not made for damaged files.
        mapped: Whether ``read`` gives a ``MappedFile``.
        place: In which file of the run a tensor lies, where that may not be the unit's own.
        ranged: Opens a file on a server so that single tensors are fetched; without it files are
            copied here whole.
    """

    name: str
    folder: str
    suffix: str
    keeps_bfloat16: bool
    write: Callable[[BinaryIO, Mapping[str, Array], Mapping[str, str]], FileSums]
    read: Callable[[Path], TensorFile]
    check_first: bool = False
    mapped: bool = False
    place: Callable[[TensorFile, str], str] | None = None
    ranged: Callable[[RemotePath], TensorFile] | None = None


def as_bytes(array: Array) -> memoryview:
    """The little-endian bytes of an array; no copy where they are contiguous."""
    flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data


def checksum(array: Array) -> str:
    """xxh3-128 of the bytes of an array, hex."""
    return xxhash.xxh3_128_hexdigest(as_bytes(array))


def checksum_file(path: Path) -> str:
    """xxh3-128 of a file, hex.

    Raises:
        DamagedRunError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _checksum_stream(file)
    except OSError as error:
        raise DamagedRunError(f"{path} cannot be read", got=error.strerror) from error


def sums_after_writing(file: BinaryIO, tensors: Mapping[str, Array]) -> FileSums:
    """The checksums of a file that a library has written out of our sight."""
    file.flush()
    file.seek(0)
    return FileSums(_checksum_stream(file), {k: checksum(v) for k, v in tensors.items()})


def _checksum_stream(file: BinaryIO) -> str:
    total = xxhash.xxh3_128()
    while chunk := file.read(_CHUNK):
        total.update(chunk)
    return total.hexdigest()
