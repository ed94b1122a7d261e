"""A capture that was killed anywhere and resumed leaves the bytes of one that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from nursery import Nursery
from written_runs import shards

from actscope.core.spec import UnitPlan
from actscope.stores import open_run, repair_run
from actscope.stores._io import FAIL_POINTS

PROGRAM = Path(__file__).parent.parent / "capture_process.py"
N = 16


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """Starts a capture with the bundled model: folder, options, ``fail_at``."""
    made = Nursery(tmp_path_factory.mktemp("captures"), PROGRAM)
    yield made.start
    made.close()


@pytest.fixture(scope="module")
def whole(capture, tmp_path_factory):
    """Data files of a capture that nobody killed, by whether tokens were pooled."""
    found = {}
    for options in ((), ("pool",)):
        folder = tmp_path_factory.mktemp("whole")
        code, printed, err = capture(folder, *options).finish()
        assert (code, printed) == (0, [str(N)]), err
        found[options] = shards(folder / "r")
        assert len(found[options]) == N // 2
    return found


def check_resumed(capture, folder, whole, workers, options=()):
    for code, _, err in [
        process.finish() for process in [capture(folder, *options) for _ in range(workers)]
    ]:
        assert code == 0, err
    run = open_run(folder / "r")
    assert run.complete and run.verify().ok and [r.index for r in run.examples] == list(range(N))
    found = {"batch_tokens": run.plan.batch_tokens, "pass_tokens": run.plan.pass_tokens}
    assert run.plan == UnitPlan(0, N, 2, **found)
    assert shards(folder / "r") == whole[options]


def places():
    for point in FAIL_POINTS:
        for workers in (1, 2, 3, 4):
            for nth in (1,) if workers > 2 or point.startswith(("run.", "folder.")) else (1, 2):
                fast = (point, workers, nth) in (
                    ("data.half-written", 1, 2),
                    ("data.renamed", 2, 1),
                    ("commit.linked", 1, 1),
                )
                yield pytest.param(point, nth, workers, marks=() if fast else pytest.mark.faults)


@pytest.mark.parametrize(("point", "nth", "workers"), list(places()))
def test_a_kill_at_every_point(capture, tmp_path, whole, injected, point, nth, workers):
    kills = injected("a capture is killed at each fail point, 1 to 4 workers", "1, 3")
    options = ("pool",) if workers == 4 else ()
    started = [capture(tmp_path, *options, fail_at=f"{point}:{nth}") for _ in range(workers)]
    ends = [process.finish() for process in started]
    codes = [code for code, _, _ in ends]
    assert -signal.SIGKILL in codes and set(codes) <= {0, -signal.SIGKILL}, ends
    with kills:
        if (tmp_path / "r" / "run.json").exists():
            assert open_run(tmp_path / "r").verify().ok
        check_resumed(capture, tmp_path, whole, workers, options)
    kills.add(codes.count(-signal.SIGKILL) - 1)


@pytest.mark.faults
def test_kills_at_random_times(capture, tmp_path, whole, injected):
    kills = injected("a capture is killed at random times, 1 to 4 workers", "1, 3")
    rng = random.Random(0)
    began = time.perf_counter()
    assert capture(tmp_path / "undisturbed").finish()[0] == 0
    takes = time.perf_counter() - began
    hits = 0
    for attempt in range(30):
        workers = 1 + attempt % 4
        folder = tmp_path / str(attempt // 3)
        started = [capture(folder) for _ in range(workers)]
        for process in started:
            time.sleep(rng.uniform(0, takes / workers))
            os.kill(process.pid, signal.SIGKILL)
        codes = [process.finish()[0] for process in started]
        hit = codes.count(-signal.SIGKILL)
        hits += hit
        with kills:
            if (folder / "r" / "run.json").exists():
                assert open_run(folder / "r").verify().ok
            if attempt % 3 == 2:
                check_resumed(capture, folder, whole, workers)
        kills.add(hit - 1)
    assert hits >= 30


def test_repair_gives_units_back_to_the_capture_and_to_nobody_else(
    capture, tmp_path, whole, injected
):
    """Two units are damaged; the same capture takes these four examples, and no other."""
    repaired = injected("damaged units are repaired and captured again", "2, 3")
    assert capture(tmp_path).finish()[0] == 0
    path = tmp_path / "r"
    before = {p: p.stat().st_mtime_ns for p in (path / "commits").iterdir()}
    one, _, three, *_ = sorted((path / "shards").iterdir())
    data = bytearray(one.read_bytes())
    data[np.random.default_rng(0).integers(len(data))] ^= 16
    one.write_bytes(data)
    three.unlink()
    with repaired:
        assert {p.file for p in repair_run(path).problems} == {
            f"shards/{one.name}",
            f"shards/{three.name}",
        }
        assert len(open_run(path).pending) == 2
        code, printed, err = capture(tmp_path).finish()
        assert (code, printed) == (0, ["4"]), err
        assert open_run(path).complete and shards(path) == whole[()]
        after = {p: p.stat().st_mtime_ns for p in (path / "commits").iterdir()}
        assert before.keys() == after.keys()
        assert sum(before[p] != after[p] for p in before) == 2
