"""One Parquet file a unit, one row an example: ``pyarrow.parquet.read_table("out")``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats import _arrow
from actscope.formats._format import RunFormat
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._manifest import ExportFolder
from actscope.formats._parts import files_of, part_name, refuse_bomb
from actscope.stores import publish

__all__ = ["FORMAT", "ParquetFormat"]

_SUFFIX = ".parquet"


class ParquetFormat(RunFormat):
    """Apache Parquet."""

    name: ClassVar[str] = "parquet"
    summary: ClassVar[str] = "one .parquet a unit, one row an example, a column a site"
    extra: ClassVar[str] = "parquet"

    def check(self, job: ExportJob) -> None:
        """Refuse where pyarrow is not installed."""
        _arrow.schema_of(_arrow.pyarrow(self.name), job)

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Publish one file; a row group is what is in memory at once."""
        pa = _arrow.pyarrow(self.name)
        schema = _arrow.schema_of(pa, job)

        def fill(file: BinaryIO) -> None:
            from pyarrow import parquet

            # A dictionary of floats would take every NaN for the same one
            with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
                for batch in _arrow.record_batches(pa, schema, unit):
                    writer.write_batch(batch)

        publish(job.folder, "export", fill, lambda _: part_name(unit.number, _SUFFIX))
        return {}

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The tensors of one file."""
        pa = _arrow.pyarrow(self.name)
        table = _read(pa, folder.file(part_name(unit, _SUFFIX)))
        return _arrow.unit_of_table(pa, table, folder.units[unit])

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """One unit a file: list columns called after sites, one row an example."""
        pa = _arrow.pyarrow(self.name)
        first = 0
        for file in files_of(path, (_SUFFIX,), self.name):
            batch = _arrow.foreign_batch(pa, file.stem, _read(pa, file), first)
            first += len(batch)
            yield file.name, batch


_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_TEXT = "BYTE_ARRAY"


def _read(pa: Any, path: Path) -> Any:
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            texts = _texts(parquet.ParquetFile(file).metadata, path.name, size)
            table = parquet.ParquetFile(file, read_dictionary=texts).read(use_threads=False)
            for name in texts:
                refuse_bomb(name, _length(pa, table.column(name)), size)
            return table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedRunError(
            f"{path} cannot be read as Parquet",
            got=str(error)[:300],
            next_step="write the file again",
        ) from error


def _texts(metadata: Any, name: str, size: int) -> list[str]:
    """The columns of texts, once the file does not claim more values than it can mean.

    A dictionary makes a million equal numbers, or texts, a few bytes.

    Raises:
        ValueError: it is made to fill memory.
    """
    total = 0
    texts: dict[str, None] = {}
    for group in range(metadata.num_row_groups):
        for at in range(metadata.num_columns):
            column = metadata.row_group(group).column(at)
            width = _WIDTHS.get(column.physical_type) or metadata.schema.column(at).length or 0
            total += max(column.num_values * width, column.total_uncompressed_size)
            if column.physical_type == _TEXT and "." not in column.path_in_schema:
                texts[column.path_in_schema] = None
    refuse_bomb(name, total, size)
    return list(texts)


def _length(pa: Any, column: Any) -> int:
    """Bytes of the texts of a column that is kept as a dictionary."""
    from pyarrow import compute as untyped

    compute: Any = untyped
    total = 0
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            return 0
        lengths = compute.binary_length(chunk.dictionary).cast(pa.int64())
        total += compute.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


FORMAT = ParquetFormat()
