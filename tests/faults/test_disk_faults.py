"""Disks that are full, failing or not ours: clear errors, nothing half, and a resume completes."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from written_runs import UNITS, check_after_kill, check_resumed, shards

from actscope.core.errors import OutputFolderError
from actscope.stores import STORES, ShardStorage, _io, open_run, verify_run
from actscope.stores._io import FAIL_POINTS
from actscope.testing.store_contract import SITES, sample_batch

UNIT_STORES = [name for name in STORES.names() if STORES.get(name).unit_format.place is None]
"""Stores whose unit is one file: in the others a point is passed for every file that is shared."""

SAYS = {"ENOSPC": "DiskFullError", "EDQUOT": "DiskFullError", "EIO": "RunError"}


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    found = {}
    for store in UNIT_STORES:
        folder = tmp_path_factory.mktemp(store)
        assert start(store, folder).finish()[0] == 0
        found[store] = shards(folder / "r")
    return found


def failures():
    """Every point of every store with every error; a few of them fast."""
    for store in UNIT_STORES:
        for point in FAIL_POINTS:
            for fault in SAYS:
                fast = store == "shards" and point in ("data.half-written", "commit.synced")
                yield pytest.param(store, point, fault, marks=() if fast else pytest.mark.faults)


@pytest.mark.parametrize(("store", "point", "fault"), list(failures()))
def test_an_error_of_the_disk_at_every_point(start, tmp_path, whole, injected, store, point, fault):
    nth = 1 if point.startswith(("run.", "folder.")) else 3
    name = "disk full (ENOSPC, EDQUOT)" if SAYS[fault] == "DiskFullError" else "disk error (EIO)"
    errors = injected(f"{name} at each fail point", "1, 3")
    code, printed, err = start(store, tmp_path, fail_at=f"{point}:{nth}:{fault}").finish()
    with errors:
        assert code == 1 and SAYS[fault] in err, err
        assert "committed units are safe" in err and "run the same command again" in err
        assert printed == UNITS[: nth - 1]
        check_after_kill(tmp_path, printed)
        assert not list(tmp_path.rglob(".tmp-*"))
        check_resumed(start, tmp_path, store, whole)


@pytest.mark.parametrize("limit", [2000, 4096, 9000])
def test_a_file_size_limit_is_said_clearly(start, tmp_path, whole, injected, limit):
    limits = injected("file size limit (RLIMIT_FSIZE)", "1, 3")
    assert start("shards", tmp_path, fail_at="commit.folder-synced:2").finish()[0] != 0
    code, printed, err = start("shards", tmp_path, f"limit={limit}").finish()
    with limits:
        assert code == 1 and not printed and "DiskFullError" in err and "free some space" in err
        check_after_kill(tmp_path, UNITS[:2])
        assert not list(tmp_path.rglob(".tmp-*"))
        check_resumed(start, tmp_path, "shards", whole)


@contextlib.contextmanager
def small_disk(size):
    """A memory file system of so many bytes; mounting one takes root."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount")
        and not subprocess.run(command, check=False, capture_output=True).returncode
    )
    try:
        if not mounted:
            pytest.skip("a small file system cannot be mounted here")
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@pytest.mark.faults
@pytest.mark.parametrize("store", UNIT_STORES)
@pytest.mark.parametrize("pages", range(2, 40, 3))
def test_a_small_disk_fills_up_and_is_given_room(start, whole, injected, store, pages):
    full = injected("a small disk (tmpfs) that really fills up", "1, 3")
    with small_disk(pages * 4096) as disk:
        code, printed, err = start(store, disk).finish()
        assert code == 1 and "DiskFullError" in err and len(printed) < len(UNITS), err
        with full:
            check_after_kill(disk, printed)
            subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
            check_resumed(start, disk, store, whole)


def test_a_disk_that_writes_a_few_bytes_at_a_time(start, tmp_path, whole, injected):
    short = injected("short writes, everywhere", "1, 3")
    with short:
        check_resumed(start, tmp_path, "shards", whole, options=["short"])


def test_a_folder_that_may_only_be_read(start, tmp_path, injected):
    """Reading works, and writing says why not; nothing is left behind."""
    refused = injected("read-only folder", "1, 3")
    folder, run = tmp_path / "runs", tmp_path / "runs" / "r"
    assert start("shards", folder, fail_at="commit.folder-synced:3").finish()[0] != 0
    places = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in places}
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    try:
        for name in ("r", "new"):
            with refused:
                code, printed, err = start("shards", folder, f"run={name}", "unprivileged").finish()
                assert code == 2 and not printed and "OutputFolderError" in err, err
                assert "ermission" in err and "choose another output folder" in err
        assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
        assert verify_run(run).ok and len(open_run(run)) == 12
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", "folder.made:1:EROFS")
    with pytest.raises(OutputFolderError, match="cannot be written"):
        ShardStorage(tmp_path / "a").open_run("r")


def test_a_clock_that_goes_backwards_changes_nothing_but_the_times(tmp_path, monkeypatch, injected):
    backwards = injected("a clock that goes backwards by a day between units", "3")
    now = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    days = iter(range(1000))
    times = []

    def later_is_earlier():
        times.append((now - datetime.timedelta(days=next(days))).isoformat())
        return times[-1]

    monkeypatch.setattr("actscope.stores._run_folder._now", later_is_earlier)
    paths = []
    for name, order in (("forwards", range(10)), ("again", range(10))):
        for unit in order:  # a writer of its own for every unit
            writer = ShardStorage(tmp_path).open_run(name)
            with backwards:
                writer.append(f"unit {unit}", sample_batch(unit, unit + 1), {})
        paths.append(writer.path)
    one, two = (open_run(path) for path in paths)
    assert list(one.units) == [f"unit {i}" for i in range(10)] == list(two.units)
    finished = [unit.commit.finished for unit in one.stored_units]
    assert finished == sorted(finished, reverse=True) and len(set(finished)) == 10
    assert shards(paths[0]) == shards(paths[1]) and one.verify().ok
    assert np.array_equal(one.numpy(SITES[0]), sample_batch(0, 10).arrays[SITES[0]])


def test_nothing_of_the_stores_touches_the_disk_but_through_the_io_layer():
    """So that every write, flush, link and rename passes a fail point."""
    import ast

    touching = {
        "fsync", "link", "rename", "replace", "unlink", "rmdir", "mkdir", "makedirs", "rmtree",
        "write_bytes", "write_text", "touch", "copytree", "copyfile", "move", "symlink",
        "pipe_file", "put_file", "rm_file",
    }  # fmt: skip
    known = {
        "_run_folder.py: data.unlink",  # the loser of a race takes its own data back
        "_verify.py: file.unlink",  # sweep, point sweep.removed
        "_care.py: shutil.rmtree",  # delete, after the folder lost its name
        "_data_files.py: shutil.rmtree",  # a copy of a remote file, in a temporary folder
        "_layer_file.py: os.fsync",  # rows in a shared file, point layers.synced
        "_remote_path.py: self.fs.pipe_file",  # the methods of a remote path
        "_remote_path.py: self.fs.rm_file",
        "_remote_writes.py: path.fs.pipe_file",  # points sending and sent
        "_remote_writes.py: target.fs.pipe_file",
        "_remote_writes.py: target.fs.put_file",
    }
    found = set()
    for path in Path(_io.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.name == "_io.py" or not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Attribute) and node.func.attr in touching:
                owner = ast.unparse(node.func.value)
                is_text = node.func.attr == "replace" and len(node.args) != 1
                if not is_text and owner not in ("text", "name"):
                    found.add(f"{path.name}: {owner}.{node.func.attr}")
    assert found == known
