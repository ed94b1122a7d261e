"""Progress bars: of a capture by examples and tokens a second, of an export by units."""

from __future__ import annotations

import time
from types import TracebackType

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


class Bar:
    """Draws what a run tells; a plain line now and then where stderr is no terminal.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = RichProgress(
            TextColumn("capturing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("capture", total=None, pace="")
        self._began = time.perf_counter()
        self._tokens = self._done = self._total = 0
        self._said = self._began

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

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
        if not self._console.is_terminal and now - self._said >= LINE_EVERY:
            self._said = now
            self._console.print(f"captured {self._done:,} of {self._total:,} examples, {pace}")

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)


class UnitBar:
    """Draws how many units are done; a plain line now and then where stderr is no terminal.

    Args:
        console: Where to draw.
        doing: A word for what is done to them.
    """

    def __init__(self, console: Console, doing: str) -> None:
        self._console = console
        self._doing = doing
        self._bar = RichProgress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("units"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(doing, total=None)
        self._said = time.perf_counter()

    def __enter__(self) -> UnitBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """So many of all units are done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.perf_counter()
        if not self._console.is_terminal and now - self._said >= LINE_EVERY:
            self._said = now
            self._console.print(f"{self._doing}: {done:,} of {total:,} units")
