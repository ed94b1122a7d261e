"""One HDF5 file a unit: ``h5py.File("out/part-00000.h5")["blocks.3.resid_post"]``.

A file a unit, because a single file cannot be read after the program that writes it was killed.
"""

from __future__ import annotations

from typing import ClassVar

from actscope.formats._format import needs
from actscope.formats._job import ExportJob
from actscope.formats._parts import PartFormat
from actscope.stores import HDF5Storage
from actscope.stores._formats import UnitFormat

__all__ = ["FORMAT", "Hdf5Format"]


class Hdf5Format(PartFormat):
    """HDF5 with one contiguous dataset a site."""

    name: ClassVar[str] = "hdf5"
    summary: ClassVar[str] = "one .h5 a unit, a dataset a site"
    extra: ClassVar[str] = "hdf5"
    unit_format: ClassVar[UnitFormat] = HDF5Storage.unit_format
    other_suffixes: ClassVar[tuple[str, ...]] = (".hdf5",)

    def check(self, job: ExportJob) -> None:
        """Refuse where h5py is not installed."""
        try:
            import h5py  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise needs(self.name, self.extra, error) from error


FORMAT = Hdf5Format()
