"""Progress bars: of a capture by examples and tokens a second, of an export by units."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

__all__ = ["Bar", "UnitBar"]

LINE_EVERY = 30.0
"""Seconds between two lines in a log file or a pipe."""


class _Drawn:
    """A bar on a terminal; a plain line now and then where stderr is none.

    Args:
        console: Where to draw.
        doing: What is done.
        aside: What stands beside the count: a text, or ``{task.fields[pace]}``.
    """

    def __init__(self, console: Console, doing: str, aside: str) -> None:
        self._console = console
        self._bar = RichProgress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(aside),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(doing, total=None, pace="")
        self._said = time.perf_counter()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _say(self, line: str, now: float) -> None:
        if not self._console.is_terminal and now - self._said >= LINE_EVERY:
            self._said = now
            self._console.print(line)


class Bar(_Drawn):
    """Draws what a run tells.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, "capturing", "{task.fields[pace]}")
        self._began = self._said
        self._tokens = self._done = self._total = 0

    def started(self, total: int, done: int) -> None:
        """Show the whole range; what is on disk counts as done."""
        self._began = time.perf_counter()
        self._done, self._total = done, total
        self._bar.update(self._task, total=total, completed=done)

    def advanced(self, examples: int, tokens: int) -> None:
        """Move the bar."""
        self._tokens += tokens
        self._done += examples
        now = time.perf_counter()
        pace = f"{self._tokens / max(now - self._began, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, advance=examples, pace=pace)
        self._say(f"captured {self._done:,} of {self._total:,} examples, {pace}", now)

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)


class UnitBar(_Drawn):
    """Draws how many units are done.

    Args:
        console: Where to draw.
        doing: A word for what is done to them.
    """

    def __init__(self, console: Console, doing: str) -> None:
        super().__init__(console, doing, "units")
        self._doing = doing

    def __call__(self, done: int, total: int) -> None:
        """So many of all units are done."""
        self._bar.update(self._task, completed=done, total=total)
        self._say(f"{self._doing}: {done:,} of {total:,} units", time.perf_counter())
