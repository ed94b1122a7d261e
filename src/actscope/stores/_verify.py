"""Is a run as it was committed? And what to do where it is not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actscope.core.arrays import dtype_name
from actscope.core.errors import ActscopeError, BadInputError, DamagedRunError, StorageError
from actscope.stores._codecs import values_of
from actscope.stores._data_files import at_hand
from actscope.stores._formats import TensorFile, UnitFormat, checksum, checksum_file
from actscope.stores._io import TEMP_PREFIX, disk_errors, fail_point, make_folder, move
from actscope.stores._records import (
    COMMITS,
    RUN_FILE,
    CommitRecord,
    RunRecord,
    encode_unit,
    load_commit,
    load_run,
)
from actscope.stores._remote import as_folder
from actscope.stores._stored_unit import data_path, format_of
from actscope.stores._tags import TAGS_FILE, read_tags
from actscope.stores._where import RUNS, Where

__all__ = [
    "Problem",
    "RunListing",
    "VerifyReport",
    "find_runs",
    "list_runs",
    "no_run",
    "no_run_there",
    "repair_run",
    "sweep",
    "verify_run",
]

DAMAGED = "damaged"
_DEPTH = 3


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was committed.

    Attributes:
        file: The file, relative to the run's folder.
        tensor: The tensor, where the damage could be traced to one.
        what: What is wrong, in one line.
        unit: The commit record's name, where a unit is concerned.
    """

    file: str
    tensor: str | None
    what: str
    unit: str | None = None

    def __str__(self) -> str:
        where = self.file if self.tensor is None else f"{self.file}, tensor {self.tensor}"
        return f"{where}: {self.what}"


@dataclass
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        path: The run's folder.
        problems: Everything that is not as it was committed.
        units: Units that were checked.
        bytes: Bytes that were read.
        leftovers: Files of killed writers: harmless, ``sweep`` removes them.
    """

    path: Path
    problems: list[Problem] = field(default_factory=list[Problem])
    units: int = 0
    bytes: int = 0
    leftovers: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was committed."""
        return not self.problems


@dataclass(frozen=True)
class RunListing:
    """One line of a list of runs.

    Attributes:
        path: The run's folder.
        state: ``complete``, ``partial`` or ``damaged`` (as far as records and sizes tell).
        store: Name of the store.
        fingerprint: Of the spec.
        model: The model's name, empty for a bare run.
        created: ISO time.
        n_units: Committed units.
        n_planned: Planned units, None without a plan.
        n_examples: Captured examples.
        n_failures: Examples that could not be captured.
        bytes: Size of the data files.
        problem: The first thing that is wrong, empty where nothing is.
        tags: Words it was given.
        spec: The spec as JSON, empty for a bare run.
    """

    path: Path
    state: str
    store: str = ""
    fingerprint: str = ""
    model: str = ""
    created: str = ""
    n_units: int = 0
    n_planned: int | None = None
    n_examples: int = 0
    n_failures: int = 0
    bytes: int = 0
    problem: str = ""
    tags: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name or self.path.resolve().name

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {**vars(self), "path": str(self.path), "name": self.name}


def verify_run(path: str | Path, *, fast: bool = False) -> VerifyReport:
    """Read every byte of a run and compare it with what was committed; changes nothing.

    Args:
        path: The run's folder.
        fast: Read records only: their digests, and that each data file is there and has its size.
            A changed byte within a data file is not seen.

    Raises:
        BadInputError: there is no run, or a newer version or a store that is not installed wrote
            it.
    """
    report = VerifyReport(as_folder(path))
    if not (report.path / RUN_FILE).is_file() and not (report.path / COMMITS).is_dir():
        raise no_run(report.path)
    try:
        run = load_run(report.path)
    except DamagedRunError as error:
        report.problems.append(Problem(RUN_FILE, None, error.what))
        return report
    try:
        read_tags(report.path)
    except DamagedRunError as error:
        report.problems.append(Problem(TAGS_FILE, None, error.what))
    unit_format = format_of(run, report.path)
    used: set[str | None] = set()
    for name in _commit_names(report.path):
        report.units += 1
        used.add(_verify_unit(report, run, unit_format, name, fast))
    if None not in used:  # else nobody knows which data file is whose
        report.leftovers = [
            p.relative_to(report.path).as_posix()
            for p in _leftovers(report.path, unit_format, used)
        ]
    return report


def list_runs(folder: str | Path, where: str | None = None) -> list[RunListing]:
    """The runs in a folder and its subfolders (or the folder itself), by path.

    Args:
        folder: Where to look.
        where: Which of them, such as ``model == 'demo' and 'baseline' in tags``: fields of
            ``RunListing``, else of the spec (``span``, ``spec.model.dtype``).

    Raises:
        BadInputError: no condition, or a field that none of the runs has.
    """
    condition = None if where is None else Where.parse(where, RUNS)
    found = [_list_run(path) for path in find_runs(as_folder(folder))]
    if condition is None or not found:
        return found
    condition.check(found)
    return [run for run in found if condition.matches(run)]


def find_runs(folder: Path) -> list[Path]:
    """Folders with a ``run.json``, or with commit records that lost theirs."""
    return sorted(_walk(folder, _DEPTH))


def no_run(folder: Path) -> BadInputError:
    """The error for a folder that is no run; it names the runs that lie in it."""
    inside = [str(p) for p in find_runs(folder)][:5]
    return BadInputError(
        f"there is no run at {folder}",
        got=no_run_there(folder),
        next_step="did you mean " + ", ".join(inside) + "?"
        if inside
        else "`actscope runs list FOLDER` shows the runs of a folder",
    )


def no_run_there(folder: Path) -> str:
    """What lies at a path in place of a run's folder."""
    if folder.is_dir():
        return f"a folder without {RUN_FILE}"
    return "a file" if folder.is_file() else "no such folder"


def sweep(path: str | Path, older_than: float = 3600.0) -> list[Path]:
    """Remove what killed writers left: temporary files, and data files without a commit record.

    A writer that is at work elsewhere owns such files too, so call this when none is, or keep to
    files older than its longest unit.

    Args:
        path: The run's folder.
        older_than: Seconds since a file's last change, below which it stays.

    Returns:
        What was removed.

    Raises:
        DamagedRunError: a commit record is damaged, so that nobody knows which data it names.
    """
    folder = as_folder(path)
    unit_format = format_of(load_run(folder), folder)
    used = {load_commit(folder, name).path for name in _commit_names(folder)}
    removed: list[Path] = []
    for file in _leftovers(folder, unit_format, used):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()
                removed.append(file)
                fail_point("sweep.removed")
    return removed


def repair_run(path: str | Path) -> VerifyReport:
    """Take back every unit that is damaged, so that the next resume captures it again.

    Its commit record moves to ``damaged/``; its data file stays until ``sweep``. A damaged file of
    tags moves there too. Nothing that is whole is touched, and a damaged ``run.json`` cannot be
    repaired.

    Returns:
        What was wrong.
    """
    report = verify_run(path)
    names = sorted({f"{COMMITS}/{p.unit}" for p in report.problems if p.unit is not None})
    names += [p.file for p in report.problems if p.file == TAGS_FILE]
    target = report.path / DAMAGED
    if names:
        with disk_errors("repairing a run", target):
            make_folder(target)
            for name in names:
                move(report.path / name, _unused(target, name.rpartition("/")[2]), "repair")
    return report


def _unused(folder: Path, name: str) -> Path:
    path, n = folder / name, 1
    while path.exists():
        path, n = folder / f"{name}.{n}", n + 1
    return path


def _commit_names(folder: Path) -> list[str]:
    if not (folder / COMMITS).is_dir():
        return []
    names = (p.name for p in (folder / COMMITS).iterdir() if p.suffix == ".json")
    return sorted(name for name in names if not name.startswith("."))


def _verify_unit(
    report: VerifyReport, run: RunRecord, unit_format: UnitFormat, name: str, fast: bool
) -> str | None:
    """Check one unit.

    Returns:
        Its data file, relative to the run's folder; None where its record cannot be read.
    """
    record_file = f"{COMMITS}/{name}"
    try:
        commit = load_commit(report.path, name)
    except DamagedRunError as error:
        report.problems.append(Problem(record_file, None, error.what, name))
        return None
    if commit.fingerprint != run.fingerprint:
        text = "it belongs to a run of another spec"
        report.problems.append(Problem(record_file, None, text, name))
        return commit.path
    try:
        if fast:
            data_path(report.path, commit, unit_format)
        else:
            report.problems += _data_problems(report, commit, unit_format, name)
    except DamagedRunError as error:
        report.problems.append(Problem(commit.path, None, str(error), name))
    return commit.path


def _data_problems(
    report: VerifyReport, commit: CommitRecord, unit_format: UnitFormat, name: str
) -> list[Problem]:
    """Compare a data file with its commit record: the whole file, and then each tensor.

    Raises:
        DamagedRunError: it cannot be opened.
    """
    data = data_path(report.path, commit, unit_format)
    report.bytes += commit.bytes
    with at_hand(data, unit_format) as local:
        return _file_problems(local, commit, unit_format, name)


def _file_problems(
    data: Path, commit: CommitRecord, unit_format: UnitFormat, name: str
) -> list[Problem]:
    text = "its checksum is not the committed one"
    whole = checksum_file(data) == commit.xxh3
    if not whole and unit_format.check_first:
        return [Problem(commit.path, None, text, name)]
    file = unit_format.read(data)
    try:
        if dict(file.header) != {
            "unit": encode_unit(commit.unit),
            "fingerprint": commit.fingerprint,
        }:
            text = f"it holds another unit: {dict(file.header)}"
            return [Problem(commit.path, None, text, name)]
        damaged = [k for k in commit.tensors if not _is_whole(file, commit, k)]
    finally:
        file.close()
    if not whole and not damaged:
        return [Problem(commit.path, None, text, name)]
    place = unit_format.place or (lambda file, tensor: commit.path)
    return [Problem(place(file, tensor), tensor, text, name) for tensor in damaged]


def _is_whole(file: TensorFile, commit: CommitRecord, tensor: str) -> bool:
    entry = commit.tensors[tensor]
    try:
        array = values_of(file, tensor, entry)
    except DamagedRunError:
        return False
    what = (dtype_name(array.dtype), array.shape, checksum(array))
    return what == (entry.dtype, entry.shape, entry.xxh3)


def _leftovers(
    folder: Path, unit_format: UnitFormat, used: Container[str | None]
) -> Iterator[Path]:
    """What writers left, in the places where they write; what else lies in a run is its owner's."""
    for name in ("", COMMITS, unit_format.folder):
        place = folder / name if name else folder
        if not place.is_dir() or (name and place.is_symlink()):
            continue
        for file in place.iterdir():
            data = name == unit_format.folder and file.name.endswith(unit_format.suffix)
            if (file.name.startswith(TEMP_PREFIX) and file.is_file()) or (
                data and f"{name}/{file.name}" not in used and file.is_file()
            ):
                yield file


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RUN_FILE).is_file() or (folder / COMMITS).is_dir():
        yield folder
    elif depth and folder.is_dir():
        for child in folder.iterdir():
            nameless = child.name.startswith(TEMP_PREFIX)  # a run that is being deleted
            if child.is_dir() and not child.is_symlink() and not nameless:
                yield from _walk(child, depth - 1)


def _list_run(path: Path) -> RunListing:
    try:
        run = load_run(path)
    except StorageError:
        raise  # nothing is known of the run
    except ActscopeError as error:
        return RunListing(path, "damaged", problem=error.what)
    n_units, n_examples, n_failures, size, problem = 0, 0, 0, 0, ""
    units: set[str] = set()
    for name in _commit_names(path):
        try:
            commit = load_commit(path, name)
            data_path(path, commit, format_of(run, path))
        except StorageError:
            raise
        except ActscopeError as error:
            problem = problem or error.what
            continue
        n_units += 1
        units.add(commit.unit)
        n_examples += commit.counts["examples"]
        n_failures += len(commit.errors)
        size += commit.bytes
    tags: tuple[str, ...] = ()
    try:
        tags = read_tags(path)
    except ActscopeError as error:
        problem = problem or error.what
    planned = None if run.plan is None else run.plan.unit_ids()
    done = planned is None or units.issuperset(planned)
    model = (run.spec or {}).get("model")
    return RunListing(
        path=path,
        state="damaged" if problem else "complete" if done else "partial",
        store=run.store,
        fingerprint=run.fingerprint,
        model=str(model.get("name", "")) if isinstance(model, dict) else "",
        created=run.created,
        n_units=n_units,
        n_planned=None if planned is None else len(planned),
        n_examples=n_examples,
        n_failures=n_failures,
        bytes=size,
        problem=problem,
        tags=tags,
        spec=run.spec or {},
    )
