"""Every changed, lost or misplaced byte is found by name, and never returned as data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from written_runs import wrong_numbers

from actscope.core.spec import unit_id
from actscope.stores import STORES, open_run, repair_run, verify_run
from actscope.testing.store_contract import PLAN, SPEC, sample_batch

UNITS = [(0, 4), (4, 8), (8, 10)]
WHOLE = sample_batch(0, 10)


def write(storage, run_id="r", spec=SPEC):
    writer = storage.open_run(run_id, spec, PLAN)
    for bounds in UNITS:
        writer.append(unit_id(*bounds), sample_batch(*bounds), {})
    return writer.path


def named(report):
    return {problem.file for problem in report.problems}


def files_of(path):
    found = sorted(p for p in path.rglob("*") if p.is_file())
    assert len(found) == 7
    return found


_FEW_AND_MANY = (
    ("shards", 140, 10_000), ("npz", 35, 2_000), ("hdf5", 35, 2_000), ("pickle", 35, 2_000)
)  # fmt: skip
FLIPS = [
    pytest.param(store, n, marks=marks)
    for store, few, many in _FEW_AND_MANY
    for n, marks in ((few, ()), (many, pytest.mark.faults))
]


@pytest.mark.parametrize(("store", "flips"), FLIPS)
def test_random_bit_flips_are_all_found(tmp_path, injected, store, flips):
    flipped = injected(f"a random bit flips ({store})", "2")
    path = write(STORES.get(store)(tmp_path))
    rng = np.random.default_rng(flips)
    files = files_of(path)
    for i in range(flips):
        file = files[i % len(files)]
        before = file.read_bytes()
        changed = bytearray(before)
        changed[rng.integers(len(before))] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with flipped:
            assert named(verify_run(path)) == {file.relative_to(path).as_posix()}
            assert not wrong_numbers(path, WHOLE)
        file.write_bytes(before)
    assert verify_run(path).ok and flipped.times == flips


TRUNCATIONS = [
    pytest.param(store, every, marks=() if every == 1000 else pytest.mark.faults)
    for store in STORES.names()
    if STORES.get(store).unit_format.place
    is None  # rows of all units in one file are checked as rows
    for every in (1000, {"shards": 1, "npz": 10, "hdf5": 40}.get(store, 1))
]


@pytest.mark.parametrize(("store", "every"), TRUNCATIONS)
def test_truncations_are_all_found(tmp_path, injected, store, every):
    """To every length there is; in the stores with longer files, to lengths so far apart."""
    cut = injected(f"a file is truncated ({store})", "2")
    path = write(STORES.get(store)(tmp_path))
    for file in files_of(path):
        before = file.read_bytes()
        for length in sorted({*range(0, len(before), every), len(before) - 1}):
            file.write_bytes(before[:length])
            with cut:
                for fast in (True, False):
                    assert named(verify_run(path, fast=fast)) == {file.relative_to(path).as_posix()}
                assert length % 50 or not wrong_numbers(path, WHOLE)
        file.write_bytes(before + b"\0")
        with cut:
            assert named(verify_run(path)) == {file.relative_to(path).as_posix()}
        file.write_bytes(before)
    assert verify_run(path).ok


def swap(one, two):
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


MISPLACED = ("missing", "renamed", "swapped", "of another run", "emptied", "a folder", "a link")


@pytest.mark.parametrize(
    "store",
    [pytest.param(s, marks=() if s == "shards" else pytest.mark.faults) for s in STORES.names()],
)
@pytest.mark.parametrize("how", MISPLACED)
@pytest.mark.parametrize("what", ["data", "commit"])
def test_misplaced_files_are_found_and_repaired(tmp_path, injected, store, how, what):
    moved = injected("data files and records missing, renamed, swapped or replaced", "2")
    storage = STORES.get(store)(tmp_path)
    path, other = write(storage), write(storage, "other", {**SPEC, "dataset": "e" * 64})
    folder = "commits" if what == "commit" else storage.unit_format.folder
    one, two, _ = sorted((path / folder).iterdir())
    expected = {one.name}
    if how == "missing":
        one.unlink()
    elif how == "renamed":
        one.rename(one.with_name(f"{unit_id(1, 4)}{one.suffix}"))
        expected = {f"{unit_id(1, 4)}.json"} if what == "commit" else expected
    elif how == "swapped":
        swap(one, two)
        expected |= {two.name}
    elif how == "of another run":
        shutil.copyfile(sorted((other / folder).iterdir())[0], one)
    elif how == "emptied":
        one.write_bytes(b"")
    else:
        kept = tmp_path / "kept"
        one.rename(kept)
        one.mkdir() if how == "a folder" else one.symlink_to(kept)
    with moved:
        report = verify_run(path)
        if (how, what) == ("missing", "commit"):  # as if the unit had never been written
            assert report.ok and open_run(path).pending == (unit_id(0, 4),)
        else:
            assert {name.rpartition("/")[2] for name in named(report)} == expected
            assert not wrong_numbers(path, WHOLE)
        repair_run(path)
        assert verify_run(path).ok
        if how == "a folder" and what == "data":
            one.rmdir()
        again = storage.open_run("r", SPEC, PLAN)
        for bounds in UNITS:
            again.append(unit_id(*bounds), sample_batch(*bounds), {})
        assert open_run(path).complete and verify_run(path).ok and not wrong_numbers(path, WHOLE)
