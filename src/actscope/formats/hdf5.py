"""One HDF5 file a unit: ``h5py.File("out/part-00000.h5")["blocks.3.resid_post"]``.

A file a unit, because a single file cannot be read after the program that writes it was killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats._format import needs
from actscope.formats._job import ExportJob
from actscope.formats._parts import PartFormat, refuse_bomb
from actscope.formats._records import site_of
from actscope.stores import HDF5Storage, UnitFormat

__all__ = ["FORMAT", "Hdf5Format"]

_FILTERS = {1, 2, 3, 32000}
"""deflate, shuffle, fletcher32 and lzf: those that need no plug-in."""

_DEPTH = 4
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


class Hdf5Format(PartFormat):
    """HDF5 with one contiguous dataset a site; those of others may be chunked and compressed."""

    name: ClassVar[str] = "hdf5"
    summary: ClassVar[str] = "one .h5 a unit, a dataset a site"
    extra: ClassVar[str] = "hdf5"
    unit_format: ClassVar[UnitFormat] = HDF5Storage.unit_format
    other_suffixes: ClassVar[tuple[str, ...]] = (".hdf5",)

    def check(self, job: ExportJob) -> None:
        """Refuse where h5py is not installed."""
        self._library()

    def _library(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise needs(self.name, self.extra, error) from error
        return h5py

    def arrays_of(self, path: Path) -> dict[str, Array]:
        """Every dataset of numbers of a file of another program, groups joined by dots."""
        h5py = self._library()
        try:
            with h5py.File(path, "r", locking=False) as file:
                return {name: _numbers(name, data) for name, data in _datasets(h5py, file)}
        except _BROKEN as error:
            raise DamagedRunError(
                f"{path} is no HDF5 file of plain arrays; nothing of it was run",
                got=str(error)[:300],
                next_step="save datasets of numbers, in the file itself",
            ) from error


def _datasets(h5py: Any, group: Any, prefix: str = "", depth: int = _DEPTH) -> Iterator[Any]:
    """(name, dataset) of everything that may be activations; links are refused."""
    for key in group:
        name = f"{prefix}{key}"
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")
        item = group[key]
        if isinstance(item, h5py.Group) and depth:
            yield from _datasets(h5py, item, f"{name}.", depth - 1)
        elif isinstance(item, h5py.Dataset) and (item.dtype.kind in "biuf" or site_of(name)):
            yield name, item


def _numbers(name: str, data: Any) -> Array:
    plist = data.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if data.is_virtual or data.external or data.dtype.kind not in "biuf" or filters - _FILTERS:
        raise ValueError(f"{name} holds no plain numbers of its own")
    refuse_bomb(name, data.size * data.dtype.itemsize, data.id.get_storage_size())
    return np.asarray(data[...])


FORMAT = Hdf5Format()
