"""One ``.npz`` a unit: ``numpy.load("out/part-00000.npz")["blocks.3.resid_post"]``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import ClassVar

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats._parts import PartFormat, refuse_bomb
from actscope.stores import NPZStorage, UnitFormat, parse_npy

__all__ = ["FORMAT", "NpzFormat"]

_BROKEN = (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)


class NpzFormat(PartFormat):
    """numpy archives; ours are uncompressed, those of others may be."""

    name: ClassVar[str] = "npz"
    summary: ClassVar[str] = "one .npz a unit, an array a site"
    unit_format: ClassVar[UnitFormat] = NPZStorage.unit_format

    def arrays_of(self, path: Path) -> dict[str, Array]:
        """Every array of an archive of another program."""
        found: dict[str, Array] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    refuse_bomb(member.filename, member.file_size, member.compress_size)
                    found[member.filename.removesuffix(".npy")] = parse_npy(archive.read(member))
        except _BROKEN as error:
            raise DamagedRunError(
                f"{path} is no archive of plain arrays; nothing of it was run",
                got=str(error)[:300] or type(error).__name__,
                next_step="save arrays of numbers with numpy.savez",
            ) from error
        return found


FORMAT = NpzFormat()
