"""Units as Arrow tables of one row an example, and back; shared by parquet and datasets.

Columns: ``id index n_tokens n_prompt_tokens text response record token_ids phase positions`` and
one per site, ``list<list<float>>`` (``list<float>`` where tokens were pooled; a pattern is flat).
``record`` is the example's whole record in JSON. Texts with lone surrogates are no Arrow texts:
they are readable in ``text`` with replacement characters, and exact in ``record``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from actscope.core.activations import ActivationBatch, ExampleRecord
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.core.sites import Site
from actscope.formats._examples import example_tensors, unit_of_examples
from actscope.formats._format import needs
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._manifest import UnitLine
from actscope.formats._records import batch_of_examples, site_of
from actscope.stores import dump_json

__all__ = ["foreign_batch", "pyarrow", "record_batches", "schema_of", "unit_of_table"]

_MOST_VALUES = 1 << 27
"""Values of a site in one record batch: what is in memory at once, and far below 32-bit offsets."""

_TEXTS = ("id", "text", "response", "record")
_TABLES = {"token_ids": "tokens.ids", "phase": "tokens.phase", "positions": "rows.positions"}


def pyarrow(format_name: str) -> Any:
    """The library.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise needs(format_name, "parquet", error) from error
    return pyarrow


def schema_of(pa: Any, job: ExportJob) -> Any:
    """The Arrow schema of a run."""
    texts = [(name, pa.string()) for name in _TEXTS]
    numbers = [(name, pa.int64()) for name in ("index", "n_tokens", "n_prompt_tokens")]
    lists = [
        (column, pa.list_(pa.from_numpy_dtype(_TABLE_TYPES[column])))
        for column, table in _TABLES.items()
        if table in job.layout.names or not len(job)
    ]
    sites = [(str(site), _site_type(pa, job, site)) for site in job.sites if len(job)]
    return pa.schema(texts + numbers + lists + sites)


_TABLE_TYPES = {"token_ids": np.int64, "phase": np.uint8, "positions": np.int32}


def _site_type(pa: Any, job: ExportJob, site: Site) -> Any:
    value = pa.from_numpy_dtype(job.dtype(str(site)))
    flat = site.layout == "blocks" or job.entry(site).pooled
    return pa.list_(value) if flat else pa.list_(pa.list_(value))


def record_batches(pa: Any, schema: Any, unit: ExportUnit) -> Iterator[Any]:
    """A unit as record batches, each small enough to be in memory at once."""
    group: list[tuple[ExampleRecord, dict[str, Array]]] = []
    size = 0
    for record, tensors in example_tensors(unit, unit.job.sites):
        largest = max((array.size for array in tensors.values()), default=0)
        if group and size + largest > _MOST_VALUES:
            yield _batch(pa, schema, group)
            group, size = [], 0
        group.append((record, tensors))
        size += largest
    if group:
        yield _batch(pa, schema, group)


def _batch(pa: Any, schema: Any, group: Sequence[tuple[ExampleRecord, Mapping[str, Array]]]) -> Any:
    columns: list[Any] = []
    for field in schema:
        if field.name in _TEXTS:
            columns.append(
                pa.array([_text(record, field.name) for record, _ in group], pa.string())
            )
        elif field.name in ("index", "n_tokens", "n_prompt_tokens"):
            numbers = [getattr(record, field.name) for record, _ in group]
            columns.append(pa.array(numbers, pa.int64()))
        else:
            name = str(_TABLES.get(field.name, field.name))
            columns.append(_list_array(pa, field.type, [tensors[name] for _, tensors in group]))
    return pa.record_batch(columns, schema=schema)


def _text(record: ExampleRecord, column: str) -> str | None:
    if column == "record":
        return dump_json(record.to_json(), f"example {record.id!r}")
    text: str | None = getattr(record, column)
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _list_array(pa: Any, kind: Any, arrays: Sequence[Array]) -> Any:
    """Arrays of one example each as a list column; the values are copied once."""
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    values: Any = pa.array(flat)
    if pa.types.is_list(kind.value_type):
        width = arrays[0].shape[-1]
        rows = sum(len(array) for array in arrays)
        values = pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * width), values
        )
    ends = np.cumsum([0, *(len(array) for array in arrays)])
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values)


# -- and back ------------------------------------------------------------------------------


def unit_of_table(pa: Any, table: Any, line: UnitLine) -> dict[str, Array]:
    """The tensors of a unit from its table.

    Raises:
        DamagedRunError: columns are missing, or are not what they should be.
    """
    try:
        table.validate(full=True)
        records: list[str] = table.column("record").to_pylist()
        columns = {name: column for column, name in _TABLES.items() if name in line.shapes}
        columns |= {str(entry.site): str(entry.site) for entry in line.sites}
        found = {name: _split(pa, table.column(column)) for name, column in columns.items()}
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise DamagedRunError(
            f"unit {line.unit!r} is not the table that was exported",
            got=str(error)[:300],
            next_step="export the run again",
        ) from error
    examples = [
        (record, {name: arrays[i] for name, arrays in found.items()})
        for i, record in enumerate(records)
    ]
    return unit_of_examples(examples, line)


def _split(pa: Any, column: Any) -> list[Array]:
    """A list column as one array a row: ``[L, d]`` of lists of lists, ``[n]`` of lists."""
    found: list[Array] = []
    for part in column.chunks:
        chunk = part.storage if isinstance(part, pa.ExtensionArray) else part
        if not (_is_list(pa, chunk.type) or pa.types.is_fixed_size_list(chunk.type)):
            raise ValueError(f"a column of {chunk.type}")
        if chunk.null_count:
            raise ValueError("a row without values")
        lengths = np.diff(chunk.offsets.to_numpy()) if _is_list(pa, chunk.type) else None
        if lengths is None:
            lengths = np.full(len(chunk), chunk.type.list_size)
        inner = chunk.flatten()
        width = None
        if pa.types.is_nested(inner.type):
            sizes = set(inner.value_lengths().to_pylist())
            if len(sizes) > 1 or inner.null_count:
                raise ValueError("rows of different width")
            width = sizes.pop() if sizes else 0
            inner = inner.flatten()
        if inner.null_count:
            raise ValueError("a value that is missing")
        values = cast("Array", inner.to_numpy(zero_copy_only=False))
        if width is not None:
            values = values.reshape(-1, width) if width else np.zeros((int(lengths.sum()), 0))
        found += np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return found


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def foreign_batch(pa: Any, unit: str, table: Any, first: int) -> ActivationBatch:
    """A table of another program: columns called after sites, ``token_ids`` and ``id`` if there.

    Raises:
        BadInputError: no column is called after a site.
        DamagedRunError: a column is no list of numbers.
    """
    sites = {name: site for name in table.column_names if (site := site_of(name)) is not None}
    if not sites:
        raise BadInputError(
            f"{unit} has no column that is called after a site",
            got=table.column_names[:8],
            expected="names such as blocks.3.resid_post or blocks.3.hook_resid_post",
        )
    try:
        table.validate(full=True)
        rows = {site: _split(pa, table.column(name)) for name, site in sites.items()}
        known = "token_ids" in table.column_names
        tokens = _split(pa, table.column("token_ids")) if known else None
        ids = table.column("id").to_pylist() if "id" in table.column_names else None
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise DamagedRunError(
            f"{unit} has a column that is no list of numbers", got=str(error)[:300]
        ) from error
    names = None if ids is None else [str(name) for name in ids]
    return batch_of_examples(unit, rows, token_ids=tokens, ids=names, first=first)
