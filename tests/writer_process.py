"""Programs that write and read runs with numpy alone, to be killed at will.

    python writer_process.py write STORE FOLDER [run=NAME] [plan=START,STOP,SIZE] [unit=NAME]
                                   [seed=N] [width=N] [nolinks] [limit=BYTES] [short] [unprivileged]
    python writer_process.py race FOLDER BARRIER INDEX ROUNDS [same] [nolinks]
    python writer_process.py read FOLDER
    python writer_process.py care merge|repair|sweep|delete FOLDER...

``write`` prints the id of each unit once that unit is committed. ``nolinks`` makes the file system
one without hard links, ``limit`` one that refuses larger files, ``short`` one that writes a few
bytes at a time; ``unprivileged`` makes root obey permissions. ``race`` writes one unit of each
round's run at the same moment as the other process, and prints whether it was taken. ``read`` reads
a growing run until it is complete. ``serve`` forks such a program for every line it is sent, which
saves importing numpy.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from actscope.core.errors import ActscopeError, BadInputError, DuplicateUnitError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import STORES, ShardStorage, open_run
from actscope.testing.store_contract import SITES, SPEC, sample_batch

PLAN = UnitPlan(0, 40, 4)
RUN = "r"
PATIENCE = 120


def main(program, *arguments):
    {"write": write, "race": race, "read": read, "care": care}[program](*arguments)
    assert "torch" not in sys.modules, "writing and reading through numpy must not need torch"


def write(store, folder, *options):
    given = dict(option.partition("=")[::2] for option in options)
    _impose(given)
    plan = UnitPlan(*map(int, given["plan"].split(","))) if "plan" in given else PLAN
    writer = STORES.get(store)(folder).open_run(given.get("run", RUN), SPEC, plan.to_json())
    done = writer.committed()
    for start, stop in plan.units():
        name = unit_id(start, stop)
        if name in done or given.get("unit", name) != name:
            continue
        width, seed = int(given.get("width", 64)), int(given.get("seed", 0))
        batch = sample_batch(start, stop, width=width, seed=seed)
        writer.append(name, batch, {"start": start, "stop": stop, "timings": {"f": 1}})
        sys.stdout.write(name + "\n")
        sys.stdout.flush()
    open_run(writer.path).numpy("ln_final")


def _impose(given):
    """Make the disk as bad as asked for."""
    if "nolinks" in given:
        _forbid_links()
    if "limit" in given:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(given["limit"]), resource.RLIM_INFINITY))
    if "short" in given:
        _write_little_at_once()
    if "unprivileged" in given:
        _obey_permissions()


def _forbid_links():
    def link(*_):
        raise OSError(errno.EPERM, "this file system has no links")

    os.link = link


def _obey_permissions():
    """Lay root's capabilities down, so that permissions hold for it as for its files' owner."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def _write_little_at_once():
    from actscope.stores import _io

    class Short(_io._RawFile):
        def write(self, data, /):
            return super().write(memoryview(data)[: 1 + len(data) % 97])

    _io._RawFile = Short


def race(folder, barrier, index, rounds, *options):
    if "nolinks" in options:
        _forbid_links()
    index = int(index)
    batch = sample_batch(0, 2, seed=0 if "same" in options else index)
    with Path(barrier).open("r+b") as file, mmap.mmap(file.fileno(), 16) as shared:
        for number in range(1, int(rounds) + 1):
            writer = ShardStorage(folder).open_run(str(number))
            _wait_for_the_other(shared, index, number)
            try:
                writer.append("u", batch, {})
                taken = "taken"
            except DuplicateUnitError:
                taken = "refused"
            sys.stdout.write(taken + "\n")


def _wait_for_the_other(shared, index, number):
    shared[8 * index : 8 * index + 8] = number.to_bytes(8, "little")
    end = time.monotonic() + PATIENCE
    while min(int.from_bytes(shared[at : at + 8], "little") for at in (0, 8)) < number:
        assert time.monotonic() < end, "the other process is gone"
        os.sched_yield()


def read(folder):
    opened = checked = 0
    seen = set()
    path = Path(folder) / RUN
    while True:
        try:
            run = open_run(path)
        except BadInputError:  # not begun yet
            time.sleep(0.001)
            continue
        opened += 1
        assert seen <= set(run.units), "a committed unit is gone"
        seen = set(run.units)
        for unit in run.stored_units:
            _check(unit)
            checked += 1
        assert opened % 5 or run.verify().ok
        run.close()
        if run.complete:
            break
    sys.stdout.write(f"{opened} {checked}\n")


def care(what, folder, *others):
    from actscope.stores import delete_run, merge_runs, repair_run, sweep

    if what == "merge":
        merge_runs(others, folder)
    elif what == "sweep":
        sweep(folder, older_than=0)
    else:
        {"repair": repair_run, "delete": delete_run}[what](folder)


def _check(unit):
    start, stop = (int(part) for part in unit.commit.unit.split("-"))
    expected = sample_batch(start, stop, width=64)
    for site in SITES:
        assert np.array_equal(unit.read(str(site)), expected.arrays[site]), unit.commit.unit


def guarded(argv):
    """Run ``main`` as the command line would: a clear error, and an exit code."""
    try:
        main(*argv)
    except ActscopeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


def serve(run=guarded):
    """For each JSON line ``{argv, fail_at, out, err}`` fork a writer and print its process id.

    ``{wait: pid}`` waits for it and prints its exit code, negative for a signal.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _become_writer(asked, run)
        os.write(1, b"%d\n" % answer)


def _become_writer(asked, run):
    code = 1
    try:
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_CREAT | os.O_WRONLY, 0o644), handle)
        os.environ["ACTSCOPE_FAIL_AT"] = asked["fail_at"]
        code = run(asked["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        sys.exit(guarded(sys.argv[1:]))
