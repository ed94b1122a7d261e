"""Several writers on one unit, and readers beside a writer."""

from __future__ import annotations

import os

import numpy as np
import pytest
from written_runs import check_after_kill

from actscope.core.errors import DuplicateUnitError
from actscope.core.spec import UnitPlan
from actscope.stores import ShardStorage, _io, open_run
from actscope.testing.store_contract import SITES, SPEC, sample_batch

RACES = [
    pytest.param(rounds, same, links, marks=() if rounds < 100 else pytest.mark.faults)
    for same in (False, True)
    for links in (True, False)
    for rounds in (20, 250 if same or not links else 1000)
]


@pytest.mark.parametrize(("rounds", "same", "links"), RACES)
def test_two_processes_race_for_one_unit(nursery, tmp_path, injected, rounds, same, links):
    kind = ("equal" if same else "different") + " content"
    races = injected(f"two writers race for one unit, {kind}", "1, 4")
    barrier = tmp_path / "barrier"
    barrier.write_bytes(bytes(16))
    options = ["same"] * same + ["nolinks"] * (not links)
    folder = tmp_path / "runs"
    pair = [nursery.start("race", folder, barrier, i, rounds, *options) for i in (0, 1)]
    ends = [writer.finish() for writer in pair]
    assert [code for code, _, _ in ends] == [0, 0], ends
    winners = set()
    for number, said in enumerate(zip(ends[0][1], ends[1][1], strict=True), 1):
        run = open_run(folder / str(number))
        report = run.verify()
        with races:
            assert run.units == ("u",) and report.ok and report.leftovers == []
            assert sorted(said) == (["taken", "taken"] if same else ["refused", "taken"])
            seed = 0 if same else said.index("taken")
            expected = sample_batch(0, 2, seed=seed)
            assert all(np.array_equal(run.numpy(s), expected.arrays[s]) for s in SITES)
        winners.add(said)
        run.close()
    assert number == rounds
    assert same or rounds < 100 or len(winners) == 2  # each of the two wins sometimes


def test_without_links_a_record_is_not_replaced_by_one_that_looked_before_it_was_there(
    tmp_path, monkeypatch
):
    """A whole unit is committed between another writer's look and its claim."""

    def no_links(*_):
        raise PermissionError(1, "no links")

    monkeypatch.setattr(os, "link", no_links)
    writers = [ShardStorage(tmp_path).open_run("r") for _ in range(2)]
    really_open = os.open
    calls = []

    def open_late(path, flags, *mode):
        if flags & os.O_EXCL and not calls:
            calls.append(path)
            writers[1].append("u", sample_batch(0, 2, seed=1), {})
        return really_open(path, flags, *mode)

    monkeypatch.setattr(_io.os, "open", open_late)
    with pytest.raises(DuplicateUnitError):
        writers[0].append("u", sample_batch(0, 2), {})
    assert calls
    run = open_run(tmp_path / "r")
    assert np.array_equal(run.numpy(SITES[0]), sample_batch(0, 2, seed=1).arrays[SITES[0]])
    assert run.verify().ok and run.verify().leftovers == []


@pytest.mark.parametrize(
    ("units", "readers", "writers"),
    [(10, 3, 2), pytest.param(400, 8, 1, marks=pytest.mark.faults)],
)
@pytest.mark.parametrize("links", [True, False])
def test_readers_beside_writers(nursery, tmp_path, injected, units, readers, writers, links):
    """Nobody ever sees half a unit, a wrong number, or a unit that goes away again."""
    read = injected(f"{readers} readers beside {writers} writer(s), units read", "1, 2")
    plan = [f"plan=0,{units * 4},4", *(["nolinks"] * (not links))]
    begun = [nursery.start("read", tmp_path) for _ in range(readers)]
    begun += [nursery.start("write", "shards", tmp_path, *plan) for _ in range(writers)]
    for number, process in enumerate(begun):
        code, printed, err = process.finish()
        assert code == 0, err
        if number < readers:
            opened, checked = map(int, printed)
            assert opened >= 1 and checked >= units
            read.add(checked)
    run = open_run(tmp_path / "r")
    assert run.complete and run.plan == UnitPlan(0, units * 4, 4)
    assert run.verify().ok and run.verify().leftovers == []


@pytest.mark.parametrize("links", [True, False])
def test_three_writers_do_one_run(start, tmp_path, links):
    options = [] if links else ["nolinks"]
    for writer in [start("shards", tmp_path, *options) for _ in range(3)]:
        code, printed, err = writer.finish()
        assert code == 0, err
        check_after_kill(tmp_path, printed)
    run = open_run(tmp_path / "r")
    assert run.complete and run.verify().ok and run.verify().leftovers == []
    assert run.spec == SPEC
