"""The native store: one safetensors file per unit."""

from __future__ import annotations

from typing import ClassVar

from actscope.stores._formats import UnitFormat
from actscope.stores._run_folder import FolderStorage
from actscope.stores._safetensors import RangedSafetensors, SafetensorsFile, write_safetensors

__all__ = ["STORE", "ShardStorage"]


class ShardStorage(FolderStorage):
    """Runs of safetensors shards: any dtype, read without copying.

    Args:
        path: The folder that holds the runs.
    """

    keeps_bfloat16: ClassVar[bool] = True
    unit_format: ClassVar[UnitFormat] = UnitFormat(
        name="shards",
        folder="shards",
        suffix=".safetensors",
        keeps_bfloat16=True,
        write=write_safetensors,
        read=SafetensorsFile,
        mapped=True,
        ranged=RangedSafetensors,
    )


STORE = ShardStorage
