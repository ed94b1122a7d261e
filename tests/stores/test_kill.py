"""Kill a writer anywhere: what was committed stays, nothing half is read, resuming completes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actscope.core.errors import ActscopeError
from actscope.core.spec import unit_id
from actscope.stores import STORES, open_run, sweep
from actscope.stores._io import CLAIM_FAIL_POINTS, FAIL_POINTS
from actscope.testing.store_contract import SITES, sample_batch

PROGRAM = Path(__file__).parent / "writer_process.py"
UNITS = [unit_id(at, at + 4) for at in range(0, 40, 4)]


class Nursery:
    """Forks writers from one process that has numpy loaded already."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Writer:
    """One forked writer."""

    def __init__(self, nursery, store, folder, *options, fail_at=""):
        nursery.count += 1
        self.out = nursery.folder / f"{nursery.count}.out"
        self.err = nursery.folder / f"{nursery.count}.err"
        self.nursery = nursery
        argv = [store, str(folder), *options]
        files = {"out": str(self.out), "err": str(self.err)}
        self.pid = nursery.ask({"argv": argv, "fail_at": fail_at, **files})

    def printed(self):
        return self.out.read_text().split() if self.out.exists() else []

    def finish(self):
        """(exit code, units it said are committed, what it said went wrong)."""
        code = self.nursery.ask({"wait": self.pid})
        return code, self.printed(), self.err.read_text() if self.err.exists() else ""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a writer: store, folder, options, ``fail_at``."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield partial(Writer, nursery)
    nursery.close()


def shards(path):
    """Name -> bytes of every data file that a commit record names."""
    run = open_run(path)
    return {u.commit.path: (run.path / u.commit.path).read_bytes() for u in run.stored_units}


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


def check_after_kill(folder, printed):
    """Whatever happened: readers see whole units only, and every unit said to be committed."""
    path = folder / "r"
    if not (path / "run.json").exists():
        assert not printed
        return
    run = open_run(path)
    assert set(printed) <= set(run.units)
    assert run.verify().ok
    for unit, stored in zip(run.units, run.stored_units, strict=True):
        first = int(unit[:9])
        expected = sample_batch(first, first + 4, width=64)
        for site in SITES:
            assert np.array_equal(stored.read(str(site)), expected.arrays[site])


def check_resumed(start, folder, store, whole):
    code, _, err = start(store, folder).finish()
    assert code == 0, err
    run = open_run(folder / "r")
    assert run.complete and list(run.units) == UNITS and run.n_examples == 40
    assert run.verify().ok
    if store == "hdf5":  # the library's own bytes are not ours to promise; the values are
        expected = sample_batch(0, 40, width=64)
        assert all(np.array_equal(run.numpy(site), expected.arrays[site]) for site in SITES)
    else:
        assert shards(folder / "r") == whole[store]


PLACES = [
    (store, point, nth)
    for store in STORES.names()
    for point in FAIL_POINTS
    for nth in ((1,) if store != "shards" or point.startswith("run.") else (1, 2))
]


@pytest.mark.parametrize(("store", "point", "nth"), PLACES)
def test_a_kill_at_every_point(start, tmp_path, whole, store, point, nth):
    code, printed, err = start(store, tmp_path, fail_at=f"{point}:{nth}").finish()
    assert code == -signal.SIGKILL, err
    check_after_kill(tmp_path, printed)
    check_resumed(start, tmp_path, store, whole)
    sweep(tmp_path / "r", older_than=0)
    assert open_run(tmp_path / "r").verify().leftovers == []
    check_after_kill(tmp_path, UNITS)


@pytest.mark.parametrize("point", CLAIM_FAIL_POINTS)
def test_a_kill_where_the_file_system_has_no_links(start, tmp_path, point):
    code, printed, err = start("shards", tmp_path, "nolinks", fail_at=f"{point}:1").finish()
    assert code == -signal.SIGKILL, err
    check_after_kill(tmp_path, printed)
    code, _, err = start("shards", tmp_path, "nolinks").finish()
    assert code == 0, err
    check_after_kill(tmp_path, UNITS)


@pytest.mark.parametrize(("store", "rounds"), [("shards", 200), ("npz", 20), ("hdf5", 20)])
def test_kills_at_random_times(start, tmp_path, whole, store, rounds):
    rng = random.Random(0)
    kills = 0
    for attempt in range(rounds):
        folder = tmp_path / str(attempt // 3)  # several kills in a row hit one run
        writer = start(store, folder)
        time.sleep(rng.uniform(0, 0.04))
        os.kill(writer.pid, signal.SIGKILL)
        code, printed, err = writer.finish()
        assert code in (-signal.SIGKILL, 0), err
        kills += code != 0
        check_after_kill(folder, printed)
    for folder in tmp_path.iterdir():
        check_resumed(start, folder, store, whole)
    assert kills >= rounds * 0.25  # a fast disk may finish first


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_polite_signal_in_the_middle_leaves_no_half_unit(start, tmp_path, name):
    at = f"data.half-written:3:{name}"
    code, printed, _ = start("shards", tmp_path, fail_at=at).finish()
    assert code in (-getattr(signal, name), 1, 130) and len(printed) == 2
    check_after_kill(tmp_path, printed)


@pytest.mark.parametrize("point", ["data.half-written", "data.synced", "commit.half-written"])
@pytest.mark.parametrize(("fault", "error"), [("ENOSPC", "DiskFull"), ("EIO", "RunError")])
def test_a_failing_disk_is_said_clearly(start, tmp_path, point, fault, error):
    code, printed, err = start("shards", tmp_path, fail_at=f"{point}:3:{fault}").finish()
    assert code == 1 and error in err and "committed units are safe" in err
    assert printed == UNITS[:2]
    check_after_kill(tmp_path, printed)
    assert open_run(tmp_path / "r").verify().leftovers == [] or point.startswith("commit")
    assert start("shards", tmp_path).finish()[0] == 0


def test_a_file_size_limit_is_said_clearly(start, tmp_path):
    assert start("shards", tmp_path, fail_at="commit.folder-synced:2").finish()[0] != 0
    code, printed, err = start("shards", tmp_path, "limit=4096").finish()
    assert code == 1 and not printed and "DiskFullError" in err and "free some space" in err
    check_after_kill(tmp_path, UNITS[:2])
    assert open_run(tmp_path / "r").verify().leftovers == []


def test_points_are_reached_in_an_order_that_survives_a_power_cut(tmp_path, monkeypatch):
    """A kill loses nothing that was written; only the order of flushes guards against more."""
    from actscope.stores import ShardStorage, _io

    seen = []
    monkeypatch.setattr(_io, "fail_point", seen.append)
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", sample_batch(0, 4), {})
    assert tuple(dict.fromkeys(seen)) == FAIL_POINTS


@pytest.mark.parametrize("links", [True, False])
def test_two_writers_and_readers_on_one_run(start, tmp_path, links):
    options = [] if links else ["nolinks"]
    writers = [start("shards", tmp_path, *options) for _ in range(3)]
    for _ in range(25):
        if (tmp_path / "r" / "run.json").exists():
            run = open_run(tmp_path / "r")
            if (run.path / "commits").exists():
                assert run.verify().ok
    for writer in writers:
        code, _, err = writer.finish()
        assert code == 0, err
    run = open_run(tmp_path / "r")
    assert run.complete and run.verify().ok and run.verify().leftovers == []


def test_two_writers_with_other_content_for_one_unit(start, tmp_path):
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        pair = [start("shards", folder, f"seed={seed}", f"unit={UNITS[0]}") for seed in (0, 1)]
        codes = sorted(writer.finish()[0] for writer in pair)
        assert codes in ([0, 1], [0, 0])  # the slower one sees the unit done, or is refused
        run = open_run(folder / "r")
        assert run.units == (UNITS[0],) and run.verify().ok and run.verify().leftovers == []


@pytest.mark.slow
def test_a_thousand_rounds_of_two_threads_on_one_unit(tmp_path):
    import threading

    from actscope.core.errors import DuplicateUnitError
    from actscope.stores import ShardStorage

    for round_number in range(1000):
        writers = [ShardStorage(tmp_path).open_run(str(round_number)) for _ in range(2)]
        errors: list[ActscopeError] = []
        barrier = threading.Barrier(2)

        def write(index, writers=writers, barrier=barrier, errors=errors):
            batch = sample_batch(0, 2, seed=index)
            barrier.wait()
            try:
                writers[index].append("u", batch, {})
            except DuplicateUnitError as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        report = open_run(writers[0].path).verify()
        assert report.ok and len(errors) == 1 and report.leftovers == []
