"""Ranges of a dataset: a collection has one, and more questions are collected beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from actscope.core.errors import RunMismatchError
from actscope.core.spec import UnitPlan

__all__ = ["AnotherRangeError", "how_to_add", "range_differences"]


class AnotherRangeError(RunMismatchError):
    """The folder holds another range of the same questions, asked in the same way.

    Args:
        folder: Of the collection.
        stored: Its plan.
        asked: The plan that was asked for.

    Attributes:
        differences: Rows of (field, stored value, value asked for).
    """

    def __init__(self, folder: Path, stored: UnitPlan, asked: UnitPlan) -> None:
        self.differences = range_differences(stored, asked)
        rows = "".join(f"\n    {f}: stored {a}, asked for {b}" for f, a, b in self.differences)
        # The sentence of the parent is about another spec.
        super(RunMismatchError, self).__init__(
            f"{folder} holds a run of another range; what differs:{rows}",
            next_step=_next_step(folder, stored, asked),
        )


def range_differences(stored: UnitPlan, asked: UnitPlan) -> list[tuple[str, object, object]]:
    """Rows of (field, stored value, value asked for)."""
    ends = {"start": (stored.start, asked.start), "stop": (stored.stop, asked.stop)}
    return [(f"questions.{name}", a, b) for name, (a, b) in ends.items() if a != b]


def how_to_add(folder: Path, start: int, stop: int) -> str:
    """Commands that add questions ``start`` to ``stop - 1`` to a collection that ends before."""
    named = folder if folder.name.strip(".") else folder.resolve()
    part, whole = f"{named}-more", f"{named}-whole"
    collect = ("collect", "--offset", start, "--num-questions", stop - start, "--output-dir", part)
    merge = ("merge", folder, part, "--output-dir", whole)
    return (
        "collect the other questions into a second folder, with the options that "
        f"{folder} was collected with, and merge the two:\n    {_line(collect)}\n    {_line(merge)}"
    )


def _next_step(folder: Path, stored: UnitPlan, asked: UnitPlan) -> str:
    if stored.start <= asked.start <= stored.stop < asked.stop:
        return how_to_add(folder, stored.stop, asked.stop)
    return (
        f"--offset {stored.start} --num-questions {stored.stop - stored.start} asks for what is "
        "stored; another range needs another --output-dir"
    )


def _line(words: Sequence[object]) -> str:
    return shlex.join(["actscope", "introspect", *map(str, words)])
