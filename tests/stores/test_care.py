"""Comparing, measuring, moving and deleting whole runs."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from actscope.core.activations import ExampleFailure
from actscope.core.arrays import DTYPES
from actscope.core.errors import BadInputError, OutputFolderError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import (
    STORES,
    ShardStorage,
    delete_run,
    diff_runs,
    disk_usage,
    list_runs,
    open_run,
    repair_run,
    sweep,
    verify_run,
)
from actscope.testing.store_contract import SITES, SPEC, sample_batch


def write(folder, name="r", units=((0, 4), (4, 8), (8, 10)), store="shards", change=None, **spec):
    plan = UnitPlan(0, 10, units[0][1] - units[0][0])
    writer = STORES.get(store)(folder).open_run(name, {**SPEC, **spec}, plan.to_json())
    for low, high in units:
        batch = sample_batch(low, high)
        writer.append(unit_id(low, high), change(batch) if change else batch, {})
    return writer.path


# -- diff ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES.names())
def test_the_same_values_in_other_units_and_stores_are_the_same(tmp_path, store):
    a = write(tmp_path, "a")
    b = write(tmp_path, "b", units=((0, 10),), store=store)
    diff = diff_runs(a, b)
    assert diff.same and diff.examples == 10 and diff.spec == []
    assert {key: (s.examples, s.differing) for key, s in diff.sites.items()} == {
        str(site): (10, 0) for site in SITES
    }


def test_values_that_differ_are_measured(tmp_path):
    noise = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32) * 1e-3

    def change(batch):
        rows = batch.arrays[SITES[1]]
        batch.arrays[SITES[1]] = rows + noise[: len(rows)]
        return batch

    a, b = write(tmp_path, "a", units=((0, 10),)), write(
        tmp_path, "b", units=((0, 10),), change=change
    )  # fmt: skip
    diff = diff_runs(a, b)
    x = sample_batch(0, 10).arrays[SITES[1]].astype(np.float64)
    y = change(sample_batch(0, 10)).arrays[SITES[1]].astype(np.float64)
    found = diff.sites[str(SITES[1])]
    assert not diff.same and found.differing == 10 and found.unlike == 0
    assert found.max_abs == np.abs(x - y).max()
    assert math.isclose(found.relative, np.linalg.norm(x - y) / np.linalg.norm(x), rel_tol=1e-12)
    assert diff.sites[str(SITES[0])].differing == 0 == diff.sites[str(SITES[0])].max_abs


def test_numbers_that_are_none(tmp_path):
    def put(value, at=0):
        def change(batch):
            batch.arrays[SITES[0]].reshape(-1)[at] = value
            return batch

        return change

    nan = write(tmp_path, "nan", change=put(np.nan))
    assert diff_runs(nan, write(tmp_path, "nan2", change=put(np.nan))).same
    found = diff_runs(write(tmp_path, "plain"), nan).sites[str(SITES[0])]
    assert (found.differing, found.max_abs, found.relative) == (3, math.inf, math.inf)
    zero = write(tmp_path, "zero", change=put(0.0))
    minus = diff_runs(zero, write(tmp_path, "minus", change=put(-0.0))).sites[str(SITES[0])]
    assert (minus.differing, minus.max_abs, minus.relative) == (3, 0.0, 0.0)


def test_specs_examples_failures_sites_and_shapes_that_differ(tmp_path):
    def change(batch):
        records = list(batch.examples)
        records[0] = replace(records[0], text="other")
        batch.token_ids[-1] += 1
        arrays = {site: array for site, array in batch.arrays.items() if site != SITES[0]}
        arrays[SITES[2]] = arrays[SITES[2]][:, :3]
        failure = ExampleFailure("bad", batch.examples[0].index, "too_long", "it is")
        return replace(batch, examples=tuple(records), arrays=arrays, failures=(failure,))

    a = write(tmp_path, "a", units=((0, 4), (4, 8)))
    b = write(tmp_path, "b", units=((4, 8), (8, 10)), change=change, dataset="e" * 64)
    diff = diff_runs(a, b)
    assert diff.spec == [("dataset", "d" * 64, "e" * 64)]
    assert diff.only_first == ["ex-0", "ex-1", "ex-2", "ex-3"]
    assert diff.only_second == ["ex-8", "ex-9"] and diff.examples == 4
    assert diff.records == ["ex-4", "ex-7"] and diff.failures == ["bad", "bad"]
    assert diff.sites_only_first == [str(SITES[0])] and diff.sites_only_second == []
    assert diff.sites[str(SITES[2])].unlike == 4 and diff.sites[str(SITES[1])].differing == 0
    back = diff_runs(b, a)
    assert back.sites_only_second == [str(SITES[0])] and back.only_first == diff.only_second


# -- how much disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES.names())
def test_disk_usage_is_what_the_files_take(tmp_path, store):
    path = write(tmp_path, store=store)
    (path / "commits" / ".tmp-commit-1-ab").write_bytes(b"12345")
    usage = disk_usage(path)
    files = {p: p.stat().st_size for p in path.rglob("*") if p.is_file()}
    assert usage.total == sum(files.values())
    rows = len(sample_batch(0, 10).arrays[SITES[0]])
    assert usage.sites == {str(site): rows * 5 * 4 for site in SITES}
    assert usage.records == sum(n for p, n in files.items() if p.suffix == ".json")
    assert usage.leftovers == 5 and usage.tables > 0
    parts = (usage.tables, usage.records, usage.leftovers, *usage.sites.values())
    assert sum(parts) == usage.total
    commit = next((path / "commits").glob("*.json"))
    commit.write_bytes(b"{}")
    assert disk_usage(path).total == usage.total - files[commit] + 2
    assert disk_usage(path).leftovers > 5
    repair_run(path)
    assert disk_usage(path).total == usage.total - files[commit] + 2
    with pytest.raises(BadInputError, match="no run"):
        disk_usage(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int8", "uint16", "bool"])
def test_sizes_of_every_dtype(tmp_path, dtype):
    batch = sample_batch(0, 4)
    kind = DTYPES.get(dtype, np.dtype(dtype))
    batch.arrays = {SITES[0]: np.ones((10, 7), np.float32).astype(kind)}
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", batch, {})
    size = batch.arrays[SITES[0]].nbytes
    assert disk_usage(writer.path).sites == {str(SITES[0]): size}
    assert open_run(writer.path).summary().sites[str(SITES[0])].bytes == size


# -- moving and deleting -------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES.names())
def test_a_run_moves_and_is_renamed_freely(tmp_path, store):
    path = write(tmp_path / "here", "old", units=((0, 4),), store=store)
    opened = open_run(path)
    first = opened.numpy(SITES[0])
    there = tmp_path / "there" / "deep" / "new name é"
    there.parent.mkdir(parents=True)
    path.rename(there)
    assert np.array_equal(open_run(there).numpy(SITES[0]), first)
    copy = shutil.copytree(there, tmp_path / "copy")
    plan = UnitPlan(0, 10, 4)
    for folder, name in ((there.parent, there.name), (tmp_path, "copy")):
        writer = STORES.get(store)(folder).open_run(name, SPEC, plan.to_json())
        assert writer.committed() == {unit_id(0, 4)}
        for low, high in ((4, 8), (8, 10)):
            writer.append(unit_id(low, high), sample_batch(low, high), {})
    assert diff_runs(there, copy).same and verify_run(there).ok
    assert np.array_equal(open_run(copy).numpy(SITES[0]), sample_batch(0, 10).arrays[SITES[0]])


@pytest.mark.parametrize("store", STORES.names())
def test_delete_takes_all_of_a_run_and_nothing_else(tmp_path, store):
    path, other = write(tmp_path, "a", store=store), write(tmp_path, "b", store=store)
    (path / "commits" / ".tmp-commit-1-ab").write_bytes(b"12345")
    next((path / STORES.get(store).unit_format.folder).iterdir()).write_bytes(b"x")
    repair_run(path)
    assert (path / "damaged").is_dir()
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert delete_run(path) == size
    assert list(tmp_path.iterdir()) == [other] and verify_run(other).ok


def test_delete_refuses_what_is_no_run(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for place in (folder, folder / "thesis.txt", tmp_path / "nowhere", tmp_path):
        with pytest.raises(BadInputError, match="no run"):
            delete_run(place)
    path = write(tmp_path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(BadInputError, match="is a link"):
        delete_run(tmp_path / "link")
    (path / "notes.txt").write_text("mine")
    write(path, "inner")
    (path / "shards" / "folder").mkdir()
    (path / "commits" / "readme").write_text("mine")
    with pytest.raises(OutputFolderError) as caught:
        delete_run(path)
    for name in ("notes.txt", "inner", "shards/folder", "commits/readme"):
        assert name in str(caught.value)
    assert verify_run(path).ok and (folder / "thesis.txt").exists()


def test_a_run_that_lost_its_head_can_be_deleted_too(tmp_path):
    path = write(tmp_path)
    (path / "run.json").unlink()
    delete_run(path)
    assert list(tmp_path.iterdir()) == []


# -- verifying fast ------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES.names())
def test_fast_verify_sees_all_but_bytes_inside_data_files(tmp_path, store):
    path = write(tmp_path, store=store)
    assert verify_run(path, fast=True).ok and verify_run(path, fast=True).bytes == 0
    data = sorted((path / STORES.get(store).unit_format.folder).iterdir())[0]
    whole = data.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    cases = [(data, whole[:-1]), (data, whole + b"\0"), (data, None)]
    for file in (path / "run.json", next((path / "commits").iterdir())):
        head = file.read_bytes()
        cases += [(file, head[:-1]), (file, head.replace(b"1", b"2", 1)), (file, None)]
    for file, changed in cases:
        before = file.read_bytes()
        file.unlink()
        if changed is not None:
            file.write_bytes(changed)
        lost_commit = changed is None and file.parent.name == "commits"
        for fast in (True, False):
            report = verify_run(path, fast=fast)
            if lost_commit:  # then the unit is as if it had never been written
                assert report.ok and not open_run(path).complete and len(report.leftovers) == 1
            else:
                name = file.relative_to(path).as_posix()
                assert {p.file for p in report.problems} == {name}
        file.write_bytes(before)
    data.write_bytes(flipped)
    assert verify_run(path, fast=True).ok and not verify_run(path).ok


def test_swept_files_are_only_old_ones_even_if_the_clock_went_back(tmp_path):
    path = write(tmp_path)
    stray = path / "shards" / "stray.safetensors"
    stray.write_bytes(b"x")
    import os
    import time

    later = time.time() + 10_000
    os.utime(stray, (later, later))  # written before the clock was set back
    assert sweep(path) == [] and stray.exists()
    assert sweep(path, older_than=-20_000) == [stray]


def test_the_list_tells_complete_partial_and_damaged_apart(tmp_path):
    write(tmp_path, "complete")
    write(tmp_path, "partial", units=((0, 4), (4, 8)))
    damaged = write(tmp_path, "damaged")
    next((damaged / "shards").iterdir()).unlink()
    states = {run.path.name: run.state for run in list_runs(tmp_path)}
    assert states == {name: name for name in ("complete", "partial", "damaged")}
