"""What all stores share: a run is a folder that one or many writers fill, unit by unit.

Nothing is ever changed in place. A unit's data file is published first, its commit record last and
only if there is none; readers believe commit records only. Temporary files and data files without a
commit record are what a killed writer leaves. They are left alone when a run is resumed, because
another host's writer may own them; ``sweep`` removes them when asked to.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from actscope.core.activations import ActivationBatch
from actscope.core.errors import (
    BadInputError,
    DamagedRunError,
    OutputFolderError,
    StorageError,
)
from actscope.core.provenance import environment, sha256_json
from actscope.core.registry import Registry
from actscope.core.spec import UnitPlan
from actscope.stores._formats import FileSums, UnitFormat, checksum, sums_after_writing
from actscope.stores._io import (
    TEMP_PREFIX,
    disk_errors,
    make_folder,
    publish,
    put_if_absent,
    sync_folder,
)
from actscope.stores._mismatch import refuse_another, refuse_other_content
from actscope.stores._records import (
    COMMITS,
    RUN_FILE,
    Coding,
    CommitRecord,
    RunRecord,
    decode_unit,
    dump_json,
    encode_unit,
    load_commit,
    load_run,
)
from actscope.stores._remote import as_folder
from actscope.stores._remote_writes import prove_conditional, refuse_unconditional
from actscope.stores._units import StoredAs, Unit, failures_of, make_unit

__all__ = ["STORES", "FolderRunWriter", "FolderStorage", "committed_files", "stored_plan"]


class FolderStorage:
    """A folder that holds runs, one folder each; a store names its file format.

    Args:
        path: The folder, which is created with the first run, or an address; see ``as_folder``.
    """

    unit_format: ClassVar[UnitFormat]
    keeps_bfloat16: ClassVar[bool]
    takes_codecs: ClassVar[bool] = True

    def __init__(self, path: str | Path) -> None:
        self.path = as_folder(path)
        refuse_unconditional(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def run_path(self, run_id: str) -> Path:
        """Where the run of that name lies; ``a/b`` lies in a subfolder.

        Raises:
            BadInputError: the name leads out of this folder, or is no file name.
        """
        parts = run_id.split("/") if isinstance(cast("object", run_id), str) else [""]
        for part in parts:
            wrong = part.strip() in ("", ".", "..") or re.search(r"[\x00-\x1f\\:]", part)
            if wrong or len(part.encode("utf-8", "surrogatepass")) > 255:
                raise BadInputError(
                    "a run id must be a plain name of at most 255 bytes",
                    got=repr(run_id) if len(run_id) < 300 else f"{len(run_id)} characters",
                    expected="a name such as 'first' or 'group/first', inside the storage folder",
                )
        return self.path.joinpath(*parts)

    def open_run(
        self,
        run_id: str,
        spec: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> FolderRunWriter:
        """Create the run, or resume it if it is the same spec and plan.

        Args:
            run_id: Its name.
            spec: What it holds; None stores arrays as they are given.
            plan: Its units; None keeps the stored plan, or takes any unit where there is none.

        Raises:
            RunMismatchError: it exists with another spec or plan.
            OutputFolderError: the folder holds something else or cannot be written.
            DamagedRunError: its ``run.json`` is not as it was written.
            BadInputError: the spec asks for a codec that this store or machine does not have.
        """
        path = self.run_path(run_id)
        stored_as = StoredAs.of(spec, self.keeps_bfloat16)
        if stored_as.codec is not None and not self.takes_codecs:
            raise BadInputError(
                f"{type(self).__name__} keeps plain values only",
                got=f"codec {stored_as.codec}",
                next_step="leave --codec out, or use --store shards",
            )
        asked = _new_record(self.unit_format.name, spec, plan)
        with disk_errors(f"opening run {run_id!r}", path):
            record = _create_or_read(path, asked)
            refuse_another(path, record, asked)
            prove_conditional(path / RUN_FILE)
            for folder in (COMMITS, self.unit_format.folder):
                make_folder(path / folder)
        return self._writer(path, record, stored_as)

    def _writer(self, path: Path, record: RunRecord, stored_as: StoredAs) -> FolderRunWriter:
        return FolderRunWriter(path, record, self.unit_format, stored_as)

    def stored_plan(self, run_id: str) -> dict[str, Any] | None:
        """The plan of a run that exists, as JSON."""
        return stored_plan(self.run_path(run_id))


STORES: Registry[type[FolderStorage]] = Registry("actscope.stores", "STORE", "store")
"""Every store by name: one file each."""


class FolderRunWriter:
    """Writes one run. Several writers, on several machines, may write one run at once.

    Attributes:
        copies_arrays: Arrays may be used again once ``append`` has returned.
    """

    copies_arrays: ClassVar[bool] = True

    def __init__(
        self, path: Path, record: RunRecord, unit_format: UnitFormat, stored_as: StoredAs
    ) -> None:
        self.path = path
        self.record = record
        self._format = unit_format
        self._stored_as = stored_as
        self._planned = None if record.plan is None else frozenset(record.plan.unit_ids())
        now = environment()
        self._environment = now if now != record.environment else dict[str, str]()
        self._sequence: int | None = None
        self._closed = False

    def __enter__(self) -> FolderRunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def committed(self) -> set[str]:
        """The ids of the units that are safe on disk, whoever wrote them."""
        found = set(committed_files(self.path))
        sync_folder(self.path / COMMITS)  # a killed writer's last name may not be flushed yet
        return found

    def append(
        self,
        batch_id: str,
        activations: ActivationBatch,
        metadata: Mapping[str, Any],
        *,
        codings: Mapping[str, Coding | None] | None = None,
    ) -> None:
        """Publish and commit one unit; it is durable when this returns.

        The same id with the same tensors again does nothing.

        Args:
            batch_id: The unit's id; any text.
            activations: Its content.
            metadata: JSON. ``timings`` (seconds by phase) and ``errors`` (failed examples) have
                places of their own in the commit record.
            codings: Of values that come from another run of this spec, by site: how they were coded
                there. They stay as they are, and the errors on record are those of that coding.

        Raises:
            DuplicateUnitError: the id is committed with other content.
            NumericRangeError: a value does not fit the storage dtype.
            BadInputError: the content does not fit together, or the plan has no such unit.
            DiskFullError: the disk is full; what was committed is safe.
            StorageError: the server of a remote folder cannot be reached, or refuses.
        """
        self._check_id(batch_id)
        unit = make_unit(batch_id, activations, self._stored_as, codings)
        unit = self._prepared(batch_id, unit, activations)
        commit = self._draft(batch_id, unit, activations, metadata)
        name = encode_unit(batch_id) + ".json"
        with disk_errors(f"writing unit {batch_id!r}", self.path):
            if (self.path / COMMITS / name).exists():
                sums = {k: checksum(v) for k, v in unit.tensors.items()}
                refuse_other_content(self.path, name, _with_sums(commit, sums))
                sync_folder(self.path / COMMITS)
                return
            self._place(unit)
            self._publish(
                commit, lambda file, header: self._format.write(file, unit.tensors, header)
            )

    def adopt(self, commit: CommitRecord, data: Path) -> None:
        """Commit a unit whose data file exists already, in another run of the same spec and store.

        The file is copied and compared with its commit record on the way.

        Args:
            commit: The unit's commit record there.
            data: Its data file there.

        Raises:
            DamagedRunError: the data file is not as it was committed; nothing is committed here.
            DuplicateUnitError: the unit is committed here with other content.
        """
        self._check_id(commit.unit)
        made_with = commit.environment or self._environment_elsewhere(data.parent.parent)
        commit = replace(commit, environment=made_with, sequence=self._next_sequence())
        name = encode_unit(commit.unit) + ".json"
        with disk_errors(f"copying unit {commit.unit!r}", self.path):
            if (self.path / COMMITS / name).exists():
                refuse_other_content(self.path, name, commit)
                sync_folder(self.path / COMMITS)  # whoever gave the name may not have flushed it
                return
            sums = {k: entry.xxh3 for k, entry in commit.tensors.items()}
            self._publish(commit, lambda file, _: FileSums(_copied(data, file, commit.xxh3), sums))

    def _environment_elsewhere(self, folder: Path) -> dict[str, str]:
        """The versions of another run, where they are not those of this one."""
        theirs = load_run(folder).environment
        return theirs if theirs != self.record.environment else {}

    @property
    def unit_format(self) -> UnitFormat:
        """How units are written."""
        return self._format

    def close(self) -> None:
        """Nothing stays open between two units; a closed writer takes no more."""
        self._closed = True

    def _prepared(self, batch_id: str, unit: Unit, batch: ActivationBatch) -> Unit:
        """What a store adds to a unit before it is compared and written."""
        return unit

    def _place(self, unit: Unit) -> None:
        """Write what a store keeps outside the unit's own file, before that is committed."""

    def _check_id(self, batch_id: str) -> None:
        if self._closed:
            raise BadInputError("this run writer is closed", next_step="open the run again")
        if not isinstance(cast("object", batch_id), str) or not batch_id:
            raise BadInputError("a unit id must be a text that is not empty", got=repr(batch_id))
        if self._planned is not None and batch_id not in self._planned:
            raise BadInputError(
                f"the plan of {self.path} has no unit {batch_id!r}",
                expected=f"one of its {len(self._planned)} units",
            )

    def _draft(
        self, unit_id: str, unit: Unit, batch: ActivationBatch, metadata: Mapping[str, Any]
    ) -> CommitRecord:
        rest = {k: v for k, v in metadata.items() if k not in ("timings", "errors")}
        dump_json([rest, metadata.get("timings")], f"the metadata of unit {unit_id!r}")
        return CommitRecord(
            unit=unit_id,
            fingerprint=self.record.fingerprint,
            path="",
            bytes=0,
            xxh3="",
            sites=unit.sites,
            tensors=unit.entries,
            counts=unit.counts,
            first_index=unit.first_index,
            sequence=self._next_sequence(),
            errors=failures_of(batch, metadata),
            timings=_seconds(metadata.get("timings") or {}),
            metadata=rest,
            environment=self._environment,
        )

    def _next_sequence(self) -> int:
        """Where a unit stands among the others of a run without a plan."""
        if self._planned is not None:
            return 0
        if self._sequence is None:
            self._sequence = len(committed_files(self.path)) - 1
        self._sequence += 1
        return self._sequence

    def _publish(
        self, commit: CommitRecord, write: Callable[[BinaryIO, Mapping[str, str]], FileSums]
    ) -> None:
        stem = encode_unit(commit.unit)
        header = {"fingerprint": commit.fingerprint, "unit": stem}
        folder = self.path / self._format.folder

        def file_name(sums: FileSums) -> str:
            # The attempt is named by its content: a repeated attempt replaces its own leftovers
            return f"{stem}-{sums.file[:16]}{self._format.suffix}"

        sums = publish(folder, "data", lambda file: write(file, header), file_name)
        data = folder / file_name(sums)
        commit = replace(
            _with_sums(commit, sums.tensors),
            path=f"{self._format.folder}/{data.name}",
            bytes=data.stat().st_size,
            xxh3=sums.file,
            finished=commit.finished or _now(),
        )
        if put_if_absent(self.path / COMMITS / f"{stem}.json", "commit", commit.to_bytes()):
            return
        winner = load_commit(self.path, f"{stem}.json")
        if winner.path != commit.path:
            with contextlib.suppress(OSError, StorageError):
                data.unlink()
        refuse_other_content(self.path, f"{stem}.json", commit)


def committed_files(folder: Path) -> dict[str, str]:
    """Unit id -> name of its commit record, of everything a run has committed.

    Raises:
        DamagedRunError: a record whose name does not tell the id cannot be read.
    """
    found: dict[str, str] = {}
    for path in (folder / COMMITS).iterdir():
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        unit = decode_unit(path.stem)
        if unit is None:
            unit = load_commit(folder, path.name).unit
        elif encode_unit(unit) != path.stem:
            continue  # not a name we write
        found[unit] = path.name
    return found


def stored_plan(path: str | Path) -> dict[str, Any] | None:
    """The plan of the run in a folder as JSON; None where there is no run or it has no plan.

    Raises:
        DamagedRunError: its ``run.json`` is not as it was written.
    """
    folder = as_folder(path)
    if not (folder / RUN_FILE).is_file():
        return None
    plan = load_run(folder).plan
    return None if plan is None else plan.to_json()


def _new_record(
    store: str, spec: Mapping[str, Any] | None, plan: Mapping[str, Any] | None
) -> RunRecord:
    try:
        fingerprint = "" if spec is None else sha256_json(spec)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError("the spec cannot be stored as JSON", got=str(error)) from error
    try:
        units = None if plan is None else UnitPlan.from_json(plan)
    except TypeError as error:
        raise BadInputError("the plan is no unit plan", got=str(error)) from error
    kept = None if spec is None else dict(spec)
    return RunRecord(store, kept, fingerprint, units, environment(), _now())


def _create_or_read(path: Path, asked: RunRecord) -> RunRecord:
    """Put ``run.json`` in place unless there is one; several workers may try at once."""
    if path.exists() and not path.is_dir():
        raise OutputFolderError(f"{path} is a file", expected="a folder, or nothing yet")
    target = path / RUN_FILE
    if not target.exists() and path.is_dir():
        _refuse_foreign_folder(path)
    make_folder(path)
    if not target.exists() and put_if_absent(target, "run", asked.to_bytes()):
        return asked
    sync_folder(path)  # the name must be durable before units rely on it, whoever wrote it
    return load_run(path)


def _refuse_foreign_folder(path: Path) -> None:
    names = [p.name for p in path.iterdir() if not p.name.startswith(TEMP_PREFIX)]
    if not names or (path / RUN_FILE).exists():
        return
    if COMMITS in names:
        raise DamagedRunError(f"{path / RUN_FILE} is missing: {path} holds units of a run")
    raise OutputFolderError(
        f"{path} holds something that is no run",
        got=", ".join(sorted(names)[:5]),
        expected="an empty folder, a run, or nothing yet",
        next_step="choose another output folder",
    )


def _seconds(timings: Mapping[str, Any]) -> dict[str, float]:
    try:
        return {str(phase): float(seconds) for phase, seconds in timings.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInputError(
            "timings must be seconds by phase", got=repr(timings), expected="{'forward': 1.5}"
        ) from error


def _with_sums(commit: CommitRecord, sums: Mapping[str, str]) -> CommitRecord:
    entries = {  # a coded tensor's checksum is that of its values
        k: entry if entry.coding else replace(entry, xxh3=sums[k])
        for k, entry in commit.tensors.items()
    }
    return replace(commit, tensors=entries)


def _copied(source: Path, target: BinaryIO, expected: str) -> str:
    """Copy a file and give its checksum.

    Raises:
        DamagedRunError: the checksum is another one.
    """
    with source.open("rb") as file:
        shutil.copyfileobj(file, target, 8 << 20)
    found = sums_after_writing(target, {}).file
    if found != expected:
        raise DamagedRunError(
            f"{source} is damaged: its checksum is not the committed one",
            next_step="`actscope runs repair` takes the unit back; capture it again, then go on",
        )
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
