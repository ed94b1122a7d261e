"""One ``.npz`` a unit: ``numpy.load("out/part-00000.npz")["blocks.3.resid_post"]``."""

from __future__ import annotations

from typing import ClassVar

from actscope.formats._parts import PartFormat
from actscope.stores import NPZStorage
from actscope.stores._formats import UnitFormat

__all__ = ["FORMAT", "NpzFormat"]


class NpzFormat(PartFormat):
    """numpy archives, uncompressed."""

    name: ClassVar[str] = "npz"
    summary: ClassVar[str] = "one .npz a unit, an array a site"
    unit_format: ClassVar[UnitFormat] = NPZStorage.unit_format


FORMAT = NpzFormat()
