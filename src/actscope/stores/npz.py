"""Units as plain ``.npz`` files, for everything that reads numpy."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._formats import FileSums, UnitFormat, sums_after_writing
from actscope.stores._npy import parse_npy
from actscope.stores._run_folder import FolderStorage

__all__ = ["STORE", "NPZStorage"]

_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the standard library raises on a damaged zip archive or array header."""


def _write(file: BinaryIO, tensors: Mapping[str, Array], header: Mapping[str, str]) -> FileSums:
    """An uncompressed archive without times; the header is its comment."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = json.dumps(header, sort_keys=True).encode("ascii")
        for name in sorted(tensors):
            if tensors[name].dtype.hasobject:
                raise BadInputError(f"tensor {name!r} holds Python objects", expected="numbers")
            entry = zipfile.ZipInfo(f"{name}.npy")  # its time is 1980, whenever it is written
            with archive.open(entry, "w", force_zip64=True) as member:
                array = np.ascontiguousarray(tensors[name])
                np.lib.format.write_array(cast("Any", member), array, allow_pickle=False)
    return sums_after_writing(file, tensors)


class _NPZFile:
    """An open archive."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
            comment = json.loads(self._archive.comment or b"{}")
            self.header: dict[str, str] = {str(k): str(v) for k, v in comment.items()}
        except (*_BROKEN, AttributeError) as error:
            raise DamagedRunError(f"{path} cannot be read as npz", got=repr(error)) from error

    def names(self) -> list[str]:
        """Its arrays."""
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def read(self, name: str) -> Array:
        """One array, read-only."""
        try:
            info = self._archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError("it is compressed")  # and could be as large as it likes
            return parse_npy(self._archive.read(info))
        except (*_BROKEN, TypeError, OverflowError) as error:
            raise DamagedRunError(
                f"{self._path} holds no readable array {name!r}", got=repr(error)
            ) from error

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


class NPZStorage(FolderStorage):
    """Runs of one ``.npz`` file per unit; bfloat16 becomes float32.

    ``numpy.load(file)["blocks.3.resid_post"]`` reads an array without actscope.

    Args:
        path: The folder that holds the runs.
    """

    keeps_bfloat16: ClassVar[bool] = False
    unit_format: ClassVar[UnitFormat] = UnitFormat(
        name="npz",
        folder="units",
        suffix=".npz",
        keeps_bfloat16=False,
        write=_write,
        read=_NPZFile,
    )


STORE = NPZStorage
