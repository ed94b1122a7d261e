"""CPU seconds, wall clock and memory of things that are compared, in turns."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Seconds = dict[str, float]


def cpu_seconds() -> float:
    """Of this process and its finished children, all threads, in user and kernel mode."""
    return sum(os.times()[:4])


def clocked(way: Callable[[], Any]) -> Seconds:
    gc.collect()
    cpu, wall = cpu_seconds(), time.perf_counter()
    way()
    return {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}


def in_turns(ways: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, Seconds]:
    """Medians of several rounds, each of which runs every way once: A B C A B C ...

    Beside each median stands the least (``least_cpu``, ``least_wall``): what disturbs a way only
    ever makes it slower.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            taken[name].append(clocked(way))
    return {name: _summary(times) for name, times in taken.items()}


def _summary(times: list[Seconds]) -> Seconds:
    found: Seconds = {}
    for clock in ("cpu", "wall"):
        values = [one[clock] for one in times]
        found[clock] = round(statistics.median(values), 5)
        found[f"least_{clock}"] = round(min(values), 5)
    return found


def in_a_process(script: Path, *arguments: object) -> Any:
    """What the script prints as its last line, as JSON, in a process of its own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
