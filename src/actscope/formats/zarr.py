"""Zarr version 3: ``zarr.open_group("out/activations.zarr")["blocks.3.resid_post"][100:200]``.

One uncompressed array a tensor of the whole run, in chunks of rows. A chunk is always written whole
and from the run, never from what is in the store, so a kill cannot leave a torn one behind.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats._arrays import file_stem
from actscope.formats._format import Option, RunFormat, needs
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._layout import out_dtype
from actscope.formats._manifest import ExportFolder
from actscope.stores import fail_point, read_limited, sync_folder

__all__ = ["FORMAT", "ZarrFormat"]

GROUP = "activations.zarr"
_CHUNK_BYTES = 4 << 20
_LARGEST_METADATA = 1 << 20


def _rows(word: str) -> int:
    if int(word) < 0:
        raise ValueError(word)
    return int(word)


class ZarrFormat(RunFormat):
    """Zarr arrays."""

    name: ClassVar[str] = "zarr"
    summary: ClassVar[str] = "a Zarr v3 group, an array a site, all rows of the run"
    extra: ClassVar[str] = "zarr"
    options: ClassVar[Mapping[str, Option]] = {
        "chunk_rows": Option(0, _rows, "rows of a chunk of a site; 0 takes about 4 MiB")
    }

    def _library(self) -> Any:
        try:
            import zarr
        except ImportError as error:
            raise needs(self.name, self.extra, error) from error
        return zarr

    def check(self, job: ExportJob) -> None:
        """Refuse where zarr is not installed."""
        self._library()

    def _chunk(self, job: ExportJob, name: str) -> int:
        total, *inner = job.layout.shape(name)
        asked = job.options["chunk_rows"] if inner else 0
        one = max(1, job.dtype(name).itemsize * math.prod(inner))
        return max(1, min(total, asked or _CHUNK_BYTES // one))

    def begin(self, job: ExportJob) -> None:
        """Make the group and its empty arrays."""
        zarr = self._library()
        attributes = {"sites": [str(site) for site in job.sites]}
        group = zarr.open_group(job.folder / GROUP, mode="a", zarr_format=3, attributes=attributes)
        for name in job.layout.names:
            shape = job.layout.shape(name)
            if file_stem(name) not in group:
                group.create_array(
                    file_stem(name),
                    shape=shape,
                    dtype=job.dtype(name),
                    chunks=(self._chunk(job, name), *shape[1:]),
                    compressors=None,
                    fill_value=0,
                )

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Write every chunk that the unit has rows in, whole."""
        zarr = self._library()
        # Otherwise a chunk of -0.0 counts as one of zeros, and is left out
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group(job.folder / GROUP, mode="r+")
            for name in unit:
                start, stop = job.layout.place(name, unit.number)
                if start < stop:
                    self._write_chunks(job, group[file_stem(name)], name, start, stop)
        return {}

    def _write_chunks(self, job: ExportJob, array: Any, name: str, start: int, stop: int) -> None:
        total, chunk = job.layout.shape(name)[0], self._chunk(job, name)
        for at in range(start // chunk * chunk, stop, chunk):
            rows = job.rows(name, at, min(at + chunk, stop))
            block = np.zeros((min(at + chunk, total) - at, *rows.shape[1:]), rows.dtype)
            block[: len(rows)] = rows
            array[at : at + len(block)] = block
            fail_point("export.half-written")
            _flush(job.folder / GROUP / file_stem(name) / "c" / str(at // chunk))

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The unit's rows of every array."""
        found: dict[str, Array] = {}
        for name in folder.units[unit].shapes:
            start, stop = folder.layout.place(name, unit)
            base = folder.layout.base(name, unit)
            rows = self._read_rows(folder, name, start, stop)
            found[name] = rows - base if base else rows
        return found

    def _read_rows(self, folder: ExportFolder, name: str, start: int, stop: int) -> Array:
        """Some rows of an array, after a look at what its metadata asks for.

        Raises:
            DamagedRunError: it asks for anything but plain chunks of numbers.
        """
        path = folder.path / GROUP / file_stem(name)
        shape = folder.layout.shape(name)
        dtype = out_dtype(folder.units[0].dtypes[name], keeps_bfloat16=False)
        try:
            chunk = _checked_chunk(path, dtype, shape)
            inner = shape[1:]
            block = np.zeros((0, *inner), dtype)
            pieces = [block]
            for number in range(start // chunk, -(-stop // chunk)):
                rows = _read_chunk(path, number, dtype, (chunk, *inner))
                first = number * chunk
                pieces.append(rows[max(0, start - first) : stop - first])
            return np.concatenate(pieces)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedRunError(
                f"{path} is not the Zarr array that was exported",
                got=str(error)[:300],
                expected="version 3, plain numbers, codec bytes alone",
                next_step="export the run again",
            ) from error


def _flush(chunk: Path) -> None:
    """Make a chunk durable before its unit is on record; it lies in folders of its own."""
    below = [path for path in chunk.rglob("*") if path.is_dir()] if chunk.is_dir() else []
    files = [path for path in (chunk, *chunk.rglob("*")) if path.is_file()]
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for folder in (*below, *([chunk] if chunk.is_dir() else []), chunk.parent, chunk.parent.parent):
        sync_folder(folder)


def _checked_chunk(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Rows of a chunk, from metadata that asks for nothing but what was exported."""
    data: Any = json.loads(read_limited(path / "zarr.json", _LARGEST_METADATA))
    chunks = data["chunk_grid"]["configuration"]["chunk_shape"]
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": str(dtype),
        "storage_transformers": [],
    }
    got = {key: data.get(key, []) for key in wanted}
    codecs = [codec["name"] for codec in data["codecs"]]
    plain = data["chunk_key_encoding"]["name"] == "default" and codecs == ["bytes"]
    ends = data["codecs"][0].get("configuration", {}).get("endian", "little")
    if got != wanted or not plain or ends != "little" or tuple(chunks[1:]) != shape[1:]:
        raise ValueError(f"{got}, codecs {codecs}")
    if not isinstance(chunks[0], int) or not 1 <= chunks[0] <= max(1, shape[0]):
        raise ValueError(f"chunks of {chunks[0]} rows")
    return chunks[0]


def _read_chunk(path: Path, number: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    file = path.joinpath("c", str(number), *("0" for _ in shape[1:]))
    size = dtype.itemsize * math.prod(shape)
    if not file.exists() and not file.is_symlink():
        return np.zeros(shape, dtype)  # Zarr leaves a chunk out that is all fill value
    raw = read_limited(file, size)
    if len(raw) != size:
        raise ValueError(f"chunk {number} has {len(raw)} bytes, not {size}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)


FORMAT = ZarrFormat()
