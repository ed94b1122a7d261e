"""A run on its way out: unit by unit into a folder beside the output, which gets its name last.

A kill leaves the folder ``.NAME.partial`` and nothing under the final name. The same export again
goes on after the last unit that has a line in it. Memory does not grow with the run: a unit's
tensors are read one at a time, from the run's own pages where its store allows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actscope.core.errors import OutputFolderError
from actscope.core.provenance import sha256_json
from actscope.core.sites import Site
from actscope.formats._format import RunFormat
from actscope.formats._job import ExportJob, ExportUnit, choose_sites, ends_of, refuse_partial
from actscope.formats._manifest import (
    MANIFEST,
    UNITS,
    Manifest,
    UnitLine,
    append_line,
    read_lines,
)
from actscope.stores import (
    TEMP_PREFIX,
    Run,
    checksum,
    disk_errors,
    fail_point,
    make_folder,
    publish,
    sync_folder,
)

__all__ = ["EXPORT_FAIL_POINTS", "ExportReport", "export_activations"]

EXPORT_FAIL_POINTS: tuple[str, ...] = (
    "export.created",
    "export.half-written",
    "export.written",
    "export.synced",
    "export.renamed",
    "export.folder-synced",
    "export.unit-written",
    "export.unit-on-record",
    "export.finished",
    "export.published",
)
"""Places where a test can stop an export, see ``ACTSCOPE_FAIL_AT``."""


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        path: Where it lies.
        examples: How many examples it holds.
        sites: What of them.
        resumed: Units that were there already.
        notes: What the user must know, such as bfloat16 that became float32.
    """

    path: Path
    examples: int
    sites: tuple[Site, ...]
    resumed: int
    notes: tuple[str, ...]


def export_activations(
    run: Run,
    form: RunFormat,
    out: Path,
    *,
    sites: str | Sequence[str] | None = None,
    layers: str | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Export a run, or go on with an export that was stopped.

    Args:
        run: The run; it must be complete.
        form: The format.
        out: The folder to make.
        sites: Which of the captured sites; None for all.
        layers: Which layers of them; None for all.
        options: The format's options.
        progress: Called after each unit with (units done, units).

    Raises:
        BadInputError: the run cannot be exported so.
        OutputFolderError: there is something else at ``out``.
        DamagedRunError: the run is damaged.
        DiskFullError: the disk is full; the same export again goes on.
    """
    refuse_partial(run)
    given = form.check_options(options or {})
    chosen = choose_sites(run, sites, layers)
    job = ExportJob(
        run=run,
        sites=chosen,
        folder=out.parent / f".{out.name}.partial",
        options=given,
        keeps_bfloat16=form.keeps_bfloat16,
    )
    job = replace(job, request=_request(job, form))
    form.check(job)
    notes = tuple(_notes(job, form))
    if _is_done(out, job):
        return ExportReport(out, run.n_examples, chosen, len(job), notes)
    with disk_errors(f"exporting to {form.name}", out):
        resumed = _fill(job, form, progress)
        fail_point("export.finished")
        job.folder.rename(out)
        fail_point("export.published")
        sync_folder(out.absolute().parent)
    return ExportReport(out, run.n_examples, chosen, resumed, notes)


def _request(job: ExportJob, form: RunFormat) -> str:
    """A digest of what decides the bytes of an export."""
    units = [
        [unit.commit.unit, [unit.commit.tensors[n].xxh3 for n in job.names_of(unit.commit)]]
        for unit in job.stored
    ]
    sites = [str(site) for site in job.sites]
    return sha256_json([form.name, sites, dict(job.options), job.run.fingerprint, units])


def _notes(job: ExportJob, form: RunFormat) -> Iterable[str]:
    found = {str(s) for s in job.sites for u in job.stored[:1] if _dtype(u, s) == "bfloat16"}
    if found and not form.keeps_bfloat16:
        yield (
            f"{form.name} has no bfloat16: {_listed(found)} became float32, which holds each value "
            "exactly (and twice the bytes)"
        )
    if not form.lossless:
        yield f"{form.name} does not hold everything of a run: {form.summary}"


def _dtype(unit: Any, site: Site) -> str:
    return str(unit.commit.tensors[str(site)].dtype)


def _listed(keys: Iterable[str]) -> str:
    known = sorted(keys)
    return ", ".join(known) if len(known) <= 3 else f"{known[0]} and {len(known) - 1} more"


def _is_done(out: Path, job: ExportJob) -> bool:
    """Whether ``out`` is this very export.

    Raises:
        OutputFolderError: it is something else.
    """
    if (out / MANIFEST).is_file():
        if Manifest.load(out).request == job.request:
            return True
        got = "an export of another run, or of other sites, format or options"
    elif (out.is_dir() and not any(out.iterdir())) or (not out.exists() and not out.is_symlink()):
        return False
    else:
        got = "something that is no export"
    raise OutputFolderError(
        f"{out} is in the way", got=got, next_step="choose another --out, or delete it yourself"
    )


def _fill(job: ExportJob, form: RunFormat, progress: Callable[[int, int], None] | None) -> int:
    """Write what is not there yet, and return how many units were."""
    make_folder(job.folder.absolute())
    _begin(job, form)
    record = job.folder / UNITS
    lines, size = read_lines(record)
    if record.exists():
        os.truncate(record, size)  # a line that a kill tore
    form.begin(job)
    marks = dict(lines[-1].marks) if lines else {}
    for number in range(len(lines), len(job)):
        unit = job.unit(number)
        marks = form.write(job, unit, marks)
        fail_point("export.unit-written")
        size = append_line(record, _line(unit, form, marks), size)
        fail_point("export.unit-on-record")
        if progress is not None:
            progress(number + 1, len(job))
    if not len(job):
        record.touch()
    form.finish(job)
    for leftover in job.folder.rglob(f"{TEMP_PREFIX}*"):
        leftover.unlink()  # of an attempt that was killed; the folder is this export's own
    sync_folder(job.folder)
    return len(lines)


def _begin(job: ExportJob, form: RunFormat) -> None:
    """Put the manifest in place, or make sure that a folder that is there is this export's."""
    if (job.folder / MANIFEST).is_file():
        if Manifest.load(job.folder).request == job.request:
            return
        raise OutputFolderError(
            f"{job.folder} holds an export that was stopped, of another run or with other options",
            next_step="run that one again to complete it, or delete the folder",
        )
    run = job.run
    spec = None if run.spec is None else {**run.spec}
    if spec is not None and "sites" in spec:
        spec["sites"] = [str(site) for site in job.sites]
    manifest = Manifest(
        to=form.name,
        request=job.request,
        sites=tuple(str(site) for site in job.sites),
        options=dict(job.options),
        spec=spec,
        plan=None if run.plan is None else run.plan.to_json(),
        environment=run.environment,
        created=run.created,
        units=len(job),
    )
    publish(job.folder, "export", lambda f: f.write(manifest.to_bytes()), lambda _: MANIFEST)


def _line(unit: ExportUnit, form: RunFormat, marks: Mapping[str, int]) -> UnitLine:
    commit, job = unit.commit, unit.job
    sums = {name: commit.tensors[name].xxh3 for name in unit}
    for site in job.sites:
        array = unit.stored.read(str(site))
        back = form.comes_back(array)
        if back is not array:
            sums[str(site)] = checksum(back)
    return UnitLine(
        unit=commit.unit,
        sites=tuple(entry for entry in commit.sites if entry.site in job.sites),
        dtypes={name: commit.tensors[name].dtype for name in unit},
        shapes={name: commit.tensors[name].shape for name in unit},
        xxh3=sums,
        ends=ends_of(commit, job.sites),
        errors=commit.errors,
        timings=dict(commit.timings),
        metadata=dict(commit.metadata),
        marks=marks,
        codings={n: c for n in unit if (c := commit.tensors[n].coding) is not None},
    )
