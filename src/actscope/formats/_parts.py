"""Formats of one file a unit, in the layout of a store: ``part-00000.npz`` and so on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.formats._format import Option, RunFormat
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._manifest import ExportFolder
from actscope.formats._records import batch_of_arrays
from actscope.stores import UnitFormat, encode_unit, publish

__all__ = ["SITE_OPTION", "PartFormat", "files_of", "part_name", "refuse_bomb", "unpacked"]

_MOST_PACKED = 200
"""How much smaller honest activations get by compression, zeros of padding included."""

_PIECE = 1 << 20

SITE_OPTION = Option("", str, "the kind of site of files that only number layers: resid_post, ...")


def part_name(number: int, suffix: str) -> str:
    """The file of a unit."""
    return f"part-{number:05d}{suffix}"


def files_of(path: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """The files to import: the one that was named, or those of a folder, by name.

    Raises:
        BadInputError: there are none, or one is a link.
    """
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [p for p in inside if p.name.endswith(suffixes) and not p.name.startswith(".")]
    if not found:
        raise BadInputError(
            f"{path} holds no {what} files",
            got=", ".join(p.name for p in inside[:5]) or "nothing",
            expected=" or ".join(suffixes),
            next_step="`actscope runs formats` lists the formats",
        )
    for file in found:
        if file.is_symlink() or not file.is_file():
            raise BadInputError(
                f"{file} is a link or no plain file", next_step="import the file itself"
            )
    return found


def unpacked(path: Path) -> memoryview:
    """A file that gzip packed, all of it in memory; what is there is never believed to be small.

    Raises:
        ValueError: it is made to fill memory, or is cut short.
        OSError: it is no gzip file, or is damaged.
    """
    found = bytearray()
    size = path.stat().st_size
    try:
        with gzip.open(path) as file:
            while piece := file.read(_PIECE):
                found += piece
                refuse_bomb(path.name, len(found), size)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"it cannot be unpacked: {error}") from error
    return memoryview(found).toreadonly()


def refuse_bomb(name: str, size: int, packed: int) -> None:
    """Compare what compressed data say they hold with what they take.

    Raises:
        ValueError: they are made to fill memory.
    """
    if size > _MOST_PACKED * packed + (1 << 16):
        raise ValueError(f"{name} is {size} bytes in {packed}: too much for activations")


class PartFormat(RunFormat):
    """One file a unit, with the tensors a native shard has."""

    unit_format: ClassVar[UnitFormat]
    options: ClassVar[Mapping[str, Option]] = {"site": SITE_OPTION}

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Publish one file."""
        header = {
            "fingerprint": unit.commit.fingerprint,
            "part": str(unit.number),
            "unit": encode_unit(unit.commit.unit),
        }
        publish(
            job.folder,
            "export",
            lambda file: self.unit_format.write(file, unit, header),
            lambda _: part_name(unit.number, self.unit_format.suffix),
        )
        return {}

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The tensors of one file."""
        path = folder.file(part_name(unit, self.unit_format.suffix))
        line = folder.units[unit]
        file = self.unit_format.read(path)
        try:
            wanted = {"part": str(unit), "unit": encode_unit(line.unit)}
            got = {key: file.header.get(key) for key in wanted}
            if got != wanted:
                raise DamagedRunError(f"{path} holds another unit", got=got, expected=wanted)
            return {name: file.read(name) for name in line.shapes}
        finally:
            file.close()

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """One unit a file; every array is called after its site."""
        first = 0
        for file in files_of(path, (self.unit_format.suffix, *self.other_suffixes), self.name):
            arrays = self.arrays_of(file)
            batch = batch_of_arrays(file.stem, arrays, site=options["site"], first=first)
            first += len(batch)
            yield file.name, batch

    other_suffixes: ClassVar[tuple[str, ...]] = ()

    def arrays_of(self, path: Path) -> dict[str, Array]:
        """Every array of a file."""
        file = self.unit_format.read(path)
        try:
            return {name: file.read(name) for name in file.names()}
        finally:
            file.close()
