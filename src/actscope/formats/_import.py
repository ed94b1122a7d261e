"""Files of other programs, and our own exports, as a native run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array, dtype_name
from actscope.core.errors import BadInputError, DamagedRunError, OutputFolderError
from actscope.formats._format import RunFormat
from actscope.formats._layout import out_dtype
from actscope.formats._manifest import MANIFEST, ExportFolder, UnitLine
from actscope.formats._records import records_of
from actscope.stores import ShardStorage, checksum

__all__ = ["ImportReport", "import_activations", "refuse_other_import"]


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        path: The run.
        examples: How many examples it holds.
        units: How many units.
        resumed: Units that were there already.
        verified: Whether every tensor was compared with the checksum it was exported with.
    """

    path: Path
    examples: int
    units: int
    resumed: int
    verified: bool


def import_activations(
    source: Path,
    form: RunFormat,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Make a native run of files in a format; an import that was stopped goes on.

    What `export` wrote comes back as the run it was: spec, units, texts, tokens and values, each
    tensor compared with the checksum that was recorded. Other files become a run without a spec.

    Args:
        source: The export's folder; or a file, or a folder of files, of another program.
        form: The format.
        out: The folder of the new run.
        options: The format's options.
        progress: Called after each unit with (units done, units or 0 where unknown).

    Raises:
        BadInputError: there is nothing of this format.
        DamagedRunError: a file is damaged, or asks for more than data.
        OutputFolderError: there is another run at ``out``.
    """
    given = form.check_options(options or {})
    if not source.exists():
        raise BadInputError("there is no such file or folder", got=source)
    if (source / MANIFEST).is_file() and form.lossless:
        return _import_export(ExportFolder(source), form, out, progress)
    storage = ShardStorage(out.parent)
    batches = form.foreign(source, given)
    first = list(islice(batches, 1))  # an error in the first file leaves no empty run behind
    if not first:
        raise BadInputError(f"{source} holds no activations that {form.name} can read")
    with storage.open_run(out.name) as writer:
        done = writer.committed()
        refuse_other_import(out, done, first[0][0])
        units = examples = resumed = 0
        for name, batch in _chained(first, batches):
            resumed += name in done
            writer.append(name, batch, {"imported_from": form.name})
            units, examples = units + 1, examples + len(batch)
            if progress is not None:
                progress(units, 0)
    return ImportReport(out, examples, units, resumed, verified=False)


def refuse_other_import(out: Path, done: set[str], first: str) -> None:
    """Refuse a bare run that holds something else: its spec would not tell the two apart.

    Raises:
        OutputFolderError: it has units, and the first that would be imported is none of them.
    """
    if done and first not in done:
        raise OutputFolderError(
            f"{out} holds another run",
            got=f"its unit {min(done)!r}",
            expected=f"no run, or this import begun before, with its unit {first!r}",
            next_step="choose another --out",
        )


def _chained(
    first: list[tuple[str, ActivationBatch]], rest: Iterator[tuple[str, ActivationBatch]]
) -> Iterator[tuple[str, ActivationBatch]]:
    yield from first
    yield from rest


def _import_export(
    folder: ExportFolder,
    form: RunFormat,
    out: Path,
    progress: Callable[[int, int], None] | None,
) -> ImportReport:
    manifest = folder.manifest
    if manifest.to != form.name:
        raise BadInputError(
            f"{folder.path} is no {form.name} export",
            got=manifest.to,
            next_step=f"--from {manifest.to.replace('_', '-')}",
        )
    storage = ShardStorage(out.parent)
    examples = resumed = 0
    with storage.open_run(out.name, manifest.spec, manifest.plan) as writer:
        done = writer.committed()
        if manifest.spec is None and folder.units:
            refuse_other_import(out, done, folder.units[0].unit)
        for number, line in enumerate(folder.units):
            if line.unit in done:
                resumed += 1
            else:
                batch = _batch(folder, form, number, line)
                metadata = {**line.metadata, "timings": dict(line.timings)}
                metadata["errors"] = [e.to_json() for e in line.errors]
                writer.append(line.unit, batch, metadata, codings=line.codings)
            examples += line.shapes["rows.offsets"][0] - 1
            if progress is not None:
                progress(number + 1, len(folder.units))
    return ImportReport(out, examples, len(folder.units), resumed, verified=True)


def _batch(folder: ExportFolder, form: RunFormat, number: int, line: UnitLine) -> ActivationBatch:
    """One unit, every tensor of it compared with its checksum."""
    found = form.read(folder, number)
    tensors = {name: _checked(folder, found, name, line) for name in line.shapes}
    records = records_of(tensors["examples"], str(folder.path))
    rows = tensors["rows.offsets"]
    phase = tensors["tokens.phase"]
    return ActivationBatch(
        arrays={entry.site: tensors[str(entry.site)] for entry in line.sites},
        offsets=rows,
        positions=tensors["rows.positions"],
        examples=records,
        token_ids=tensors.get("tokens.ids", np.zeros(0, np.int64)),
        token_offsets=tensors["tokens.offsets"],
        phase=phase,
        pooled=any(entry.pooled and entry.site.layout == "rows" for entry in line.sites)
        or (not len(tensors["rows.positions"]) and bool(rows[-1])),
        heads={entry.site: entry.heads for entry in line.sites if entry.heads},
    )


def _checked(folder: ExportFolder, found: Mapping[str, Array], name: str, line: UnitLine) -> Array:
    try:
        array = found[name]
    except KeyError as error:
        raise DamagedRunError(
            f"unit {line.unit!r} of {folder.path} lacks {name}", next_step="export the run again"
        ) from error
    dtype = out_dtype(line.dtypes[name], keeps_bfloat16=True)
    if array.dtype != dtype:
        array = array.astype(dtype)  # float32 back to the bfloat16 it was: exact
    if array.shape != line.shapes[name] or checksum(array) != line.xxh3[name]:
        raise DamagedRunError(
            f"{name} of unit {line.unit!r} of {folder.path} is damaged: not what was exported",
            got=f"{dtype_name(array.dtype)} {list(array.shape)}",
            expected=f"{line.dtypes[name]} {list(line.shapes[name])}, checksum {line.xxh3[name]}",
            next_step="export the run again",
        )
    return array
