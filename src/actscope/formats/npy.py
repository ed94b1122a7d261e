"""One ``.npy`` a site for the whole run: ``numpy.load(file, mmap_mode="r")`` maps a terabyte.

Example i has the rows ``offsets[i]:offsets[i + 1]`` of ``rows.offsets.npy``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats._arrays import ArrayFormat
from actscope.formats._format import Option
from actscope.formats._parts import SITE_OPTION, files_of
from actscope.formats._records import batch_of_arrays
from actscope.stores import npy_header, read_npy_header

__all__ = ["FORMAT", "NpyFormat"]


class NpyFormat(ArrayFormat):
    """numpy arrays, one a file."""

    name: ClassVar[str] = "npy"
    summary: ClassVar[str] = "one .npy a site, all rows of the run"
    suffix: ClassVar[str] = ".npy"
    options: ClassVar[Mapping[str, Option]] = {"site": SITE_OPTION}

    def header(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
        """Numpy's own header, version 1.0."""
        return npy_header(dtype, shape)

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """All files of a folder as one unit: ``[n, d]`` or ``[n, seq, d]`` each, by site's name."""
        files = files_of(path, (self.suffix,), self.name)
        arrays = {file.stem: _load(file) for file in files}
        yield path.stem, batch_of_arrays(path.stem, arrays, site=options["site"])


def _load(path: Path) -> Array:
    """A file, mapped into memory.

    Raises:
        DamagedRunError: it is no array of plain numbers.
    """
    try:
        with path.open("rb") as file:
            dtype, shape, fortran = read_npy_header(file)
            size = dtype.itemsize * math.prod(shape)
            if size != os.fstat(file.fileno()).st_size - file.tell():
                raise ValueError(f"its shape {list(shape)} is not its size")
            if not size:
                return np.zeros(shape, dtype)
            order = "F" if fortran else "C"
            return np.memmap(file, dtype, "r", file.tell(), shape, order)
    except (OSError, ValueError, OverflowError) as error:
        raise DamagedRunError(
            f"{path} is no array of plain numbers; nothing of it was run",
            got=str(error),
            next_step="save it with numpy.save(..., allow_pickle=False)",
        ) from error


FORMAT = NpyFormat()
