"""How much disk a run takes, and taking a run off the disk."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from actscope.core.errors import BadInputError, DamagedRunError, OutputFolderError
from actscope.stores._io import TEMP_PREFIX, disk_errors, fail_point, move, sync_folder
from actscope.stores._layer_file import layer_file_name
from actscope.stores._records import COMMITS, RUN_FILE, CommitRecord, load_commit
from actscope.stores._remote import as_folder, is_remote
from actscope.stores._run_folder import STORES
from actscope.stores._tags import TAGS_FILE
from actscope.stores._verify import DAMAGED, no_run_there

__all__ = ["DiskUsage", "delete_run", "disk_usage"]


@dataclass
class DiskUsage:
    """Bytes of a run's files, by what they are for.

    Attributes:
        path: The run's folder.
        total: All of it, as the files' sizes say.
        sites: Activations by site key, as the commit records say: what lies in the files.
        tables: Tokens, positions, texts and file headers: what data files hold besides.
        records: ``run.json`` and commit records.
        leftovers: Files that no commit record names, and records that were taken back.
    """

    path: Path
    total: int = 0
    sites: dict[str, int] = field(default_factory=dict[str, int])
    tables: int = 0
    records: int = 0
    leftovers: int = 0


def disk_usage(path: str | Path) -> DiskUsage:
    """How many bytes a run takes, and what for; damaged runs too.

    Raises:
        BadInputError: there is no run.
    """
    usage = DiskUsage(as_folder(path))
    _refuse_no_run(usage.path)
    names = {entry.name for entry in usage.path.iterdir()}
    named: dict[str, int] = {}
    for commit in _readable_commits(usage.path):
        sites = {str(entry.site) for entry in commit.sites}
        activations = {k: e.stored_bytes for k, e in commit.tensors.items() if k in sites}
        for key, size in activations.items():
            usage.sites[key] = usage.sites.get(key, 0) + size
            layer_file = layer_file_name(key)
            where = layer_file if layer_file in names else commit.path
            named[where] = named.get(where, 0) + size
        named.setdefault(commit.path, 0)
    for file in _files(usage.path):
        size, name = file.lstat().st_size, file.relative_to(usage.path).as_posix()
        usage.total += size
        if name in named:
            usage.tables += size - min(size, named[name])
        elif name in (RUN_FILE, TAGS_FILE) or (
            name.startswith(COMMITS + "/") and file.suffix == ".json"
        ):
            usage.records += size
        else:
            usage.leftovers += size
    return usage


def delete_run(path: str | Path) -> int:
    """Delete a run for ever. Its folder loses its name first, so that no half run is ever seen.

    Returns:
        The bytes that were freed.

    Raises:
        BadInputError: there is no run, or a link to one, or it is remote.
        OutputFolderError: files that no run writes lie in the folder, or it cannot be changed.
    """
    folder = as_folder(path)
    _refuse_no_run(folder)
    if is_remote(folder):
        raise BadInputError(
            f"{folder} is not deleted: a server cannot take a folder away in one step",
            next_step='when nobody reads or writes it: python -c "import fsspec; '
            f"fsspec.filesystem('{folder.protocol}').rm('{folder.inner}', recursive=True)\"",
        )
    foreign = sorted(_foreign(folder))
    if foreign:
        raise OutputFolderError(
            f"{folder} holds more than a run, so it is not deleted",
            got=", ".join(foreign[:5]) + (" ..." if len(foreign) > 5 else ""),
            next_step="move these elsewhere first",
        )
    size = sum(file.lstat().st_size for file in _files(folder))
    with disk_errors(f"deleting {folder}", folder):
        nameless = folder.with_name(f"{TEMP_PREFIX}deleted-{secrets.token_hex(6)}")
        move(folder, nameless, "delete")
        shutil.rmtree(nameless)
        fail_point("delete.removed")
        sync_folder(nameless.parent)
    return size


def _refuse_no_run(folder: Path) -> None:
    if folder.is_symlink():
        raise BadInputError(
            f"{folder} is a link", next_step=f"name the run itself: {folder.resolve()}"
        )
    if not (folder / RUN_FILE).is_file() and not (folder / COMMITS).is_dir():
        raise BadInputError(
            f"{folder} is no run",
            got=no_run_there(folder),
            next_step="`actscope runs list FOLDER` shows the runs of a folder",
        )


def _foreign(folder: Path) -> Iterator[str]:
    """Names in a run's folder that no store writes."""
    places = {STORES.get(name).unit_format.folder: "" for name in STORES.names()}
    own = {COMMITS: ".json", DAMAGED: "", **places}
    layer_files = {
        layer_file_name(str(entry.site))
        for commit in _readable_commits(folder)
        for entry in commit.sites
    }
    for entry in folder.iterdir():
        if entry.is_symlink() or not (entry.is_dir() and entry.name in own):
            layer = entry.suffix == ".npy" and entry.name in layer_files
            own_file = entry.name in (RUN_FILE, TAGS_FILE)
            if not own_file and not layer and not entry.name.startswith(TEMP_PREFIX):
                yield entry.name
            continue
        for inside in entry.iterdir():
            wrong = not inside.is_file() or inside.is_symlink()
            if wrong or not (inside.suffix or inside.name.startswith(TEMP_PREFIX)):
                yield f"{entry.name}/{inside.name}"


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_symlink() or p.is_file())


def _readable_commits(folder: Path) -> Iterator[CommitRecord]:
    if not (folder / COMMITS).is_dir():
        return
    for file in (folder / COMMITS).glob("*.json"):
        try:
            yield load_commit(folder, file.name)
        except DamagedRunError:
            continue  # its data counts as a leftover: nobody knows what is in it
