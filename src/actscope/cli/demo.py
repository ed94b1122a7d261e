"""``actscope demo``: the tour of the whole main job, offline, on the bundled model."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from actscope.capture.progress import Progress
    from actscope.studies.tour.result import Captured, TourResult

__all__ = ["COMMAND"]


@click.command(
    "demo",
    short_help="The tour: capture, answer, verify and report, offline.",
    epilog="Example: actscope demo --out demo-run --report demo-report.html",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo-run",
    show_default=True,
    help="Folder of the runs.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default="demo-report.html",
    show_default=True,
    help="The report, one HTML file.",
)
@click.option("--model", default="demo", show_default=True, help="Hub id, folder, or `demo`.")
def demo(out: Path, report: Path, model: str) -> None:
    """Capture every layer over the bundled texts and prompts, answer questions, verify, report.

    The same command again resumes: it captures nothing twice.
    """
    from actscope.cli._console import console, error_console
    from actscope.cli._models import describe, load
    from actscope.studies.tour.params import TourParams
    from actscope.studies.tour.run import run_tour

    params = TourParams(out=out, report=report, model=model)
    steps = _Steps(error_console())
    with steps.running():
        with steps.step("load the model"):
            loaded = load(model, device="auto", dtype="auto", revision=None)
        steps.notice(describe(loaded))
        result = run_tour(loaded, params, steps.step)
    _print(console(), result)


class _Steps:
    """A line a step: its name, its bar, tokens a second; nothing where stderr is no terminal."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._out = out
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
            transient=True,
        )

    def running(self) -> AbstractContextManager[object]:
        """Draw while this context is open."""
        return self._bars

    @contextmanager
    def step(self, name: str) -> Generator[Progress]:
        """One step, done when the context ends."""
        task = self._bars.add_task(name, total=None, pace="")
        yield _Step(self._bars, task, self._out)
        total = self._bars.tasks[-1].total or 1
        self._bars.update(task, total=total, completed=total)

    def notice(self, text: str) -> None:
        """A line above the bars."""
        from rich.text import Text

        self._out.print(Text(text), soft_wrap=True)


class _Step:
    """What a capture tells, drawn on one bar."""

    def __init__(self, bars: RichProgress, task: TaskID, out: Console) -> None:
        self._bars, self._task, self._out = bars, task, out
        self._tokens = 0

    def started(self, total: int, done: int) -> None:
        self._bars.update(self._task, total=total, completed=done)

    def advanced(self, examples: int, tokens: int) -> None:
        self._tokens += tokens
        self._bars.update(self._task, advance=examples, pace=f"{self._tokens:,} tokens")

    def notice(self, text: str) -> None:
        from rich.text import Text

        self._out.print(Text(text, style="yellow"), soft_wrap=True)


def _print(out: Console, result: TourResult) -> None:
    from actscope.cli._console import table

    columns = ["run", "examples#", "tokens#", "bytes#", "tokens/s#", "new#", "resumed#"]
    rows = [*map(_row, result.captured), _total(result)]
    folder = result.captured[0].done.path.parent
    out.print(table(f"Captured and verified in {folder}", [*columns, "verified"], rows))
    done = "nothing was captured again" if not result.newly_captured else "again resumes in seconds"
    out.print(f"{result.seconds:.1f} s; {done}", highlight=False)
    out.print(f"report: {result.report}", soft_wrap=True, markup=False, style="bold")
    out.print("next:")
    for command in _next_commands(result):
        out.print(f"  {command}", soft_wrap=True, markup=False)


def _row(one: Captured) -> tuple[object, ...]:
    from actscope.capture.sizes import readable_bytes

    done, summary = one.done, one.summary
    pace = f"{done.tokens / done.seconds:,.0f}" if done.captured else "-"
    return (
        one.name,
        f"{summary.n_examples:,}",
        f"{summary.n_tokens:,}",
        readable_bytes(summary.bytes),
        pace,
        f"{done.captured:,}",
        f"{done.resumed:,}",
        "whole" if one.verified.ok else "damaged",
    )


def _total(result: TourResult) -> tuple[object, ...]:
    from actscope.capture.sizes import readable_bytes

    found = [one.summary for one in result.captured]
    return (
        "total",
        f"{sum(one.n_examples for one in found):,}",
        f"{sum(one.n_tokens for one in found):,}",
        readable_bytes(sum(one.bytes for one in found)),
        "",
        f"{result.newly_captured:,}",
        f"{result.resumed:,}",
        "whole" if all(one.verified.ok for one in result.captured) else "damaged",
    )


def _next_commands(result: TourResult) -> list[str]:
    """Commands as this shell understands them: in a clone, the command lies in ``.venv``."""
    name = "actscope" if shutil.which("actscope") else shlex.quote(sys.argv[0])
    run = shlex.quote(str(result.captured[0].done.path))
    return [
        f"{name} runs show {run}",
        f'{name} capture --prompt "Who lives in Tarn?" --chat --generate 40 --out runs/mine',
        f"{name} doctor --model demo",
    ]


COMMAND = demo
