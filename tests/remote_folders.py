"""Remote folders of the tests: in memory, and on an S3 server of this machine."""

from __future__ import annotations

import threading
from contextlib import contextmanager

from fsspec.implementations.memory import MemoryFileSystem

from actscope.core.errors import DuplicateUnitError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import ShardStorage, open_run
from actscope.testing.store_contract import SPEC, sample_batch

PLAN = UnitPlan(0, 12, 4)
UNITS = PLAN.units()


@contextmanager
def empty_memory():
    """``memory://`` with nothing in it, before and after."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/runs"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def write(folder, run="r", store=ShardStorage, units=UNITS, seed=0):
    """Write what is missing of a run of twelve examples, as a writer does that resumes."""
    writer = store(folder).open_run(run, SPEC, PLAN.to_json())
    done = writer.committed()
    for bounds in units:
        if unit_id(*bounds) not in done:
            writer.append(unit_id(*bounds), sample_batch(*bounds, seed=seed), {})
    writer.close()
    return writer.path


def data_files(path):
    """Name -> bytes of every data file that a commit record names."""
    with open_run(path) as run:
        return {u.commit.path: (run.path / u.commit.path).read_bytes() for u in run.stored_units}


def race(folder, rounds, seeds):
    """Two threads append one unit at the same moment, round after round.

    Returns:
        For each round the run's path, and what became of each thread: "taken" or "refused".
    """
    ends = []
    for number in range(rounds):
        barrier, said = threading.Barrier(2), [None, None]

        def append(at, number=number, barrier=barrier, said=said):
            batch = sample_batch(0, 2, seed=seeds[at])
            writer = ShardStorage(folder).open_run(f"race-{number}")
            barrier.wait(30)
            try:
                writer.append("u", batch, {})
                said[at] = "taken"
            except DuplicateUnitError:
                said[at] = "refused"

        threads = [threading.Thread(target=append, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        ends.append((ShardStorage(folder).run_path(f"race-{number}"), said))
    return ends
