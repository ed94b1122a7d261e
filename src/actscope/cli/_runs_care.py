"""``actscope runs tag | merge | diff | delete | du | sweep``: what is done with whole runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actscope.cli._console import complain, console, counted, figures, table
from actscope.cli._errors import safe_if_stopped
from actscope.cli._folders import FOLDER, NEW_FOLDER, refuse_no_folder

if TYPE_CHECKING:
    from actscope.stores import RunDiff

__all__ = ["CARE"]

_MOST_NAMED = 10


@click.command("merge", epilog="Example: actscope runs merge runs/a runs/b --out runs/all")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=NEW_FOLDER, help="The merged run, a new folder.")
@click.option(
    "--keep-first",
    is_flag=True,
    help="Where two runs hold other values for one example, take the run named first.",
)
def merge(runs: tuple[Path, ...], out: Path, keep_first: bool) -> None:
    """Write runs of one spec, over any ranges of the dataset, to one new run."""
    from actscope.stores import merge_runs

    with safe_if_stopped(out):
        report = merge_runs(runs, out, keep_first=keep_first)
    written = counted(report.copied, "unit") + " copied"
    if report.cut:
        written += f", {counted(report.cut, 'unit')} cut from larger ones"
    click.echo(f"{out}: {written}")
    if report.repeated:
        click.echo(f"  {counted(report.repeated, 'example')} in more than one run, taken once")
    for start, stop in report.missing[:_MOST_NAMED]:
        click.echo(f"  examples {start} to {stop - 1} are in none of the runs")
    if report.missing:
        click.echo("  the merged run is partial; the same capture over its range completes it")


@click.command("tag", epilog="Example: actscope runs tag runs/cat baseline --remove draft")
@click.argument("run", type=FOLDER)
@click.argument("tags", nargs=-1)
@click.option("--remove", multiple=True, help="A tag to take away; repeatable.")
def tag(run: Path, tags: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Give a run words by which `runs list --where` finds it; prints what it has now."""
    from actscope.stores import open_run, tag_run

    with open_run(run) as opened:
        before = opened.tags
        found = tag_run(run, tags, remove) if tags or remove else before
    for word in remove:
        if word not in before:
            complain(f"{run} had no tag {word!r}", colour="yellow")
    click.echo(f"{run}: {', '.join(found) or 'no tags'}")


@click.command("diff", epilog="Example: actscope runs diff runs/a runs/b")
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_context
def diff(ctx: click.Context, first: Path, second: Path, as_json: bool) -> None:
    """Compare two runs' specs, examples and values; exit code 1 where they differ."""
    from actscope.stores import diff_runs

    found = diff_runs(first, second)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1, default=str))
    elif found.same:
        click.echo(f"the same: {counted(found.examples, 'example')}, every bit")
    else:
        _print_diff(first, second, found)
    if not found.same:
        ctx.exit(1)


def _print_diff(first: Path, second: Path, found: RunDiff) -> None:
    out = console()
    if found.spec:
        out.print(table("Spec", ["field", str(first), str(second)], found.spec))
    out.print(figures("Examples", _example_lines(first, second, found)))
    out.print()
    columns = ["site", "differing#", "largest difference#", "relative#", "other shape#"]
    rows = (
        (key, f"{s.differing} of {s.examples}", f"{s.max_abs:.4g}", f"{s.relative:.3g}", s.unlike)
        for key, s in found.sites.items()
    )
    out.print(table("Values", columns, rows))


def _example_lines(first: Path, second: Path, found: RunDiff) -> Iterator[tuple[str, str]]:
    yield "in both", f"{found.examples:,}"
    for name, ids in (
        (f"only in {first}", found.only_first),
        (f"only in {second}", found.only_second),
        ("other text, tokens or metadata", found.records),
        ("other failures", found.failures),
        (f"sites only in {first}", found.sites_only_first),
        (f"sites only in {second}", found.sites_only_second),
    ):
        if ids:
            yield name, f"{len(ids):,}: {_some(ids)}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown + (", ..." if len(names) > _MOST_NAMED else "")


@click.command("delete", epilog="Example: actscope runs delete runs/old")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(runs: tuple[Path, ...], yes: bool) -> None:
    """Delete runs for ever, after asking."""
    from actscope.capture.sizes import readable_bytes
    from actscope.stores import delete_run, disk_usage

    for run in runs:
        size = readable_bytes(disk_usage(run).total)
        if not yes and not _may_go(run, size):
            click.echo(f"{run} is kept")
            continue
        click.echo(f"{run} is deleted, {readable_bytes(delete_run(run))} freed")


def _may_go(run: Path, size: str) -> bool:
    """Ask, unless the run lies on a server: that is refused, so there is nothing to ask."""
    from actscope.stores import is_remote

    return is_remote(run) or click.confirm(f"delete {run} ({size}) for ever?")


@click.command("du", epilog="Example: actscope runs du runs/")
@click.argument("folder", type=FOLDER, default=".")
@click.option("--sites", is_flag=True, help="One line for each site of each run.")
def du(folder: Path, sites: bool) -> None:
    """Say how much disk the runs of a folder take, and what for."""
    from actscope.capture.sizes import readable_bytes
    from actscope.stores import disk_usage, list_runs

    refuse_no_folder(folder)
    used = [disk_usage(run.path) for run in list_runs(folder)]
    if not used:
        click.echo(f"no runs in {folder}")
        return
    columns = ["run", "total#", "activations#", "tokens and texts#", "records#", "leftovers#"]
    rows: list[tuple[object, ...]] = []
    for run in used:
        parts = (run.total, sum(run.sites.values()), run.tables, run.records, run.leftovers)
        rows.append((run.path, *(readable_bytes(part) for part in parts)))
    console().print(table("", columns, rows))
    if sites:
        per_site = [(u.path, site, size) for u in used for site, size in u.sites.items()]
        console().print(table("Sites", ["run", "site", "size#"], _readable(per_site)))
    click.echo(f"together {readable_bytes(sum(run.total for run in used))}")


def _readable(rows: Iterable[tuple[Path, str, int]]) -> Iterator[tuple[Path, str, str]]:
    from actscope.capture.sizes import readable_bytes

    return ((path, site, readable_bytes(size)) for path, site, size in rows)


@click.command("sweep", epilog="Example: actscope runs sweep runs/cat")
@click.argument("run", type=FOLDER)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    help="Seconds since a file's last change, below which it stays.",
)
def sweep(run: Path, older_than: float) -> None:
    """Remove what killed writers left behind; call it when no writer is at work on the run."""
    from actscope.stores import open_run
    from actscope.stores import sweep as sweep_run

    open_run(run).close()
    removed = sweep_run(run, older_than)
    for file in removed:
        complain(f"removed {file}", colour="yellow")
    click.echo(f"{run}: {counted(len(removed), 'leftover file')} removed")


CARE = (tag, merge, diff, delete, du, sweep)
