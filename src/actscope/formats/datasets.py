"""A Hugging Face dataset: ``datasets.load_from_disk("out")[7]["blocks.3.resid_post"]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.formats import _arrow
from actscope.formats._dataset_folder import (
    arrow_files,
    arrow_name,
    hugging_face,
    read_stream,
    write_index,
    write_stream,
)
from actscope.formats._format import RunFormat
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._manifest import ExportFolder

__all__ = ["FORMAT", "DatasetsFormat"]


class DatasetsFormat(RunFormat):
    """The folder of ``Dataset.save_to_disk``."""

    name: ClassVar[str] = "datasets"
    summary: ClassVar[str] = "a Hugging Face dataset folder, one row an example"
    extra: ClassVar[str] = "datasets"

    def check(self, job: ExportJob) -> None:
        """Refuse where the library is not installed."""
        hugging_face(self.name)
        _arrow.schema_of(_arrow.pyarrow(self.name), job)

    def _schema(self, job: ExportJob) -> tuple[Any, Any]:
        """(schema with the features in it, features)."""
        library = hugging_face(self.name)
        schema = _arrow.schema_of(_arrow.pyarrow(self.name), job)
        features = library.Features.from_arrow_schema(schema)
        return features.arrow_schema, features

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Publish one Arrow stream."""
        pa = _arrow.pyarrow(self.name)
        schema, _ = self._schema(job)
        write_stream(pa, job, unit.number, schema, _arrow.record_batches(pa, schema, unit))
        return {}

    def finish(self, job: ExportJob) -> None:
        """The two JSON files."""
        write_index(job, self._schema(job)[1])

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The tensors of one stream."""
        pa = _arrow.pyarrow(self.name)
        path = folder.file(arrow_name(unit, len(folder.units)))
        return _arrow.unit_of_table(pa, read_stream(pa, path), folder.units[unit])

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """One unit a file: list columns called after sites, one row an example."""
        pa = _arrow.pyarrow(self.name)
        first = 0
        for file in arrow_files(path):
            batch = _arrow.foreign_batch(pa, file.stem, read_stream(pa, file), first)
            first += len(batch)
            yield file.name, batch


FORMAT = DatasetsFormat()
