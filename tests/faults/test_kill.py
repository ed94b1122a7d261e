"""Kill writers anywhere: what was committed stays, nothing half is read, resuming completes."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from written_runs import UNITS, check_after_kill, check_resumed, shards

from actscope.stores import STORES, open_run, sweep
from actscope.stores._io import CLAIM_FAIL_POINTS, FAIL_POINTS
from actscope.testing.store_contract import sample_batch

ONCE = ("run.", "folder.")
"""Points that a run reaches once, or a few times."""


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Store -> data files of a run that nobody killed."""
    found = {}
    for store in STORES.names():
        folder = tmp_path_factory.mktemp(store)
        code, printed, err = start(store, folder).finish()
        assert (code, printed) == (0, UNITS), err
        found[store] = shards(folder / "r")
    return found


def places():
    """Every point of every store, in the middle of the work, with one to four workers."""
    for store in STORES.names():
        for at, point in enumerate(FAIL_POINTS):
            most = 4 if store == "shards" else 2
            # one worker of four writes 3 of the 10 units at least
            times = (1,) if store != "shards" or point.startswith(ONCE) else (1, 3)
            for workers in range(1, most + 1):
                for nth in times:
                    fast = workers == 1 and (store, nth) == ("shards", 1)
                    fast |= at % 5 == 3 and store != "shards" and (workers, nth) == (2, 1)
                    marks = () if fast else pytest.mark.faults
                    yield pytest.param(store, point, nth, workers, marks=marks)


@pytest.mark.parametrize(("store", "point", "nth", "workers"), list(places()))
def test_a_kill_at_every_point(start, tmp_path, whole, injected, store, point, nth, workers):
    kills = injected(f"SIGKILL at each of {len(FAIL_POINTS)} fail points, 1 to 4 workers", "1, 3")
    fail_at = f"{point}:{nth}"
    writers = [start(store, tmp_path, fail_at=fail_at) for _ in range(workers)]
    ends = [writer.finish() for writer in writers]
    codes = [code for code, _, _ in ends]
    assert set(codes) <= {-signal.SIGKILL, 0} and -signal.SIGKILL in codes, ends
    with kills:
        check_after_kill(tmp_path, {unit for _, printed, _ in ends for unit in printed})
        check_resumed(start, tmp_path, store, whole, workers)
    kills.add(codes.count(-signal.SIGKILL) - 1)
    sweep(tmp_path / "r", older_than=0)
    assert open_run(tmp_path / "r").verify().leftovers == []
    check_after_kill(tmp_path, UNITS)


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.faults)])
@pytest.mark.parametrize("point", CLAIM_FAIL_POINTS)
def test_a_kill_where_the_file_system_has_no_links(
    start, tmp_path, whole, injected, point, workers
):
    kills = injected("SIGKILL at each fail point of a file system without hard links", "1, 3")
    writers = [start("shards", tmp_path, "nolinks", fail_at=point) for _ in range(workers)]
    ends = [writer.finish() for writer in writers]
    assert -signal.SIGKILL in [code for code, _, _ in ends], ends
    with kills:
        check_after_kill(tmp_path, {unit for _, printed, _ in ends for unit in printed})
        check_resumed(start, tmp_path, "shards", whole, workers, ["nolinks"])


@pytest.mark.parametrize(
    ("store", "kills"),
    [
        ("shards", 25),
        pytest.param("shards", 200, marks=pytest.mark.faults),
        pytest.param("npz", 200, marks=pytest.mark.faults),
        pytest.param("hdf5", 200, marks=pytest.mark.faults),
    ],
)
def test_kills_at_random_times(start, tmp_path, whole, injected, store, kills):
    """Several kills in a row hit one run, of one to four workers."""
    counted = injected("SIGKILL at random times, 1 to 4 workers", "1, 3")
    rng = random.Random(kills)
    done = attempt = 0
    latest = 0.05  # seconds; shorter where writers finish before they are killed
    while done < kills:
        folder = tmp_path / str(attempt // 4)
        workers = 1 + attempt % 4
        attempt += 1
        writers = [start(store, folder) for _ in range(workers)]
        for writer in writers:
            time.sleep(rng.uniform(0, latest))
            os.kill(writer.pid, signal.SIGKILL)
        ends = [writer.finish() for writer in writers]
        assert {code for code, _, _ in ends} <= {-signal.SIGKILL, 0}, ends
        hit = sum(code != 0 for code, _, _ in ends)
        latest *= 0.9 if hit == 0 else 1
        with counted:
            check_after_kill(folder, {unit for _, printed, _ in ends for unit in printed})
            if attempt % 4 == 0 or done + hit >= kills:
                check_resumed(start, folder, store, whole, workers)
        counted.add(hit - 1)
        done += hit
        assert attempt < 20 * kills, "writers finish before they can be killed"


SIGNALS = [
    pytest.param(name, point, marks=() if point == "data.half-written" else pytest.mark.faults)
    for name in ("SIGINT", "SIGTERM")
    for point in FAIL_POINTS
]


@pytest.mark.parametrize(("name", "point"), SIGNALS)
def test_a_polite_signal_in_the_middle_leaves_no_half_unit(
    start, tmp_path, whole, injected, name, point
):
    nth = 1 if point.startswith(ONCE) else 3
    signals = injected("SIGINT and SIGTERM at each fail point", "1, 3")
    code, printed, err = start("shards", tmp_path, fail_at=f"{point}:{nth}:{name}").finish()
    assert code in (-getattr(signal, name), 1, 130), err
    with signals:
        assert len(printed) == nth - 1
        check_after_kill(tmp_path, printed)
        check_resumed(start, tmp_path, "shards", whole)


def test_points_are_reached_in_an_order_that_survives_a_power_cut(tmp_path, monkeypatch):
    """The list that every kill test goes through is the list that the code goes through."""
    from actscope.stores import ShardStorage, _io

    seen = []
    monkeypatch.setattr(_io, "fail_point", seen.append)
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", sample_batch(0, 4), {})
    assert tuple(dict.fromkeys(seen)) == FAIL_POINTS


def test_a_point_that_is_not_armed_costs_nothing_worth_naming(monkeypatch):
    from actscope.stores._io import fail_point

    monkeypatch.delenv("ACTSCOPE_FAIL_AT", raising=False)
    began = time.perf_counter()
    for _ in range(10_000):
        fail_point("data.synced")
    assert (time.perf_counter() - began) / 10_000 < 20e-6  # a unit passes fifteen of them
