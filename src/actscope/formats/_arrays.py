"""Formats of one array a tensor of the whole run, at its full size from the start, filled in place.

``blocks.3.resid_post.npy`` is ``[sum of rows of the run, d]``. Every unit is written at its own
place, so writing it again after a kill changes nothing.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats._format import RunFormat
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._layout import out_dtype
from actscope.formats._manifest import ExportFolder
from actscope.stores import as_bytes, encode_unit, fail_point

__all__ = ["EXAMPLES", "ArrayFormat", "file_stem"]

EXAMPLES = "examples.jsonl"
"""The example records, one JSON line each."""


def file_stem(name: str) -> str:
    """A file's stem for a tensor: plain names stay as they are, nothing leads out of the folder."""
    return encode_unit(name).replace("%2e", ".")


class ArrayFormat(RunFormat):
    """One file a tensor."""

    suffix: ClassVar[str]

    @abstractmethod
    def header(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
        """The first bytes of a file."""

    def _file(self, name: str) -> str:
        return EXAMPLES if name == "examples" else file_stem(name) + self.suffix

    def _head(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
        return b"" if name == "examples" else self.header(name, dtype, shape)

    def begin(self, job: ExportJob) -> None:
        """Make every file at its full size."""
        for name in job.layout.names:
            dtype, shape = job.dtype(name), job.layout.shape(name)
            head = self._head(name, dtype, shape)
            path = job.folder / self._file(name)
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.write(head)
                file.truncate(len(head) + dtype.itemsize * math.prod(shape))
                file.flush()
                os.fsync(file.fileno())

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Write the unit's rows at their places."""
        for name in unit:
            array = unit[name]
            head = self._head(name, array.dtype, job.layout.shape(name))
            start, _ = job.layout.place(name, unit.number)
            if name.endswith(".offsets"):
                array = array + job.layout.base(name, unit.number)
            one = array.itemsize * math.prod(array.shape[1:])
            with (job.folder / self._file(name)).open("r+b") as file:
                file.seek(len(head) + start * one)
                file.write(as_bytes(array))
                file.flush()
                fail_point("export.half-written")
                os.fsync(file.fileno())
        return {}

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The unit's rows of every file."""
        found: dict[str, Array] = {}
        for name in folder.units[unit].shapes:
            start, stop = folder.layout.place(name, unit)
            rows = self.array_of(folder, name)[start:stop]
            base = folder.layout.base(name, unit)
            found[name] = rows - base if base else rows
        return found

    def array_of(self, folder: ExportFolder, name: str) -> Array:
        """A whole file as one array, mapped into memory.

        Raises:
            DamagedRunError: its first bytes or its size are not those of such an array.
        """
        path = folder.file(self._file(name))
        dtype, shape = self.dtype_in(folder, name), folder.layout.shape(name)
        head = self._head(name, dtype, shape)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(len(head)) != head or size != len(head) + dtype.itemsize * math.prod(
                shape
            ):
                raise DamagedRunError(
                    f"{path} is not the array that was exported",
                    expected=f"{dtype} {list(shape)}",
                    next_step="export the run again",
                )
            if 0 in shape:
                return np.zeros(shape, dtype)
            return np.memmap(file, dtype, "r", len(head), shape)

    def dtype_in(self, folder: ExportFolder, name: str) -> np.dtype[Any]:
        """The dtype of a tensor in the files."""
        return out_dtype(folder.units[0].dtypes[name], self.keeps_bfloat16)
