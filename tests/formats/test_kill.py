"""Kill an export anywhere: nothing half lies under the name, and the same export completes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actscope.formats import EXPORT_FAIL_POINTS, FORMATS, export_run, import_run
from actscope.stores import open_run
from actscope.testing.format_contract import same_runs

PROGRAM = Path(__file__).parent / "export_process.py"
SLOW = ["csv", "datasets", "hdf5", "parquet", "pickle", "pt", "safetensors", "zarr"]


def start(form, run, out, fail_at=""):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), form, str(run.path), str(out)],
        env={**os.environ, "ACTSCOPE_FAIL_AT": fail_at},
        stderr=subprocess.PIPE,
    )


def complete(form, run, out, tmp_path):
    """Run the same export again, in this process, and compare what it made."""
    export_run(run, form, out)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*")}
    assert not [name for name in names if ".tmp-" in name]
    back = import_run(out, form, tmp_path / "back")
    same_runs(run, open_run(back.path))


def kill_at(form, point, nth, make_run, tmp_path):
    run, out = make_run(pooled=form == "csv"), tmp_path / "out"
    process = start(form, run, out, f"export.{point}:{nth}")
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        return False  # this format does not come by here so often
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert out.exists() == (point == "published")
    complete(form, run, out, tmp_path)
    return True


POINTS = [point.removeprefix("export.") for point in EXPORT_FAIL_POINTS]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_point(make_run, tmp_path, point):
    assert kill_at("npz", point, 1, make_run, tmp_path)


@pytest.mark.parametrize(("form", "point", "nth"), [
    ("npy", "half-written", 9), ("npy", "unit-written", 2), ("npy", "finished", 1),
    ("zarr", "half-written", 12), ("zarr", "unit-on-record", 2), ("datasets", "written", 4),
])  # fmt: skip
def test_killed_in_the_middle(make_run, tmp_path, form, point, nth):
    assert kill_at(form, point, nth, make_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("form", SLOW)
def test_killed_at_every_point_of_every_format(make_run, tmp_path, form, point, nth):
    kill_at(form, point, nth, make_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("form", ["npy", "zarr", "parquet"])
def test_killed_at_a_random_time(make_run, tmp_path, form, seed):
    run, out = make_run(), tmp_path / "out"
    process = start(form, run, out)
    time.sleep(random.Random(seed).uniform(0.2, 2.5))
    process.kill()
    process.communicate(timeout=60)
    complete(form, run, out, tmp_path)


def test_the_points_are_those_in_the_code():
    source = Path(sys.modules["actscope.formats"].__file__).parent
    text = "".join(p.read_text() for p in (*source.glob("*.py"), source.parent / "stores/_io.py"))
    for point in EXPORT_FAIL_POINTS:
        step = point.removeprefix("export.")
        assert f'"{point}"' in text and (f".{step}" in text or step in text)
    assert {"npz", "npy", *SLOW} <= set(FORMATS.names())
