"""Runs in remote folders, here in ``memory://``: the promises of local ones, and their own."""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from remote_folders import PLAN, UNITS, data_files, empty_memory, race, write

from actscope.core.errors import (
    BadInputError,
    DamagedRunError,
    OutputFolderError,
    RunError,
    StorageError,
    UnknownNameError,
)
from actscope.core.spec import unit_id
from actscope.formats import export_run, import_run
from actscope.stores import (
    STORES,
    NpyLayersStorage,
    NPZStorage,
    ShardStorage,
    _io,
    _remote_writes,
    as_folder,
    delete_run,
    diff_runs,
    disk_usage,
    list_runs,
    merge_runs,
    open_run,
    repair_run,
    sweep,
    verify_run,
)
from actscope.stores._remote_path import RemotePath
from actscope.testing.store_contract import SITES, SPEC, StoreContract, sample_batch

REMOTE_STORES = [name for name in STORES.names() if name != "npy_layers"]
WHOLE = sample_batch(0, 12)


@pytest.fixture
def folder():
    with empty_memory() as address:
        yield address


@pytest.fixture(params=REMOTE_STORES)
def store(request):
    return STORES.get(request.param)


def is_whole(path):
    with open_run(path) as run:
        right = all(np.array_equal(run.numpy(site), WHOLE.arrays[site]) for site in SITES)
        return right and run.complete and run.verify().ok


class TestRemoteStores(StoreContract):
    @pytest.fixture
    def storage(self, store, folder):
        return store(folder)

    def read(self, path):
        return open_run(path)


# -- addresses ------------------------------------------------------------------------------


def test_a_file_address_is_the_local_folder(tmp_path):
    place = tmp_path / "a b"
    storage = ShardStorage(place.as_uri())
    assert storage.path == place and isinstance(storage.path, Path)
    path = write(place.as_uri())
    assert path == place / "r" and data_files(path) == data_files(f"file://{tmp_path}/a b/r")
    assert (place / "r" / "run.json").is_file()
    assert [run.path for run in list_runs(place.as_uri())] == [path]
    assert data_files(write(tmp_path / "plain")) == data_files(path)


@pytest.mark.parametrize("address", ["file://runs/x", "file://", "file://host/x"])
def test_a_file_address_of_another_machine_is_refused(address):
    with pytest.raises(BadInputError, match="three slashes"):
        open_run(address)


@pytest.mark.parametrize(
    "address",
    ["memory://", "memory:///", "memory://a//b", "memory://a/../b", "memory://a/./b",
     "simplecache::memory://a/b", "memory://a::b"],
)  # fmt: skip
def test_an_address_that_names_no_folder_is_refused(address):
    for use in (open_run, ShardStorage, list_runs, verify_run):
        with pytest.raises(BadInputError, match="names no folder"):
            use(address)


def test_an_address_that_lost_a_slash_is_no_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="s3://bucket/runs"):
        ShardStorage(Path("s3://bucket/runs"))
    (tmp_path / "s3:").mkdir()
    assert ShardStorage(Path("s3:/runs")).path == Path("s3:/runs")


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'memory'"):
        open_run("memmory://a/b")


def test_a_missing_package_is_named(monkeypatch):
    registry = importlib.import_module("fsspec.registry")

    known = {"class": "not_there.FileSystem", "err": "Install not_there"}
    monkeypatch.setitem(registry.known_implementations, "gs", known)
    monkeypatch.delitem(registry._registry, "gs", raising=False)
    with pytest.raises(BadInputError, match="pip install gcsfs"):
        ShardStorage("gs://bucket/runs")


def test_without_fsspec_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.registry", None)
    with pytest.raises(BadInputError, match=r"pip install 'actscope\[remote\]'"):
        open_run("memory://a/b")
    assert write(tmp_path).is_dir()  # local folders do not need it


def test_paths_name_what_pathlib_names():
    path, plain = as_folder("memory://bucket/runs/a.b/c.json"), Path("/bucket/runs/a.b/c.json")
    assert (path.name, path.stem, path.suffix) == (plain.name, plain.stem, plain.suffix)
    assert str(path.parent) == "memory://bucket/runs/a.b" and path.parent.name == "a.b"
    assert path == as_folder("memory:///bucket/runs/") / "a.b" / "c.json"
    assert path.relative_to(as_folder("memory://bucket/runs")).as_posix() == "a.b/c.json"
    bucket = as_folder("memory://bucket")
    assert bucket.parent is bucket and bucket.name == ""
    assert sorted([path, bucket]) == [bucket, path] and len({path, bucket, path.parent}) == 3
    public = {name for name in vars(RemotePath) if not name.startswith("_")}
    assert public - set(dir(Path)) == {"fs", "inner", "of", "protocol", "with_options"}
    with pytest.raises(TypeError):
        Path(path)  # never a local file by accident


def test_options_are_kept_and_never_shown(folder):
    path = as_folder(folder, key="hidden")
    assert "hidden" not in f"{path} {path!r}" and path != as_folder(folder)
    again = pickle.loads(pickle.dumps(path / "r"))
    assert again == path / "r" and again.fs.storage_options["key"] == "hidden"
    assert as_folder(path, secret="more").fs.storage_options["key"] == "hidden"
    with pytest.raises(BadInputError, match="takes no options"):
        as_folder("runs", key="x")


def test_a_path_of_universal_pathlib_is_taken_with_its_options(folder):
    class Universal:
        protocol = "memory"
        storage_options = {"key": "k"}  # noqa: RUF012

        def __str__(self):
            return f"{folder}/r"

    assert as_folder(Universal()) == as_folder(f"{folder}/r", key="k")


def test_listings_are_never_kept(folder):
    assert as_folder(folder).fs.dircache.use_listings_cache is False


# -- what only works where a server creates conditionally -------------------------------------


def test_a_file_system_that_looks_first_and_writes_then_is_refused(monkeypatch):
    registry = importlib.import_module("fsspec.registry")

    class Plain(MemoryFileSystem):
        protocol = "plain"

    monkeypatch.setitem(registry._registry, "plain", Plain)
    with pytest.raises(OutputFolderError, match="only if there is none"):
        ShardStorage("plain://bucket/runs")


def test_a_server_that_ignores_the_condition_is_refused(folder, monkeypatch):
    def overwrite(self, path, value, mode="overwrite", **kwargs):
        self.open(path, mode="wb", data=value)

    monkeypatch.setattr(_remote_writes, "_PROVEN", set())
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", overwrite)
    with pytest.raises(OutputFolderError, match="ignores conditions"):
        ShardStorage(folder).open_run("r", SPEC, PLAN.to_json())
    assert list((as_folder(folder) / "r").rglob("*.safetensors")) == []


def test_a_server_is_asked_once_whether_it_keeps_to_conditions(folder, monkeypatch):
    asked = []
    create = _remote_writes.create
    monkeypatch.setattr(_remote_writes, "_PROVEN", set())
    monkeypatch.setattr(
        _remote_writes, "create", lambda path, data: asked.append(path) or create(path, data)
    )
    for run in ("a", "b"):
        before = ShardStorage(folder).open_run(run, SPEC, PLAN.to_json()).path / "run.json"
        assert before.read_bytes()
    assert [path.parent.name for path in asked] == ["a"]


@pytest.fixture
def slow_look(monkeypatch):
    """Make the moment long between looking whether a file is there, and writing it."""
    exists = MemoryFileSystem.exists

    def slowly(self, path, **kwargs):
        found = exists(self, path, **kwargs)
        time.sleep(0.002)
        return found

    monkeypatch.setattr(MemoryFileSystem, "exists", slowly)


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)])
def test_two_writers_of_one_unit_leave_one_commit(folder, slow_look, seeds):
    ends = race(folder, 60, seeds)
    assert len(ends) == 60
    for path, said in ends:
        assert sorted(said) == (["refused", "taken"] if seeds == (0, 1) else ["taken", "taken"])
        winner = seeds[said.index("taken")]
        with open_run(path) as run:
            assert run.units == ("u",) and run.verify().ok and run.verify().leftovers == []
            expected = sample_batch(0, 2, seed=winner).arrays
            assert all(np.array_equal(run.numpy(site), expected[site]) for site in SITES)
        assert len(list((path / "commits").iterdir())) == 1
        assert len(list((path / "shards").iterdir())) == 1


def test_without_the_lock_memory_would_take_both(folder, slow_look, monkeypatch):
    """So that the race above is one."""
    monkeypatch.setattr(_remote_writes, "_IN_MEMORY", contextlib.nullcontext())
    assert ["taken", "taken"] in [said for _, said in race(folder, 40, (0, 1))]


# -- writers that die, and resuming -----------------------------------------------------------


def test_these_are_all_points_in_this_order(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(_io, "fail_point", seen.append)
    write(folder)
    assert tuple(dict.fromkeys(seen)) == _io.REMOTE_FAIL_POINTS


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", _io.REMOTE_FAIL_POINTS)
def test_a_writer_that_dies_leaves_whole_units_and_resumes(folder, monkeypatch, point, nth):
    if point.startswith("run.") and nth > 1:
        nth = 1
    whole = data_files(write(folder, "whole"))
    monkeypatch.setattr(_io, "_reached", {})
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", f"{point}:{nth}:EIO")
    with pytest.raises(RunError):
        write(folder)
    monkeypatch.delenv("ACTSCOPE_FAIL_AT")
    path = as_folder(folder) / "r"
    if (path / "run.json").exists():
        with open_run(path) as run:
            done = nth if point == "commit.sent" else nth - 1
            assert len(run.units) == (0 if point.startswith("run.") else done)
            assert run.verify().ok
    assert write(folder) == path
    assert is_whole(path) and data_files(path) == whole
    sweep(path, older_than=0)
    assert verify_run(path).leftovers == [] and is_whole(path)


def test_the_temporary_copy_is_gone_whatever_happens(folder, monkeypatch, tmp_path, store):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write(folder, store=store)
    with open_run(path) as run:
        assert is_whole(path) and run.get("ln_final", example=3) is not None
    monkeypatch.setattr(_io, "_reached", {})
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", "data.sending:1:EIO")
    with pytest.raises(RunError):
        write(folder, "other", store)
    assert list(tmp_path.iterdir()) == []


def test_a_full_local_disk_is_said_to_be_the_local_one(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_io, "_reached", {})
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", "data.half-written:1:ENOSPC")
    with pytest.raises(RunError, match=str(tmp_path)):
        write(folder)


def test_an_upload_that_is_cut_is_not_committed(folder, monkeypatch):
    def cut(self, path, value, mode="overwrite", **kwargs):
        half = value[: len(value) // 2] if path.endswith(".safetensors") else value
        self.open(path, mode="xb" if mode == "create" else "wb", data=half)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", cut)
        with pytest.raises(StorageError, match="did not arrive whole"):
            write(folder)
    assert open_run(f"{folder}/r").units == ()
    assert is_whole(write(folder))


def test_readers_see_a_growing_run_whole(folder):
    path = write(folder, units=())
    failed = []

    def fill():
        try:
            for bounds in UNITS:
                time.sleep(0.01)
                write(folder, units=[bounds])
        except Exception as error:  # shown by the assertion below
            failed.append(error)

    thread = threading.Thread(target=fill)
    thread.start()
    seen, looks = (), 0
    while thread.is_alive() or len(seen) < len(UNITS):
        assert not failed
        (listed,) = list_runs(folder)
        assert listed.state in ("partial", "complete"), listed
        with open_run(path) as run:
            assert set(seen) <= set(run.units)
            seen, looks = run.units, looks + 1
            for unit in run.stored_units:
                start, stop = map(int, unit.commit.unit.split("-"))
                expected = sample_batch(start, stop).arrays
                assert all(np.array_equal(unit.read(str(s)), expected[s]) for s in SITES)
    thread.join()
    assert not failed and looks > 1 and is_whole(path)


# -- reading: what was asked for, and nothing that is damaged ---------------------------------


@pytest.fixture
def fetched(monkeypatch):
    """(file, start, end) of every fetch; whole files have no end."""
    seen = []
    cat = MemoryFileSystem.cat_file

    def counting(self, path, start=None, end=None, **kwargs):
        seen.append((path.rpartition("/")[2], start, end))
        return cat(self, path, start=start, end=end, **kwargs)

    def never(self, path, mode="rb", **kwargs):
        assert "r" not in mode, "a file was opened and not fetched"
        return opened(self, path, mode=mode, **kwargs)

    opened = MemoryFileSystem._open
    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    monkeypatch.setattr(MemoryFileSystem, "_open", never)
    return seen


def test_reading_a_layer_fetches_that_layer_and_the_headers(folder, fetched):
    path = write(folder)
    fetched.clear()
    with open_run(path) as run:
        assert np.array_equal(run.numpy("resid_post", 3), WHOLE.arrays[SITES[1]])
        run.numpy("resid_post", 3)  # kept: nothing is fetched again
        assert run.get("resid_post", 3, example=5).equal(WHOLE[SITES[1]][5])
        names = [unit.path.name for unit in run.stored_units]
    of_data = [entry for entry in fetched if entry[0].endswith(".safetensors")]
    for name in names:
        raw = MemoryFileSystem.store[f"/bucket/runs/r/shards/{name}"].getvalue()
        length = int.from_bytes(raw[:8], "little")
        at = json.loads(raw[8 : 8 + length])
        ranges = [(0, 8), (8, 8 + length)]
        tables = ["rows.offsets"] if name == names[1] else []  # example 5 lies in the second unit
        for tensor in ("blocks.3.resid_post", *tables):
            start, stop = at[tensor]["data_offsets"]
            ranges.append((8 + length + start, 8 + length + stop))
        assert [(a, b) for n, a, b in of_data if n == name] == ranges
        assert ranges[2][1] - ranges[2][0] < len(raw) / 3
    others = {name for name, _, _ in fetched if not name.endswith(".safetensors")}
    assert others == {"run.json", *(f"{unit_id(*bounds)}.json" for bounds in UNITS)}


def test_a_summary_fetches_no_data(folder, fetched):
    path = write(folder)
    fetched.clear()
    with open_run(path) as run:
        assert run.summary().n_examples == 12
    assert list_runs(folder)[0].n_examples == 12 and disk_usage(path).total > 0
    assert {name.rpartition(".")[2] for name, _, _ in fetched} == {"json"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone", "swapped", "empty"])
def test_a_damaged_data_file_is_found_and_never_returned(folder, store, damage):
    path = write(folder, store=store)
    first, second, _ = sorted((path / store.unit_format.folder).iterdir())
    data = first.read_bytes()
    middle = len(data) // 2
    if damage == "gone":
        first.unlink()
    else:
        first.write_bytes(
            {
                "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                "cut": data[:-1],
                "longer": data + b"x",
                "swapped": second.read_bytes(),
                "empty": b"",
            }[damage]
        )
    report = verify_run(path)
    assert [problem.file for problem in report.problems] == [f"{first.parent.name}/{first.name}"]
    for site in SITES:
        with open_run(path) as run, contextlib.suppress(DamagedRunError):
            found = run.numpy(site)
            assert np.array_equal(found, WHOLE.arrays[site]) and damage == "flipped"
    repair_run(path)
    assert is_whole(write(folder, store=store))
    assert len(list((path / "damaged").iterdir())) == 1


@pytest.mark.parametrize("name", ["run.json", "commits/000000000-000000004.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 100])
def test_a_damaged_record_is_found(folder, name, data):
    path = write(folder)
    assert (path / name).is_file()
    (path / name).write_bytes(data)
    assert not verify_run(path).ok
    with pytest.raises(DamagedRunError):
        open_run(path).numpy("ln_final")


# -- a server that does not answer --------------------------------------------------------------


@pytest.mark.parametrize("broken", ["info", "ls", "cat_file"])
def test_a_server_that_fails_is_never_an_empty_or_a_damaged_run(folder, monkeypatch, broken):
    path = write(folder)

    def fail(self, *args, **kwargs):
        raise TimeoutError("no answer")

    uses = [
        lambda: open_run(path).numpy("ln_final"), lambda: list_runs(folder),
        lambda: verify_run(path), lambda: repair_run(path), lambda: sweep(path, older_than=0),
        lambda: write(folder, seed=1), lambda: ShardStorage(folder).stored_plan("r"),
    ]  # fmt: skip
    before = dict(MemoryFileSystem.store)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, broken, fail)
        for number, use in enumerate(uses):
            if (broken, number) == ("ls", 6):
                continue  # a plan is read without listing
            with pytest.raises(StorageError, match="no answer"):
                use()
    assert MemoryFileSystem.store == before and is_whole(path)


def test_refused_credentials_are_said(folder, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with pytest.raises(StorageError, match="credentials"):
        open_run(f"{folder}/r")


# -- looking after remote runs -------------------------------------------------------------------


def test_merge_to_and_from_remote_folders(folder, tmp_path):
    parts = [
        write(folder, "a", units=UNITS[:2]), write(tmp_path, "b", units=UNITS[2:])
    ]  # fmt: skip
    for target in (f"{folder}/all", tmp_path / "all"):
        report = merge_runs(parts, target)
        assert report.copied == 3 and is_whole(report.path)
        assert data_files(report.path) == data_files(write(tmp_path, "whole"))
        assert diff_runs(report.path, tmp_path / "whole").same


def test_du_counts_every_byte_once(folder, store, tmp_path):
    remote, local = (disk_usage(write(place, store=store)) for place in (folder, tmp_path))
    files = MemoryFileSystem.store
    assert remote.total == sum(len(f.getvalue()) for f in files.values())
    assert remote.sites == local.sites and remote.tables == local.tables
    assert remote.records > 0 and remote.leftovers == 0


def test_sweep_keeps_what_is_young_or_committed(folder):
    path = write(folder)
    (path / "shards" / "stray-0.safetensors").write_bytes(b"x")
    assert verify_run(path).leftovers == ["shards/stray-0.safetensors"]
    assert sweep(path) == []
    assert [file.name for file in sweep(path, older_than=0)] == ["stray-0.safetensors"]
    assert is_whole(path)


def test_delete_is_refused_with_what_to_do(folder):
    path = write(folder)
    with pytest.raises(BadInputError, match=r"rm\('/bucket/runs/r', recursive=True\)"):
        delete_run(path)
    assert is_whole(path)


def test_a_remote_run_is_exported_here_and_imported_back(folder, tmp_path):
    path = write(folder)
    export_run(path, "npz", tmp_path / "out")
    assert import_run(tmp_path / "out", "npz", f"{folder}/again").verified
    assert is_whole(f"{folder}/again")
    with pytest.raises(BadInputError, match="no local path"):
        export_run(path, "npz", f"{folder}/out")
    with pytest.raises(BadInputError, match="no local path"):
        import_run(f"{folder}/out", "npz", tmp_path / "x")


def test_npy_layers_stay_on_local_disks(folder, tmp_path):
    with pytest.raises(BadInputError, match="local disks alone"):
        NpyLayersStorage(folder)
    local = write(tmp_path, store=NpyLayersStorage)
    for file in local.rglob("*.*"):
        (as_folder(folder) / "r" / str(file.relative_to(local))).write_bytes(file.read_bytes())
    with open_run(f"{folder}/r") as run:
        assert run.n_examples == 12
        with pytest.raises(BadInputError, match="copy the run's folder"):
            run.numpy("ln_final")
    assert list_runs(folder)[0].state == "complete"


def test_rows_for_training_reopen_the_run_where_they_are_unpickled(folder):
    rows = open_run(write(folder)).whole().dataset("ln_final")
    again = pickle.loads(pickle.dumps(rows))
    assert again[7].equal(rows[7]) and len(again) == len(WHOLE.arrays[SITES[2]])


def test_a_run_of_another_store_is_refused(folder):
    write(folder)
    with pytest.raises(OutputFolderError, match="another store"):
        write(folder, store=NPZStorage)


@pytest.mark.parametrize("point", _io.REMOTE_CARE_FAIL_POINTS)
def test_a_repair_that_dies_is_done_again(folder, monkeypatch, point):
    path = write(folder)
    shard = next((path / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    monkeypatch.setattr(_io, "_reached", {})
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", f"{point}:1:EIO")
    with pytest.raises(StorageError, match="repairing"):
        repair_run(path)
    monkeypatch.delenv("ACTSCOPE_FAIL_AT")
    assert repair_run(path).ok == (point == "repair.moved")
    assert verify_run(path).ok and len(open_run(path).pending) == 1
    assert is_whole(write(folder))
