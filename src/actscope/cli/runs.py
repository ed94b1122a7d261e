"""``actscope runs``: list, show, verify and repair what is on disk; the rest is ``_runs_care``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actscope.cli._console import complain, console, counted, figures, table
from actscope.cli._folders import FOLDER, refuse_no_folder
from actscope.cli._runs_care import CARE
from actscope.cli._runs_formats import add_commands
from actscope.core.errors import BadInputError, DamagedRunError

if TYPE_CHECKING:
    from actscope.stores import Run, RunListing, RunSummary, VerifyReport

__all__ = ["COMMAND"]

_COLLECTION = "run_config.json"
"""What lies in a collection of introspection; see its ``record``."""


@click.group("runs", short_help="List, show, verify, repair, merge, compare and delete runs.")
def runs() -> None:
    """List, show, verify, repair, merge, compare and delete runs on disk."""


@runs.command("list", epilog="Example: actscope runs list runs/")
@click.argument("folder", type=FOLDER, default=".")
@click.option(
    "--where",
    metavar="CONDITION",
    help="Only some: name, state, model, store, tags, created, n_examples, ... or a field of the "
    "spec. For example: \"model == 'demo' and 'baseline' in tags\".",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def list_(folder: Path, where: str | None, as_json: bool) -> None:
    """List the runs in a folder and its subfolders."""
    from actscope.stores import list_runs

    refuse_no_folder(folder)
    found = list_runs(folder, where)
    if as_json:
        click.echo(json.dumps([run.to_json() for run in found], indent=1, default=str))
        return
    if not found:
        click.echo(f"no runs in {folder}" + (f" where {where}" if where else ""))
        return
    columns = ["run", "state", "model", "examples#", "failures#", "units#", "size#", "begun"]
    rows = [_listing_row(run) for run in found]
    if any(run.tags for run in found):
        columns.append("tags")
        rows = [(*row, ", ".join(run.tags)) for row, run in zip(rows, found, strict=True)]
    console().print(table("", columns, rows))
    for run in found:
        if run.problem:
            complain(f"{run.path}: {run.problem}")


def _listing_row(run: RunListing) -> tuple[object, ...]:
    from actscope.capture.sizes import readable_bytes

    units = f"{run.n_units}/{run.n_planned}" if run.n_planned is not None else run.n_units
    size = readable_bytes(run.bytes)
    begun = run.created.replace("T", " ")[:16]
    return run.path, run.state, run.model, run.n_examples, run.n_failures, units, size, begun


@runs.command("show", epilog="Example: actscope runs show runs/cat")
@click.argument("run", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def show(run: Path, as_json: bool) -> None:
    """Show a run: its spec, counts, statistics by site, and errors by kind."""
    with _opened(run) as opened:
        summary = opened.summary()
        if as_json:
            data = {
                "path": str(run),
                "tags": opened.tags,
                "spec": opened.spec,
                "plan": None if opened.plan is None else opened.plan.to_json(),
                "summary": summary.to_json(),
            }
            click.echo(json.dumps(data, indent=1, default=str))
            return
        _print_run(opened, summary)


def _opened(path: Path) -> Run:
    """The run at a path; where a collection of introspection lies there, say what shows it."""
    from actscope.stores import open_run

    try:
        return open_run(path)
    except BadInputError as error:
        near = (path, path.parent) if path.is_dir() else ()
        if not any((folder / _COLLECTION).is_file() for folder in near):
            raise
        raise BadInputError(
            f"{path} is no run: a collection of introspection lies there",
            next_step=f"actscope introspect inspect --data-dir {path}",
        ) from error


def _print_run(run: Run, summary: RunSummary) -> None:
    out = console()
    out.print(figures(f"Run {run.path}", _facts(run, summary)))
    out.print()
    out.print(figures("Spec", _flat(run.spec or {})))
    out.print()
    columns = ["site", "rows#", "width#", "dtype", "mean norm#", "std#", "absmax#", "non-finite#"]
    out.print(table("Sites", columns, _site_rows(summary)))
    coded = list(_coded_rows(summary))
    if coded:
        columns = ["site", "codec", "bytes#", "ratio#", "lowest#", "largest error#"]
        columns += ["relative error#", "highest#"]
        out.print(table("Codecs", columns, coded))
    if not summary.errors:
        return
    out.print(table("Failures", ["kind", "examples#"], summary.errors.items()))
    for failure in run.failures[:10]:
        click.echo(f"  {failure.kind}: {failure.message}")
    if len(run.failures) > 10:
        click.echo(f"  and {len(run.failures) - 10} more")


def _facts(run: Run, summary: RunSummary) -> Iterator[tuple[str, object]]:
    from actscope.capture.sizes import readable_bytes

    state = "complete" if run.complete else f"partial, missing {counted(summary.n_pending, 'unit')}"
    answer = summary.n_tokens - summary.n_prompt_tokens
    tokens = f"{summary.n_tokens:,} ({summary.n_prompt_tokens:,} prompt, {answer:,} answer)"
    yield "state", state
    yield (
        "store",
        f"{run.store}, {counted(summary.n_units, 'unit')}, {readable_bytes(summary.bytes)}",
    )
    yield "examples", f"{summary.n_examples:,} captured, {summary.n_failures:,} failed"
    yield "tokens", tokens
    if run.plan is not None and run.plan.share_prefix:
        yield "shared beginnings", "computed once, where texts of a unit have them"
    yield "tags", ", ".join(run.tags) or "none"
    yield "fingerprint", run.fingerprint or "none"
    yield "begun", run.created
    yield "time", ", ".join(f"{k} {v:.1f} s" for k, v in summary.timings.items()) or "unknown"
    yield "made with", ", ".join(f"{k} {v}" for k, v in run.environment.items())


def _flat(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in spec.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield prefix + key, _shortened([str(item) for item in value])
        else:
            yield prefix + key, "none" if value in (None, "") else str(value)


def _shortened(items: list[str]) -> str:
    if len(items) <= 8:
        return ", ".join(items)
    return f"{', '.join(items[:4])}, ..., {items[-1]} ({len(items)})"


def _site_rows(summary: RunSummary) -> Iterable[tuple[object, ...]]:
    for key, site in summary.sites.items():
        measured = site.norms.count > 0  # a pattern has no rows whose norm would mean anything
        yield (
            key,
            f"{site.rows:,}",
            site.width,
            site.dtype,
            f"{site.norms.mean:.4g}" if measured else "-",
            f"{site.norms.std:.3g}" if measured else "-",
            f"{site.absmax:.4g}",
            site.non_finite,
        )


def _coded_rows(summary: RunSummary) -> Iterable[tuple[object, ...]]:
    for key, site in summary.sites.items():
        if (found := site.coded) is not None:
            ratios = f"{found.ratio:.2f}", f"{found.lowest_ratio:.2f}"
            errors = f"{found.rms_error:.2%}", f"{found.highest_rms_error:.2%}"
            yield key, found.codec, f"{found.bytes:,}", *ratios, f"{found.max_error:.3g}", *errors


@runs.command("verify", epilog="Example: actscope runs verify runs/cat runs/dog")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--fast/--full",
    default=False,
    help="Fast reads records and file sizes alone; full, the default, reads every byte.",
)
@click.pass_context
def verify(ctx: click.Context, runs: tuple[Path, ...], fast: bool) -> None:
    """Compare a run with what was committed; exit code 1 where it differs."""
    whole = [_verify_one(run, fast) for run in runs]
    if not all(whole):
        ctx.exit(1)


def _verify_one(path: Path, fast: bool) -> bool:
    from actscope.capture.sizes import readable_bytes
    from actscope.stores import open_run, verify_run

    pending = 0
    try:
        with open_run(path) as run:
            pending = len(run.pending)
    except DamagedRunError:
        pass  # the report below says what is damaged
    report = verify_run(path, fast=fast)
    for problem in report.problems:
        complain(f"{path}: {problem}")
    if not report.ok:
        complain(
            f"{path}: {counted(len(report.problems), 'problem')}",
            "what is damaged is never returned as data; the rest of the run can be read",
            *_repair(report, path),
        )
        return False
    units = counted(report.units, "unit")
    line = f"{path}: whole. {units}, {readable_bytes(report.bytes)} read"
    if fast:
        line = f"{path}: records and sizes of {units} agree; bytes not read (--full reads them)"
    if pending:
        line += f"; not captured yet: {counted(pending, 'planned unit')}"
    if report.leftovers:
        line += f"; {counted(len(report.leftovers), 'leftover file')} of killed writers"
    click.echo(line)
    return True


def _repair(report: VerifyReport, path: Path) -> list[str]:
    """What to do next, where something can be done."""
    from actscope.stores import TAGS_FILE

    mends = any(p.unit is not None or p.file == TAGS_FILE for p in report.problems)
    return [f"next: `actscope runs repair {path}` takes back what is damaged"] if mends else []


@runs.command("repair", epilog="Example: actscope runs repair runs/cat")
@click.argument("run", type=FOLDER)
@click.pass_context
def repair(ctx: click.Context, run: Path) -> None:
    """Take damaged units back, so that running the same capture again captures just these."""
    from actscope.stores import TAGS_FILE, repair_run

    report = repair_run(run)
    if report.ok:
        click.echo(f"{run}: whole, nothing to repair")
        return
    for problem in report.problems:
        complain(f"{run}: {problem}")
    taken = {p.unit for p in report.problems if p.unit is not None}
    if taken:
        click.echo(
            f"{run}: {counted(len(taken), 'unit')} taken back; run the same capture again and it "
            "captures just these (their commit records lie in damaged/)"
        )
    if any(p.file == TAGS_FILE for p in report.problems):
        click.echo(f"{run}: its tags are taken back; `actscope runs tag` gives it new ones")
    if any(p.unit is None and p.file != TAGS_FILE for p in report.problems):
        complain(f"{run}: what belongs to no unit cannot be repaired", "capture into a new folder")
        ctx.exit(1)


for command in CARE:
    runs.add_command(command)
add_commands(runs)

COMMAND = runs
