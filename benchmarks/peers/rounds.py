"""One round: a process for every contender, and each task by all of them by turns."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capture_clock import CLOCKS, Contender, EndedError, take_turns

from peers import environments

CHILD = Path(__file__).with_name("child.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
           "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip


@dataclass
class Round:
    """The contenders that are left, stopped, and what all of them have found.

    Attributes:
        found: For each contender its versions and its figures by task, or ``skipped`` and why.
    """

    limit: float
    running: dict[str, Contender] = field(default_factory=dict[str, Contender])
    found: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        one = Contender.started(name, command, environment)
        self.running[name] = one
        try:
            self.found[name] = {**one.hear(self.limit), "tasks": {}}
            one.stop()
        except EndedError as error:
            self._drop(name, error)

    def _drop(self, name: str, error: EndedError) -> None:
        self.running.pop(name).end()
        self.found[name] = {"skipped": environments.last_error(str(error))}

    def task(self, task: str, times: int) -> None:
        """Every contender does it once alone, and then so many times by turns."""
        asked: list[Contender] = []
        for name, one in list(self.running.items()):
            one.times = {clock: [] for clock in CLOCKS}
            one.turns = []
            try:
                one.ask({"task": task, "times": times})
                figures = one.hear(self.limit)
            except EndedError as error:
                self._drop(name, error)
                continue
            self.found[name]["tasks"][task] = figures
            one.stop()
            one.took = figures.get("took", 0.0)
            if "skipped" not in figures:
                asked.append(one)
        take_turns(
            asked, times, times, self.limit, failed=lambda one, error: self._drop(one.name, error)
        )
        for one in asked:
            if one.name in self.running:
                self.found[one.name]["tasks"][task] |= one.times


@contextmanager
def begun(pythons: dict[str, Path], work: Path, args: Namespace) -> Iterator[Round]:
    """A round with a process for every contender, loaded and stopped.

    Args:
        pythons: The Python of each.
        work: Holds the model and the texts; what is captured goes to ``work/out/CONTENDER``.
        args: Of the benchmark: ``threads`` and ``limit``.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    one_round = Round(args.limit)
    try:
        for name, python in pythons.items():
            theirs = {**os.environ, **OFFLINE, **threads}
            if name != "actscope":
                theirs.pop("PYTHONPATH", None)
            command = [str(python), str(CHILD), name, "--model", str(work / "model"),
                       "--texts", str(work / "texts.json"), "--out", str(work / "out" / name),
                       "--threads", str(args.threads)]  # fmt: skip
            one_round.start(name, command, theirs)
        yield one_round
    finally:
        for one in one_round.running.values():
            one.end()
