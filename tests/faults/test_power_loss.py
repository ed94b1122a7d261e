"""The power fails at every moment of writing: what was said to be on disk is there, and whole."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power_loss import PowerlessDisk

from actscope.core.spec import unit_id
from actscope.stores import STORES, _io, open_run
from actscope.testing.store_contract import PLAN, SITES, SPEC, sample_batch

UNITS = [(0, 4), (4, 8), (8, 10)]


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


class Writer:
    """Writes a run and remembers what it was told is safe."""

    def __init__(self, store: str, folder: Path, trusting: bool = True) -> None:
        self.store, self.folder, self.trusting = store, folder, trusting
        self.promised: set[str] = set()

    def write(self, units: list[tuple[int, int]] = UNITS) -> None:
        writer = STORES.get(self.store)(self.folder).open_run("a/r", SPEC, PLAN)
        done = writer.committed() if self.trusting else set[str]()
        self.promised |= done
        for bounds in units:
            if unit_id(*bounds) not in done:
                writer.append(unit_id(*bounds), sample_batch(*bounds), {})
                self.promised.add(unit_id(*bounds))


def check(folder: Path, promised: set[str]) -> None:
    """Everything promised is there, and nothing that is there is wrong."""
    path = folder / "a" / "r"
    if not (path / "run.json").exists():
        assert not promised
        assert not list(path.glob("commits/*.json"))
        return
    run = open_run(path)
    assert promised <= set(run.units)
    assert run.verify().ok
    for unit, stored in zip(run.units, run.stored_units, strict=True):
        expected = sample_batch(*(int(part) for part in unit.split("-")))
        for site in SITES:
            assert np.array_equal(stored.read(str(site)), expected.arrays[site])
    run.close()


class Cuts:
    """Cuts the power after every operation, in the worst way and in random ones."""

    def __init__(self, writer: Writer, target: Path, ways: int, resume: bool, cut: Any) -> None:
        self.writer, self.target, self.ways, self.resume = writer, target, ways, resume
        self.cut = cut
        self.disk: Any = None
        self.count = 0

    def __call__(self) -> None:
        for way in range(self.ways):
            chance = random.Random(1000 * self.count + way) if way else None
            left = self.disk.survivors(self.target, chance)
            with self.cut:
                check(left, self.writer.promised)
                if self.resume:
                    again = Writer(self.writer.store, left)
                    again.write()
                    check(left, {unit_id(*bounds) for bounds in UNITS})
            shutil.rmtree(left)
            self.count += 1


@pytest.fixture
def disks() -> Iterator[list[PowerlessDisk]]:
    """Disks to let go of at the end, whatever happened."""
    made: list[PowerlessDisk] = []
    yield made
    for disk in made:
        disk.stop()


def powerless(disks: list[PowerlessDisk], root: Path, cuts: Cuts | None = None) -> PowerlessDisk:
    root.mkdir(exist_ok=True)
    disk = PowerlessDisk(root, cuts or (lambda: None))
    if cuts:
        cuts.disk = disk
    disks.append(disk)
    return disk


AFTER = "power cut after every operation, unflushed names and bytes gone or any part of them left"
RESUMED = "power cut after a killed writer's run was resumed, at each fail point"
SECOND = "power cut after a second writer did the unit in hand, at each fail point"


@pytest.mark.parametrize(
    ("store", "ways"),
    [("shards", 1), *(pytest.param(s, 6, marks=pytest.mark.faults) for s in STORES.names())],
)
def test_what_was_committed_survives_a_cut_after_every_operation(
    tmp_path: Path, disks: list[PowerlessDisk], injected: Any, store: str, ways: int
) -> None:
    writer = Writer(store, tmp_path / "disk")
    cuts = Cuts(writer, tmp_path / "left", ways, ways > 1, injected(AFTER, "1, 3"))
    disk = powerless(disks, tmp_path / "disk", cuts)
    writer.write()
    assert disk.operations > 30 and cuts.count == ways * disk.operations
    check(disk.survivors(tmp_path / "end"), {unit_id(*bounds) for bounds in UNITS})


def stop_at(monkeypatch: pytest.MonkeyPatch, point: str, nth: int, then: Any) -> None:
    """Call something when a fail point is reached for the nth time."""
    seen = 0

    def fail_point(name: str) -> None:
        nonlocal seen
        if name == point:
            seen += 1
            if seen == nth:
                then()

    monkeypatch.setattr(_io, "fail_point", fail_point)


POINTS = [
    pytest.param(point, nth, marks=() if nth == fast else pytest.mark.faults)
    for point in _io.FAIL_POINTS
    for fast in [3 if point.startswith("commit") else 1]
    for nth in (1, 2, 3)
]
"""The last commit is the hardest: no later one flushes its name."""


@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_what_a_resumed_writer_finds_done_survives_a_cut(
    tmp_path: Path,
    disks: list[PowerlessDisk],
    monkeypatch: pytest.MonkeyPatch,
    injected: Any,
    point: str,
    nth: int,
) -> None:
    """A writer was killed between giving a name and flushing it; another one trusts the name."""

    def kill() -> None:
        raise Killed

    disk = powerless(disks, tmp_path / "disk")
    stop_at(monkeypatch, point, nth, kill)
    try:
        Writer("shards", tmp_path / "disk").write()
    except Killed:
        pass
    else:
        assert nth > 1  # some points are reached once
    cut = injected(RESUMED, "1, 3")
    again = Writer("shards", tmp_path / "disk")
    again.write([])
    with cut:
        check(disk.survivors(tmp_path / "opened"), again.promised)
    again.write()
    with cut:
        check(disk.survivors(tmp_path / "end"), {unit_id(*bounds) for bounds in UNITS})


@pytest.mark.parametrize("trusting", [pytest.param(True, marks=pytest.mark.faults), False])
@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_what_a_second_writer_said_is_done_survives_a_cut(
    tmp_path: Path,
    disks: list[PowerlessDisk],
    monkeypatch: pytest.MonkeyPatch,
    injected: Any,
    point: str,
    nth: int,
    trusting: bool,
) -> None:
    """A writer has given a name and not flushed it yet; another one says the unit is done."""
    disk = powerless(disks, tmp_path / "disk")
    other = Writer("shards", tmp_path / "disk", trusting)
    cut = injected(SECOND, "1, 4")

    def meanwhile() -> None:
        other.write()
        with cut:
            check(disk.survivors(tmp_path / "left"), other.promised)
        raise Killed

    stop_at(monkeypatch, point, nth, meanwhile)
    try:
        Writer("shards", tmp_path / "disk").write()
    except Killed:
        assert len(other.promised) == 3
    else:
        assert nth > 1 and not other.promised


@pytest.mark.parametrize("forgets", ["files", "folders"])
def test_the_disk_would_notice_a_flush_that_is_missing(
    tmp_path: Path, disks: list[PowerlessDisk], monkeypatch: pytest.MonkeyPatch, forgets: str
) -> None:
    disk = powerless(disks, tmp_path / "disk")
    if forgets == "folders":
        monkeypatch.setattr(_io, "sync_folder", lambda folder: None)
        monkeypatch.setattr("actscope.stores._run_folder.sync_folder", lambda folder: None)
    else:
        flush = os.fsync

        def only_folders(handle: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112 - a handle, not a path
                flush(handle)

        monkeypatch.setattr(os, "fsync", only_folders)
    writer = Writer("shards", tmp_path / "disk")
    writer.write()
    with pytest.raises(Exception):  # noqa: B017 - missing names and damaged files alike
        check(disk.survivors(tmp_path / "left"), writer.promised)
