"""Reading runs back: one layer, one example, one token; opening and resuming many units.

    python benchmarks/capture_reading.py llama256x8 512 /tmp 31 10000

In a process of its own, whose memory no other benchmark has touched. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capture_models
import capture_ways as ways
import numpy as np

from actscope import ShardStorage, open_run, wrap_model
from actscope.core.activations import ActivationBatch, ExampleRecord
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan, unit_id

LAYER = 3


def seconds(action: Callable[[], Any], runs: int) -> float:
    return statistics.median(_timed(action) for _ in range(runs))


def _timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def bytes_from_disk() -> int:
    """Bytes this process has made the disk read; 0 where the system does not tell."""
    path = Path("/proc/self/io")
    if not path.exists():
        return 0
    lines = dict(line.split(": ") for line in path.read_text(encoding="utf-8").splitlines())
    return int(lines["read_bytes"])


def one_layer(run_path: Path, runs: int) -> list[dict[str, Any]]:
    """Against as many bytes in a row of one of the run's own files: pages that lie as ours do."""
    with open_run(run_path) as run:
        size = run.stack("resid_post", LAYER).nbytes
        largest = max(run.stored_units, key=lambda unit: unit.commit.bytes)
    assert largest.commit.bytes >= size

    def plain() -> None:
        np.fromfile(largest.path, np.uint8, count=size)

    def ours() -> None:
        with open_run(run_path) as opened:
            opened.stack("resid_post", LAYER)

    rng, found = random.Random(0), list[dict[str, Any]]()
    for state in ("warm", "cold"):
        cold = state == "cold"
        took: dict[str, list[float]] = {"plain": [], "ours": []}
        from_disk: list[int] = []
        for _ in range(runs):
            for name in rng.sample(list(took), 2):
                if cold:
                    forget(run_path)
                read_before = bytes_from_disk()
                took[name].append(_timed({"plain": plain, "ours": ours}[name]))
                if name == "ours":
                    from_disk.append(bytes_from_disk() - read_before)
        speeds = sorted(a / b for a, b in zip(took["plain"], took["ours"], strict=True))
        speed = statistics.median(speeds)
        row = {
            "row": f"layer-{state}", "bytes": size, "runs": runs,
            "floor_s": round(statistics.median(took["plain"]), 5),
            "ours_s": round(statistics.median(took["ours"]), 5), "speed": round(speed, 3),
            "middle_half": [round(speeds[runs // 4], 3), round(speeds[3 * runs // 4], 3)],
            "met": speed >= 0.8,
        }  # fmt: skip
        if cold:
            row["read_share"] = round(statistics.median(from_disk) / size, 3)
        found.append(row)
    return found


def small_reads(run_path: Path) -> list[dict[str, Any]]:
    run = open_run(run_path)
    n = run.n_examples
    for i in range(n):  # warm: checksums are looked at once
        for layer in run.layers:
            run.get("resid_post", layer, example=i)
    places = np.random.default_rng(0).integers(0, n, 200).tolist()

    def example() -> None:
        for i in places:
            for layer in run.layers[:8]:
                run.get("resid_post", layer, example=i)

    def token() -> None:
        for i in places:
            run.array("resid_post", LAYER, example=i)[0].copy()

    found: list[dict[str, Any]] = []
    for name, action, most in (("example", example, 1.0), ("token", token, 0.2)):
        ms = seconds(action, 5) / len(places) * 1000
        found.append({"row": name, "ms": round(ms, 4), "most_ms": most, "met": ms <= most})
    return found


def _unit(index: int) -> ActivationBatch:
    one = np.array([0, 1])
    return ActivationBatch(
        arrays={Site("resid_post", 0): np.full((1, 4), index, np.float32)},
        offsets=one,
        positions=np.zeros(1, np.int32),
        examples=(ExampleRecord(str(index), index, 1, 1),),
        token_ids=np.zeros(1, np.int64),
        token_offsets=one,
        phase=np.zeros(1, np.uint8),
    )


def many_units(where: Path, units: int) -> list[dict[str, Any]]:
    with ways.folder(where) as path:
        plan, storage = UnitPlan(0, units, 1), ShardStorage(path)
        spec = {"sites": ["blocks.0.resid_post"]}
        sync, os.fsync = os.fsync, lambda handle: None  # only how fast it is read counts here
        try:
            with storage.open_run("many", spec, plan.to_json()) as writer:
                for i in range(units):
                    writer.append(unit_id(i, i + 1), _unit(i), {})
        finally:
            os.fsync = sync

        def opened() -> None:
            run = open_run(path / "many")
            assert run.complete and run.sites

        def resumed() -> None:
            with storage.open_run("many", spec, plan.to_json()) as writer:
                done = writer.committed()
            assert all(unit_id(*bounds) in done for bounds in plan.units())

        return [
            {"row": name, "units": units, "seconds": round(took := seconds(action, 5), 4),
             "most_s": most, "met": took <= most}
            for name, action, most in (("open", opened, 0.5), ("resume", resumed, 2.0))
        ]  # fmt: skip


def main() -> None:
    name, texts, where, runs, units = sys.argv[1:]
    model = wrap_model(capture_models.build(name), None)
    with ways.folder(Path(where)) as path:
        made = ways.run(model, capture_models.sample(int(texts)), path)
        found = one_layer(made.path, int(runs)) + small_reads(made.path)
    print(json.dumps(found + many_units(Path(where), int(units))))


if __name__ == "__main__":
    main()
