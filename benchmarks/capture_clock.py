"""CPU seconds and wall clock of things that are compared, each in a process of its own, by turns.

On a virtual machine processors get slower and faster within seconds, by more than what is to be
told apart. So every way has a process (``capture_way.py``) that does its job over and over; all but
one are stopped (SIGSTOP), and after a part of its job it is the next one's turn. A turn is the
same part of each way's job, so the first times of all ways lie within the same minutes, and so do
the second: whatever slows the machine down slows all of them down alike. A turn is over when the
system says that the process has stopped: an fsync under way is waited for, and counts as its own.

The processes share the pages of the model's weights. With weights of its own, one process in five
took 17 % more CPU seconds than others that did the same, for as long as it lived: where its pages
happened to lie. Sharing them, six that did the same came within 3 %.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

WAY = Path(__file__).parent / "capture_way.py"
PARTS = 16
"""Turns that a job takes, at most."""
SHORTEST_TURN = 0.2
"""Seconds: a hundred times what it takes to fill the processor's caches again."""
CLOCKS = ("cpu", "wall")
Times = dict[str, list[float]]
"""Seconds of every time a way was done, by clock."""


class EndedError(Exception):
    """A contender's process ended, or said nothing for too long."""


@dataclass
class Contender:
    """A process that does one way over and over, and says so in lines of JSON.

    It has a session of its own, where no signal of a terminal or a shell lets it go on: who starts
    it has to end it, and where that one is killed outright it stays behind, stopped.

    Of each time it says the CPU seconds, and on the system's monotonic clock when it began and when
    it was over.

    Attributes:
        errors: What it writes to stderr.
        took: Seconds of the time that warmed it up.
        turn: Seconds that its turns last.
        times: Seconds of every time it did its way.
        turns: When its turns since it last finished began and ended.
    """

    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    took: float = 0.0
    turn: float = SHORTEST_TURN
    times: Times = field(default_factory=lambda: {clock: [] for clock in CLOCKS})
    turns: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @classmethod
    def started(
        cls, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Contender:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process is
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, bufsize=0, env=environment,
            start_new_session=True,  # where a shell that ends lets nobody go on
        )  # fmt: skip
        return cls(name, process, errors)

    def ask(self, message: Any) -> None:
        """Let it go on, and tell it something."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise EndedError(self._why()) from None

    def hear(self, limit: float | None = None) -> dict[str, Any]:
        """What it says next.

        Raises:
            EndedError: it ended, with what it wrote last, or was silent for ``limit`` seconds.
        """
        assert self.process.stdout is not None
        if limit is not None and not select.select([self.process.stdout], [], [], limit)[0]:
            raise EndedError(f"over {limit:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise EndedError(self._why())
        return json.loads(line)

    def _why(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        return f"ended with {code}: {self.errors.read().decode(errors='replace')[-3000:]}"

    def stop(self) -> None:
        """Stop it, and wait until it has: what the system does for it is done first."""
        self.process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it has ended, as reading it will tell
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def takes_its_turn(self, limit: float | None = None) -> None:
        """Let it run for its turn, and hear what it has done meanwhile.

        Raises:
            EndedError: it ended, or its turns were ``limit`` seconds and it has finished nothing.
        """
        began = time.monotonic()
        self.process.send_signal(signal.SIGCONT)
        time.sleep(self.turn)
        self.stop()
        self.turns.append((began, time.monotonic()))
        while select.select([self.process.stdout], [], [], 0)[0]:
            said = self.hear()
            self.times["cpu"].append(said["cpu"])
            self.times["wall"].append(_within(self.turns, said["began"], said["at"]))
            self.turns = self.turns[-1:]
        if limit is not None and sum(b - a for a, b in self.turns) > limit:
            raise EndedError(f"over {limit:g} s")

    def end(self) -> None:
        self.process.kill()
        with self.process, self.errors:
            pass  # waits for it, and closes what it said


def _within(turns: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    """Seconds of some turns between two moments."""
    return sum(max(0.0, min(b, ended) - max(a, began)) for a, b in turns)


def share_out(contenders: Sequence[Contender]) -> None:
    """Turns that are the same part of everyone's job, by how long it took to warm up.

    A job of less than a quarter of the median, such as writing a file, has more than its part: it
    does not make the turns of all others long.
    """
    took = [one.took for one in contenders]
    shortest = min((t for t in took if t >= statistics.median(took) / 4), default=0.0)
    parts = min(max(shortest / SHORTEST_TURN, 1.0), PARTS)
    for one in contenders:
        one.turn = max(one.took / parts, SHORTEST_TURN)


def take_turns(
    contenders: Sequence[Contender],
    runs: int,
    most: int | None = None,
    limit: float | None = None,
    failed: Callable[[Contender, EndedError], None] | None = None,
) -> None:
    """Until each of them has done its way so many times.

    Args:
        contenders: All of them stopped.
        runs: How many times; one whose turns are longer than its part may do it more often.
        most: Who has done it so often has no more turns.
        limit: Seconds that a time may take.
        failed: Told of one that ended or took too long, which the others go on without.

    Raises:
        EndedError: one ended or took too long, and there is no ``failed``.
    """
    rng, left = random.Random(0), list(contenders)
    share_out(left)
    while any(len(one.times["cpu"]) < runs for one in left):
        for one in rng.sample(left, len(left)):
            if most is not None and len(one.times["cpu"]) >= most:
                continue
            try:
                one.takes_its_turn(limit)
            except EndedError as error:
                if failed is None:
                    raise
                left.remove(one)
                failed(one, error)


def by_turns(ways: Mapping[str, dict[str, Any]], runs: int) -> dict[str, Times]:
    """So many times of each way, after a first that is left out.

    Args:
        ways: What ``capture_way.py`` is told, by name.
        runs: How many at least.
    """
    contenders: list[Contender] = []
    try:
        for name, way in ways.items():
            one = Contender.started(name, [sys.executable, str(WAY), json.dumps(way)])
            contenders.append(one)
            said = one.hear()  # of a time that warms it up
            one.took = said["at"] - said["began"]
            one.stop()
        take_turns(contenders, runs)
    finally:
        for one in contenders:
            one.end()
    return {one.name: one.times for one in contenders}


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


def means(a: Times, b: Times) -> Times:
    """Of two that do the same, time by time."""
    return {clock: [(x + y) / 2 for x, y in zip(a[clock], b[clock], strict=False)]
            for clock in CLOCKS}  # fmt: skip


def plus(a: Times, b: Times) -> Times:
    """Times of a, and after each the median of b."""
    return {clock: [one + statistics.median(b[clock]) for one in a[clock]] for clock in CLOCKS}


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: no contender stays behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has a reason to ignore one
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def in_a_process(script: Path, *arguments: object) -> Any:
    """What the script prints as its last line, as JSON, in a process of its own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
