"""CPU seconds and wall clock of things that are compared, each in a process of its own, by turns.

On a virtual machine processors get slower and faster within seconds, by more than what is to be
told apart. So every way has a process (``capture_way.py``) that does its job over and over; all but
one are stopped (SIGSTOP), and after a fraction of a second it is the next one's turn. A turn is the
same part of each way's job, so the first times of all ways lie within the same minutes, and so do
the second: whatever slows the machine down slows all of them down alike.

The processes share the pages of the model's weights. With weights of its own, one process in five
took 17 % more CPU seconds than others that did the same, for as long as it lived: where its pages
happened to lie. Sharing them, six that did the same came within 3 %.
"""

from __future__ import annotations

import json
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAY = Path(__file__).parent / "capture_way.py"
PARTS = 16
"""Turns that a job takes."""
SHORTEST_TURN = 0.2
"""Seconds: a hundred times what it takes to fill the processor's caches again."""
CLOCKS = ("cpu", "wall")
Times = dict[str, list[float]]
"""Seconds of every time a way was done, by clock."""


@dataclass
class Contender:
    """A process that does one way over and over.

    Attributes:
        turn: Seconds that its turns last.
        times: Seconds of every time it did its way.
        wall: Seconds of its turns since it last finished.
    """

    name: str
    process: subprocess.Popen[bytes]
    turn: float = SHORTEST_TURN
    times: Times = field(default_factory=lambda: {clock: [] for clock in CLOCKS})
    wall: float = 0.0

    def hear(self) -> dict[str, float]:
        """What it says next: the CPU seconds that a time took, and when that was over."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def first(self) -> None:
        """Wait for its first time, which warms it up and tells how long its turns are to be."""
        took = self.hear()["wall"]
        self.process.send_signal(signal.SIGSTOP)
        self.turn = max(took / PARTS, SHORTEST_TURN)

    def takes_its_turn(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        time.sleep(self.turn)
        self.process.send_signal(signal.SIGSTOP)
        ended = time.monotonic()
        while select.select([self.process.stdout], [], [], 0)[0]:
            said = self.hear()
            over = max(said["at"], began)
            self.times["cpu"].append(said["cpu"])
            self.times["wall"].append(self.wall + over - began)
            self.wall, began = 0.0, over
        self.wall += ended - began

    def ended(self) -> None:
        self.process.kill()
        with self.process:
            pass  # closes what it said, and waits for it


def by_turns(ways: Mapping[str, dict[str, Any]], runs: int) -> dict[str, Times]:
    """So many times of each way, after a first that is left out.

    Args:
        ways: What ``capture_way.py`` is told, by name.
        runs: How many; a way whose turns are longer than its part may be done more often.
    """
    contenders: list[Contender] = []
    rng = random.Random(0)
    try:
        for name, way in ways.items():
            contenders.append(Contender(name, _started(way)))
            contenders[-1].first()
        while min(len(one.times["cpu"]) for one in contenders) < runs:
            for one in rng.sample(contenders, len(contenders)):
                one.takes_its_turn()
    finally:
        for one in contenders:
            one.ended()
    return {one.name: one.times for one in contenders}


def _started(way: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(WAY), json.dumps(way)], stdout=subprocess.PIPE, bufsize=0
    )


def medians(times: Times) -> dict[str, float]:
    return {clock: round(statistics.median(times[clock]), 5) for clock in CLOCKS}


def ratios(ours: Times, floor: Times, part: float = 1.0) -> dict[str, dict[str, float]]:
    """Ours over a part of the floor, time by time, which were taken in the same minutes.

    Returns:
        ``median``, ``least`` and ``most`` of the ratios, each by clock.
    """
    found = {
        clock: [a / (b * part) for a, b in zip(ours[clock], floor[clock], strict=False)]
        for clock in CLOCKS
    }
    kinds = {"median": statistics.median, "least": min, "most": max}
    return {
        kind: {clock: round(of(found[clock]), 3) for clock in CLOCKS} for kind, of in kinds.items()
    }


def plus(a: Times, b: Times) -> Times:
    """Times of a, and after each the median of b."""
    return {clock: [one + statistics.median(b[clock]) for one in a[clock]] for clock in CLOCKS}


def in_a_process(script: Path, *arguments: object) -> Any:
    """What the script prints as its last line, as JSON, in a process of its own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
