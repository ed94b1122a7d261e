"""One pickle a unit, of dictionaries, lists, texts, numbers and bytes; no class is needed or read.

Pickles of other programs are read by a reader that knows plain containers and numpy's arrays, and
has no instruction that could run anything; gzip may have packed them.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import ClassVar

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats._parts import PartFormat, unpacked
from actscope.stores import PickleStorage, UnitFormat, read_plain_pickle, walk_arrays

__all__ = ["FORMAT", "PickleFormat"]


class PickleFormat(PartFormat):
    """Pickles of plain containers."""

    name: ClassVar[str] = "pickle"
    summary: ClassVar[str] = "one .pkl a unit, plain containers and bytes"
    keeps_bfloat16: ClassVar[bool] = True
    unit_format: ClassVar[UnitFormat] = PickleStorage.unit_format
    other_suffixes: ClassVar[tuple[str, ...]] = (".pickle", ".pkl.gz", ".pickle.gz")

    def arrays_of(self, path: Path) -> dict[str, Array]:
        """Every array in the dictionaries of a file, names of nested ones joined by dots."""
        try:
            data = unpacked(path) if path.suffix == ".gz" else _mapped(path)
            return dict(walk_arrays(read_plain_pickle(memoryview(data))))
        except (OSError, ValueError) as error:
            raise DamagedRunError(
                f"{path} is no pickle of plain containers and arrays; nothing of it was run",
                got=str(error),
                next_step="save the arrays with numpy.savez, or torch.save of tensors",
            ) from error


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


FORMAT = PickleFormat()
