"""A program that writes a run with numpy alone, to be killed at will.

    python writer_process.py STORE FOLDER [nolinks] [limit=BYTES] [seed=N] [unit=NAME]

It prints the id of each unit once that unit is committed. With ``serve`` alone it forks such a
program for every line it is sent, which saves importing numpy hundreds of times.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback

from actscope.core.errors import ActscopeError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import STORES, open_run
from actscope.testing.store_contract import SPEC, sample_batch

PLAN = UnitPlan(0, 40, 4)
RUN = "r"


def main(store, folder, *options):
    given = dict(option.partition("=")[::2] for option in options)
    if "nolinks" in given:
        _forbid_links()
    if "limit" in given:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(given["limit"]), resource.RLIM_INFINITY))
    writer = STORES.get(store)(folder).open_run(RUN, SPEC, PLAN.to_json())
    done = writer.committed()
    for start, stop in PLAN.units():
        name = unit_id(start, stop)
        if name in done or given.get("unit", name) != name:
            continue
        batch = sample_batch(start, stop, width=64, seed=int(given.get("seed", 0)))
        writer.append(name, batch, {"timings": {"forward": 0.25}})
        sys.stdout.write(name + "\n")
        sys.stdout.flush()
    open_run(writer.path).numpy("ln_final")
    assert "torch" not in sys.modules, "writing and reading through numpy must not need torch"


def _forbid_links():
    def link(*_):
        raise OSError(errno.EPERM, "this file system has no links")

    os.link = link


def guarded(argv):
    """Run ``main`` as the command line would: a clear error, and an exit code."""
    try:
        main(*argv)
    except ActscopeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


def serve():
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
                _become_writer(asked)
        os.write(1, b"%d\n" % answer)


def _become_writer(asked):
    code = 1
    try:
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_CREAT | os.O_WRONLY, 0o644), handle)
        os.environ["ACTSCOPE_FAIL_AT"] = asked["fail_at"]
        code = guarded(asked["argv"])
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
