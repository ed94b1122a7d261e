"""A progress bar for a capture: examples, tokens a second, time left."""

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

__all__ = ["Bar"]


class Bar:
    """Draws what a run tells; nothing but notices where stderr is no terminal.

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
        self._tokens = 0

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
        self._bar.update(self._task, total=total, completed=done)

    def advanced(self, examples: int, tokens: int) -> None:
        """Move the bar."""
        self._tokens += tokens
        pace = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        self._bar.update(self._task, advance=examples, pace=f"{pace:,.0f} tokens/s")

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)
