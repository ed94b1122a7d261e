"""safetensors: one file a site for the whole run, or one an example (``--option per=example``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.formats._arrays import ArrayFormat
from actscope.formats._examples import example_tensors, unit_of_examples
from actscope.formats._format import Option
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._manifest import ExportFolder
from actscope.formats._parts import SITE_OPTION, files_of
from actscope.formats._records import batch_of_arrays
from actscope.stores import (
    SafetensorsFile,
    dump_json,
    make_folder,
    publish,
    safetensors_header,
    write_safetensors,
)

__all__ = ["FORMAT", "SafetensorsFormat"]

_FOLDER = "examples"


def _per(word: str) -> str:
    if word not in ("site", "example"):
        raise ValueError(word)
    return word


class SafetensorsFormat(ArrayFormat):
    """safetensors files."""

    name: ClassVar[str] = "safetensors"
    summary: ClassVar[str] = "one .safetensors a site, all rows of the run; or one an example"
    keeps_bfloat16: ClassVar[bool] = True
    suffix: ClassVar[str] = ".safetensors"
    options: ClassVar[Mapping[str, Option]] = {
        "per": Option("site", _per, "site or example: what a file holds"),
        "site": SITE_OPTION,
    }

    def header(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
        """A header of one tensor, called after its site."""
        like = np.broadcast_to(np.zeros((), dtype), shape)  # a shape and a dtype, no memory
        return safetensors_header([name], {name: like}, {})

    def begin(self, job: ExportJob) -> None:
        """Make the files at their full size, or the folder of examples."""
        if job.options["per"] == "site":
            super().begin(job)
        else:
            make_folder(job.folder / _FOLDER)

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Fill the unit's places, or publish a file for each of its examples."""
        if job.options["per"] == "site":
            return super().write(job, unit, marks)
        first = job.layout.place("rows.offsets", unit.number)[0]
        for i, (record, tensors) in enumerate(example_tensors(unit, job.sites)):
            header = {"example": dump_json(record.to_json(), "an example")}
            publish(
                job.folder / _FOLDER,
                "export",
                lambda file, t=tensors, h=header: write_safetensors(file, t, h),
                lambda _, at=first + i: f"{at:08d}.safetensors",
            )
        return {}

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The unit's rows of every file, or its examples' files put together."""
        if folder.manifest.options.get("per") != "example":
            return super().read(folder, unit)
        start, stop = folder.layout.place("rows.offsets", unit)
        files = [folder.file(f"{_FOLDER}/{at:08d}.safetensors") for at in range(start, stop - 1)]
        return unit_of_examples([_read(file) for file in files], folder.units[unit])

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """One unit a file; every tensor is called after its site."""
        first = 0
        for file in files_of(path, (self.suffix,), self.name):
            batch = batch_of_arrays(file.stem, _read(file)[1], site=options["site"], first=first)
            first += len(batch)
            yield file.name, batch


def _read(path: Path) -> tuple[str, dict[str, Array]]:
    """(example record as JSON, tensors) of a file."""
    file = SafetensorsFile(path)
    tensors = {name: file.read(name) for name in file.names()}
    file.close()
    return file.header.get("example", ""), tensors


FORMAT = SafetensorsFormat()
