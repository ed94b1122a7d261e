"""Units as HDF5 files. A file is finished before it gets its name, so a kill cannot tear it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._formats import FileSums, UnitFormat, sums_after_writing
from actscope.stores._run_folder import FolderRunWriter, FolderStorage

__all__ = ["STORE", "HDF5Storage"]

_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
"""What h5py raises on a damaged file."""


def _h5py() -> Any:
    """The library, imported when a file is written or read.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise BadInputError(
            "the hdf5 store needs h5py",
            got=str(error),
            next_step="pip install 'actscope[hdf5]', or use another store",
        ) from error
    return h5py


def _write(file: BinaryIO, tensors: Mapping[str, Array], header: Mapping[str, str]) -> FileSums:
    """One contiguous dataset a tensor, its name as it is; the header is attributes of the root."""
    with _h5py().File(file, "w") as h5:
        for key, value in header.items():
            h5.attrs[key] = value
        for name in sorted(tensors):
            h5.create_dataset(
                _escaped(name), data=np.ascontiguousarray(tensors[name]), track_times=False
            )
    return sums_after_writing(file, tensors)


def _escaped(name: str) -> str:
    """A name HDF5 takes for a plain name: a slash would make groups, a lone dot is the root."""
    name = name.replace("%", "%25").replace("/", "%2f")
    return name.replace(".", "%2e") if not name.strip(".") else name


def _unescaped(key: str) -> str:
    return key.replace("%2e", ".").replace("%2f", "/").replace("%25", "%")


class _HDF5File:
    """An open HDF5 file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        h5py = _h5py()
        try:
            self._file = h5py.File(path, "r", locking=False)
            self.header: dict[str, str] = {k: str(v) for k, v in self._file.attrs.items()}
        except _BROKEN as error:
            raise DamagedRunError(f"{path} cannot be read as HDF5", got=str(error)) from error

    def names(self) -> list[str]:
        """Its datasets."""
        return [_unescaped(key) for key in self._file]

    def read(self, name: str) -> Array:
        """One dataset, read-only; links to other files are not followed."""
        h5py = _h5py()
        key = _escaped(name)
        try:
            if not isinstance(self._file.get(key, getlink=True), h5py.HardLink):
                raise KeyError("a link that leads elsewhere, or nothing")
            data = self._file[key]
            if data.is_virtual or data.external or data.dtype.hasobject:
                raise ValueError("its data would come from elsewhere")
            if data.id.get_storage_size() != data.size * data.dtype.itemsize:
                raise ValueError("its size is not its shape's")
            array = np.asarray(data[...])
        except _BROKEN as error:
            raise DamagedRunError(
                f"{self._path} holds no readable dataset {name!r}", got=str(error)
            ) from error
        array.flags.writeable = False
        return array

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class HDF5Storage(FolderStorage):
    """Runs of one HDF5 file per unit; bfloat16 becomes float32. Needs ``actscope[hdf5]``.

    Args:
        path: The folder that holds the runs.
    """

    keeps_bfloat16: ClassVar[bool] = False
    unit_format: ClassVar[UnitFormat] = UnitFormat(
        name="hdf5",
        folder="units",
        suffix=".h5",
        keeps_bfloat16=False,
        write=_write,
        read=_HDF5File,
        check_first=True,
    )

    def open_run(
        self,
        run_id: str,
        spec: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> FolderRunWriter:
        """Create or resume a run; see ``FolderStorage.open_run``.

        Raises:
            BadInputError: h5py is not installed.
        """
        _h5py()
        return super().open_run(run_id, spec, plan)


STORE = HDF5Storage
