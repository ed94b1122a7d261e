"""Consoles and small tables of the command line; rich is imported when something is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["complain", "console", "counted", "error_console", "figures", "table"]


def console() -> Console:
    """Where results go; wide enough for a path where it is not a terminal."""
    from rich.console import Console

    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=180)


def error_console() -> Console:
    """Where progress and errors go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def complain(head: str, *details: str, colour: str = "red") -> None:
    """A message on stderr, its first line in colour; text is printed as it is, never as markup."""
    from rich.text import Text

    out = error_console()
    out.print(Text(head, style=f"bold {colour}"), soft_wrap=True)
    for line in details:
        out.print(Text("  " + line.strip() if line[:1] != " " else line), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; columns whose name ends in ``#`` are numbers and flush right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head = Text(title, style="bold")  # a text of rich is never read as markup
    made = Table(title=head, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        right = column.endswith("#")
        made.add_column(
            Text(column.removesuffix("#")), justify="right" if right else "left", no_wrap=right
        )
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def figures(title: str, pairs: Iterable[tuple[str, object]]) -> Table:
    """A two-column table of names and figures, without a header."""
    from rich.table import Table
    from rich.text import Text

    head = Text(title, style="bold")
    made = Table(title=head, title_justify="left", box=None, show_header=False)
    made.add_column(style="cyan")
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(Text(name), Text(str(value)))
    return made


def counted(n: int, word: str) -> str:
    """``1 unit``, ``2 units``."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"
