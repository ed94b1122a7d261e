"""Runs of one spec become one: any ranges, nothing lost, doubled or mixed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.core.activations import ExampleFailure
from actscope.core.errors import (
    BadInputError,
    DamagedRunError,
    DuplicateUnitError,
    RunMismatchError,
)
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import STORES, ShardStorage, merge_runs, open_run
from actscope.testing.store_contract import SITES, SPEC, sample_batch


def write(folder, name, start, stop, size, *, store="shards", skip=(), spec=SPEC, **options):
    plan = UnitPlan(start, stop, size)
    writer = STORES.get(store)(folder).open_run(name, spec, plan.to_json())
    for low, high in plan.units():
        if low not in skip:
            batch = sample_batch(low, high, **options)
            writer.append(unit_id(low, high), batch, {"start": low, "stop": high})
    return writer.path


def check(path, held, **options):
    """The run holds exactly these examples, in order, with their values."""
    run = open_run(path)
    assert run.verify().ok
    assert [record.index for record in run.examples] == sorted(held)
    whole = sample_batch(0, max(held, default=0) + 1, **options)
    for place, index in enumerate(sorted(held)):
        assert run.examples[place] == whole.examples[index]
        assert run.tokens(place).tolist() == whole.tokens(index).tolist()
        for site in SITES:
            start, stop = whole.offsets[index : index + 2].tolist()
            rows = whole.arrays[site][start:stop]
            expected = rows[0] if whole.pooled else rows
            assert np.array_equal(run.array(site, example=place), expected)
    return run


@pytest.mark.parametrize("store", STORES.names())
@pytest.mark.parametrize("pooled", [False, True])
def test_neighbouring_ranges(tmp_path, store, pooled):
    a = write(tmp_path, "a", 0, 8, 4, store=store, pooled=pooled)
    b = write(tmp_path, "b", 8, 14, 4, store=store, pooled=pooled)
    report = merge_runs([b, a], tmp_path / "all")
    whole = STORES.get(store).unit_format.place is None  # a unit is one file, which is copied
    assert (report.copied, report.cut) == ((4, 0) if whole else (0, 4))
    assert (report.repeated, report.missing) == (0, ())
    run = check(tmp_path / "all", range(14), pooled=pooled)
    assert run.complete and run.plan == UnitPlan(0, 14, 4) and run.spec == SPEC
    names = {p.name for source in (a, b) for p in (source / "shards").glob("*")}
    assert {p.name for p in (tmp_path / "all" / "shards").glob("*")} == names
    check(a, range(8), pooled=pooled)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 14), st.integers(1, 6), st.integers(0, 40)),
        min_size=1,
        max_size=4,
    )
)
def test_any_ranges_and_any_unit_sizes(tmp_path_factory, ranges):
    """Gaps, overlaps, units of other sizes and partial runs, against sets of indices."""
    folder = tmp_path_factory.mktemp("merge")
    held, planned, paths = set(), set(), []
    for number, (start, length, size, skip) in enumerate(ranges):
        plan = UnitPlan(start, start + length, size)
        units = plan.units()
        left_out = {units[skip % len(units)][0]} if units and skip < 20 else set()
        paths.append(write(folder, str(number), start, start + length, size, skip=left_out))
        held |= {i for low, high in units if low not in left_out for i in range(low, high)}
        planned |= {start, start + length}
    report = merge_runs(paths, folder / "all")
    run = check(folder / "all", held)
    missing = {i for low, high in report.missing for i in range(low, high)}
    assert missing == set(range(min(planned), max(planned))) - held
    pending = {i for u in run.pending for i in range(*(int(part) for part in u.split("-")))}
    assert pending == missing and run.complete == (not missing)
    before = {p: p.read_bytes() for p in (folder / "all").rglob("*") if p.is_file()}
    assert merge_runs(paths, folder / "all") == report
    assert before == {p: p.read_bytes() for p in (folder / "all").rglob("*") if p.is_file()}
    for low, high in run.plan.units():  # and a writer can complete it
        if unit_id(low, high) in run.pending:
            writer = ShardStorage(folder).open_run("all", SPEC)
            writer.append(unit_id(low, high), sample_batch(low, high), {})
    assert check(folder / "all", held | missing).complete


def test_a_gap_is_pending_and_may_be_captured_later(tmp_path):
    paths = [write(tmp_path, "a", 0, 6, 4), write(tmp_path, "b", 13, 18, 4)]
    assert merge_runs(paths, tmp_path / "all").missing == ((6, 13),)
    run = check(tmp_path / "all", [*range(6), *range(13, 18)])
    assert run.plan.units() == [(0, 4), (4, 6), (6, 8), (8, 12), (12, 13), (13, 16), (16, 18)]
    assert run.plan == UnitPlan(0, 18, 4, cuts=(6, 13))
    assert run.pending == ("000000006-000000008", "000000008-000000012", "000000012-000000013")


def test_other_specs_are_refused_with_what_differs(tmp_path):
    a = write(tmp_path, "a", 0, 4, 4)
    b = write(
        tmp_path, "b", 4, 8, 4, spec={**SPEC, "dataset": "e" * 64, "storage_dtype": "float32"}
    )
    with pytest.raises(RunMismatchError) as caught:
        merge_runs([a, b], tmp_path / "all")
    assert [row[0] for row in caught.value.differences] == ["dataset", "storage_dtype"]
    assert not (tmp_path / "all").exists()


def test_what_cannot_be_merged(tmp_path):
    a = write(tmp_path, "a", 0, 4, 4)
    npz = write(tmp_path, "npz", 4, 8, 4, store="npz")
    bare = ShardStorage(tmp_path).open_run("bare").path
    unsaid = ShardStorage(tmp_path).open_run("unsaid", SPEC)
    unsaid.append("some", sample_batch(4, 6), {})
    for runs, says in [
        ([], "no run to merge"),
        ([a, npz], "another store"),
        ([a, bare], "has no spec"),
        ([a, unsaid.path], "does not say which examples"),
        ([a, tmp_path / "nowhere"], "no run at"),
    ]:
        with pytest.raises(BadInputError, match=says):
            merge_runs(runs, tmp_path / "all")
        assert not (tmp_path / "all").exists()
    with pytest.raises(BadInputError, match="one of the runs to merge"):
        merge_runs([a], tmp_path / "x" / ".." / "a")


def test_other_values_for_one_example_are_refused_or_the_first_taken(tmp_path):
    a = write(tmp_path, "a", 0, 8, 4)
    b = write(tmp_path, "b", 2, 10, 3, seed=1)
    with pytest.raises(DuplicateUnitError, match="examples 2 to 2"):
        merge_runs([a, b], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    report = merge_runs([a, b], tmp_path / "all", keep_first=True)
    assert report.repeated == 6
    run = open_run(tmp_path / "all")
    assert [record.index for record in run.examples] == list(range(10))
    for site in SITES:
        for index in range(10):
            batch = sample_batch(index, index + 1, seed=int(index >= 8))
            assert np.array_equal(run.array(site, example=index), batch.arrays[site])


def test_failures_heads_and_patterns_of_a_cut_unit(tmp_path):
    z, some = Site("z", 1), Site("pattern", 1, parts=(0, 2, 5))
    rng = np.random.default_rng(0)

    def batch(start, stop, values):
        made = sample_batch(start, stop)
        made.arrays = {site: values[site][start, stop] for site in (z, some)}
        failure = ExampleFailure(f"bad-{start}", start, "too_long", "it is")
        last = ExampleFailure(f"bad-{stop}", stop - 1, "too_long", "it is")
        return replace(made, heads={z: 2, some: 3}, failures=(failure, last))

    whole = sample_batch(0, 12)
    rows = rng.standard_normal((int(whole.offsets[-1]), 6)).astype(np.float32)
    blocks = rng.random(3 * int(whole.block_offsets[-1])).astype(np.float32)
    values = {z: {}, some: {}}
    for start, stop in itertools.combinations(range(13), 2):
        values[z][start, stop] = rows[whole.offsets[start] : whole.offsets[stop]]
        low, high = (3 * whole.block_offsets[[start, stop]]).tolist()
        values[some][start, stop] = blocks[low:high]
    paths = []
    for name, start, stop in (("a", 0, 7), ("b", 5, 12)):
        writer = ShardStorage(tmp_path).open_run(name, SPEC, UnitPlan(start, stop, 12).to_json())
        writer.append(unit_id(start, stop), batch(start, stop, values), {"timings": {"f": 1}})
        paths.append(writer.path)
    report = merge_runs(paths, tmp_path / "all", keep_first=True)
    assert (report.copied, report.cut, report.repeated) == (1, 1, 2)
    run = open_run(tmp_path / "all")
    assert [f.index for f in run.failures] == [0, 6, 11]
    assert run.verify().ok and len(run) == 12
    for i in range(12):
        n = run.examples[i].n_tokens
        assert np.array_equal(run.array(z, example=i).reshape(n, 6), values[z][i, i + 1])
        expected = values[some][i, i + 1].reshape(3, n, n)
        assert np.array_equal(run.array(some, example=i), expected)
    assert run.stored_units[1].commit.metadata["cut_from"] == unit_id(5, 12)


def test_a_damaged_unit_is_not_merged(tmp_path):
    a, b = write(tmp_path, "a", 0, 8, 4), write(tmp_path, "b", 8, 12, 4)
    shard = next((b / "shards").iterdir())
    shard.write_bytes(with_a_flipped_bit(shard))
    with pytest.raises(DamagedRunError, match=shard.name):
        merge_runs([a, b], tmp_path / "all")
    run = check(tmp_path / "all", range(8))
    assert run.pending == (unit_id(8, 12),) and run.verify().leftovers == []


def with_a_flipped_bit(path: Path) -> bytes:
    """The file with one bit flipped near its end."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    return bytes(data)


def test_versions_of_the_source_stay_on_record(tmp_path, monkeypatch):
    a = write(tmp_path, "a", 0, 4, 4)
    other = {"python": "3.11.0", "actscope": "0.0.1"}
    monkeypatch.setattr("actscope.stores._run_folder.environment", lambda: other)
    b = write(tmp_path, "b", 4, 8, 4)
    merge_runs([a, b], tmp_path / "all")
    run = open_run(tmp_path / "all")
    theirs = open_run(a).environment
    found = [unit.commit.environment or run.environment for unit in run.stored_units]
    assert found == [theirs, other] and theirs != other


def test_a_unit_that_a_killed_merge_named_is_flushed_before_it_counts(tmp_path, monkeypatch):
    a = write(tmp_path, "a", 0, 4, 4)
    merge_runs([a], tmp_path / "all")
    flushed = []
    monkeypatch.setattr("actscope.stores._run_folder.sync_folder", flushed.append)
    merge_runs([a], tmp_path / "all")
    assert tmp_path / "all" / "commits" in flushed
