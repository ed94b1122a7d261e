"""The cached activations that SAELens trains on (``use_cached_activations=True``).

A dataset folder with a column for each hook, ``[context_size, d_in]`` a row, and ``token_ids``
``[context_size]``; columns are called as TransformerLens calls the hook. SAELens has no mask: every
row it reads is a training row. So nothing is padded: where examples have different lengths, their
rows are laid end to end and cut into sequences of ``context_size``, and the rest that fills no
sequence is left out.

Layout: https://github.com/decoderesearch/SAELens, sae_lens/cache_activations_runner.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actscope.core.activations import ActivationBatch
from actscope.core.aliases import to_transformer_lens
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError
from actscope.core.sites import Site
from actscope.formats import _arrow
from actscope.formats._dataset_folder import (
    arrow_files,
    hugging_face,
    read_stream,
    write_index,
    write_stream,
)
from actscope.formats._format import Option, RunFormat
from actscope.formats._job import ExportJob, ExportUnit

__all__ = ["FORMAT", "SaelensFormat"]

_MOST_VALUES = 1 << 27


def _context_size(word: str) -> int:
    if int(word) < 1:
        raise ValueError(word)
    return int(word)


class SaelensFormat(RunFormat):
    """SAELens' activation dataset."""

    name: ClassVar[str] = "saelens"
    summary: ClassVar[str] = "SAELens' cached activations: values and tokens, no texts or ids"
    extra: ClassVar[str] = "datasets"
    lossless: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "context_size": Option(128, _context_size, "rows of a sequence, a whole number from 1")
    }

    def check(self, job: ExportJob) -> None:
        """Refuse pooled runs, patterns, and sites that TransformerLens has no name for."""
        hugging_face(self.name)
        for site in job.sites if len(job) else ():
            if site.layout != "rows" or job.entry(site).pooled:
                raise BadInputError(
                    f"SAELens trains on rows of tokens, and {site} has none",
                    next_step="--sites takes other sites; capture without --pool",
                )
            _hook(site)
        if len(job) and not self._sequences(job, len(job) - 1)[1]:
            raise BadInputError(
                "the run has fewer rows than one sequence",
                got=f"{job.layout.shape('rows.positions')[0]} rows",
                next_step="--option context_size=N takes shorter sequences",
            )

    def _sequences(self, job: ExportJob, unit: int) -> tuple[int, int]:
        """The sequences that are complete with this unit: first, and one past the last."""
        start, stop = job.layout.place("rows.positions", unit)
        size = job.options["context_size"]
        return start // size, stop // size

    def _features(self, job: ExportJob) -> Any:
        library = hugging_face(self.name)
        size = job.options["context_size"]
        columns = {
            _hook(site): library.Array2D(
                shape=(size, job.layout.shape(str(site))[1]), dtype=str(job.dtype(str(site)))
            )
            for site in job.sites
            if len(job)
        }
        if "tokens.ids" in job.layout.names:
            columns["token_ids"] = library.List(library.Value("int32"), length=size)
        return library.Features(columns)

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Publish the sequences that are complete with this unit; the first may begin before it."""
        pa = _arrow.pyarrow(self.name)
        schema = self._features(job).arrow_schema
        first, stop = self._sequences(job, unit.number)
        widest = max(job.layout.shape(str(site))[1] for site in job.sites)
        step = max(1, _MOST_VALUES // (widest * job.options["context_size"]))
        batches = (
            self._batch(pa, schema, job, at, min(at + step, stop))
            for at in range(first, stop, step)
        )
        write_stream(pa, job, unit.number, schema, batches)
        return {}

    def _batch(self, pa: Any, schema: Any, job: ExportJob, first: int, stop: int) -> Any:
        size = job.options["context_size"]
        columns: list[Any] = []
        for site in job.sites:
            rows = job.rows(str(site), first * size, stop * size)
            values = pa.array(np.ascontiguousarray(rows).reshape(-1))
            inner = pa.ListArray.from_arrays(_steps(pa, len(rows), rows.shape[1]), values)
            outer = pa.ListArray.from_arrays(_steps(pa, stop - first, size), inner)
            kind = schema.field(_hook(site)).type
            columns.append(pa.ExtensionArray.from_storage(kind, outer))
        if "tokens.ids" in job.layout.names:
            ids = _token_ids(job, first * size, stop * size)
            kind = schema.field("token_ids").type
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(ids), type=kind))
        return pa.record_batch(columns, schema=schema)

    def finish(self, job: ExportJob) -> None:
        """The two JSON files."""
        write_index(job, self._features(job))

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """One unit a file; every sequence is an example."""
        pa = _arrow.pyarrow(self.name)
        first = 0
        for file in arrow_files(path):
            table = read_stream(pa, file)
            if not len(table):
                continue
            batch = _arrow.foreign_batch(pa, file.stem, table, first)
            first += len(batch)
            yield file.name, batch


def _hook(site: Site) -> str:
    """What TransformerLens calls a site.

    Raises:
        BadInputError: it has no name for it.
    """
    name = to_transformer_lens(site)
    if name is None:
        raise BadInputError(
            f"TransformerLens, and so SAELens, has no name for {site}",
            next_step="--sites takes other sites",
        )
    return name


def _steps(pa: Any, n: int, width: int) -> Any:
    return pa.array(np.arange(n + 1, dtype=np.int32) * np.int32(width))


def _token_ids(job: ExportJob, start: int, stop: int) -> Array:
    """The token of each of some rows, int32."""
    pieces: list[Array] = []
    for number in range(len(job)):
        first, last = job.layout.place("rows.positions", number)
        if first < stop and start < last:
            pieces.append(_tokens_of_rows(job.unit(number))[max(0, start - first) : stop - first])
    return np.concatenate(pieces).astype(np.int32)


def _tokens_of_rows(unit: ExportUnit) -> Array:
    counts = np.diff(unit["rows.offsets"])
    starts = np.repeat(unit["tokens.offsets"][:-1], counts)
    return unit["tokens.ids"][starts + unit["rows.positions"]]


FORMAT = SaelensFormat()
