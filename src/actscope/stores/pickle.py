"""Units as pickles of plain containers, for programs that read nothing else."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from actscope.core.arrays import DTYPES, Array
from actscope.core.errors import DamagedRunError
from actscope.stores._formats import UnitFormat
from actscope.stores._plain_pickle import (
    PlainPickleError,
    read_plain_pickle,
    write_plain_pickle,
)
from actscope.stores._run_folder import FolderStorage

__all__ = ["STORE", "PickleStorage"]

_EXTRA = ("int8", "int16", "uint16", "uint32", "uint64")
_DTYPES = DTYPES | {name: np.dtype(name) for name in _EXTRA}


class _PickleFile:
    """An open file: its containers are parsed once, its tensors stay in the file's own pages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        try:
            self._open()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRunError(
                f"{path} is no pickle of plain containers",
                got=str(error),
                next_step="nothing of it was run; `actscope runs verify` lists what is damaged",
            ) from error

    def _open(self) -> None:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(self._path, flags), "rb") as file:  # noqa: PTH123 - opened from a handle
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = read_plain_pickle(memoryview(self._map))
        self.header: dict[str, str] = {str(k): str(v) for k, v in data["header"].items()}
        self._tensors: dict[str, Any] = dict(data["tensors"])

    def names(self) -> list[str]:
        """Its tensors."""
        return list(self._tensors)

    def read(self, name: str) -> Array:
        """One tensor, read-only, over the file's own pages."""
        try:
            entry = cast("dict[str, Any]", self._tensors[name])
            dtype, shape, data = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data"]
            if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
                raise PlainPickleError("its size is not its shape's")
            return np.frombuffer(data, dtype).reshape(shape)
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedRunError(
                f"{self._path} holds no readable tensor {name!r}", got=repr(error)
            ) from error

    def close(self) -> None:
        """Let go of the file; arrays that were read stay good."""
        self._tensors = {}
        if self._map is not None:
            with contextlib.suppress(BufferError):  # an array still looks at it
                self._map.close()
            self._map = None


class PickleStorage(FolderStorage):
    """Runs of one pickle per unit: dictionaries, lists, texts, numbers and bytes, no class.

    ``numpy.frombuffer(entry["data"], entry["dtype"])`` of ``pickle.load(file)["tensors"][key]`` is
    the tensor, flat; bfloat16 is kept as its bytes and needs ``ml_dtypes``.

    Args:
        path: The folder that holds the runs.
    """

    keeps_bfloat16: ClassVar[bool] = True
    unit_format: ClassVar[UnitFormat] = UnitFormat(
        name="pickle",
        folder="units",
        suffix=".pkl",
        keeps_bfloat16=True,
        write=write_plain_pickle,
        read=_PickleFile,
    )


STORE = PickleStorage
