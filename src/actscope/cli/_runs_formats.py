"""``actscope runs export | import | formats``: runs as files of other programs, and back."""

from __future__ import annotations

from pathlib import Path

import click

from actscope.cli._console import complain, console, counted, error_console, table
from actscope.cli._errors import safe_if_stopped
from actscope.cli._folders import FOLDER, NEW_FOLDER
from actscope.core.errors import BadInputError

__all__ = ["add_commands"]

_OPTION = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the format; `actscope runs formats` lists them.",
)


def _pairs(words: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadInputError("an option is NAME=VALUE", got=word)
        pairs[name.replace("-", "_")] = value
    return pairs


@click.command("export", epilog="Example: actscope runs export runs/cat --to zarr --out out")
@click.argument("run", type=FOLDER)
@click.option("--to", "form", required=True, help="The format; `actscope runs formats` lists them.")
@click.option(
    "--out", required=True, type=FOLDER, help="The folder, or file of directions, to make."
)
@click.option("--sites", help="Which captured sites: names or keys, separated by commas.")
@click.option("--layers", help="Which layers of them: 0,3,-1 or all.")
@click.option("--minus", type=FOLDER, help="For directions: the run whose mean is taken away.")
@_OPTION
def export(
    run: Path,
    form: str,
    out: Path,
    sites: str | None,
    layers: str | None,
    minus: Path | None,
    options: tuple[str, ...],
) -> None:
    """Write a run as files of another program; the same command again goes on where it stopped."""
    from actscope.cli._progress import UnitBar
    from actscope.formats import FORMATS, export_run

    if FORMATS.get(form).holds == "directions":
        if sites not in (None, "resid_post") or options:
            raise BadInputError("directions are of resid_post, and take no options")
        _export_directions(run, form, out, layers, minus)
        return
    if minus is not None:
        raise BadInputError(
            f"{form} holds activations; only directions take a second run",
            next_step="--to gguf, steering-vectors or repeng",
        )
    given = _pairs(options)
    with UnitBar(error_console(), "exporting") as bar:
        report = export_run(run, form, out, sites=sites, layers=layers, options=given, progress=bar)
    for note in report.notes:
        complain(note, colour="yellow")
    line = f"{out}: {counted(report.examples, 'example')}, {counted(len(report.sites), 'site')}"
    if report.resumed:
        line += f"; {counted(report.resumed, 'unit')} there already"
    click.echo(line)


def _export_directions(
    run: Path, form: str, out: Path, layers: str | None, minus: Path | None
) -> None:
    from actscope.formats import export_directions

    found = export_directions(run, form, out, layers=layers, minus=minus)
    less = "" if minus is None else f", less that of {minus}"
    click.echo(
        f"{out}: a direction for {counted(len(found.vectors), 'layer')}, the mean of all stored "
        f"rows of {run}{less}"
    )


@click.command("import", epilog="Example: actscope runs import out --from zarr --out runs/again")
@click.argument("source", type=FOLDER)
@click.option("--from", "form", required=True, help="The format of the files.")
@click.option("--out", required=True, type=NEW_FOLDER, help="The folder of the new run.")
@_OPTION
def import_(source: Path, form: str, out: Path, options: tuple[str, ...]) -> None:
    """Make a native run of an export, or of files that another program wrote."""
    from actscope.formats import import_run

    with safe_if_stopped(out):
        report = import_run(source, form, out, options=_pairs(options))
    line = f"{out}: {counted(report.examples, 'example')}, {counted(report.units, 'unit')}"
    if report.resumed:
        line += f" ({report.resumed} there already)"
    checked = "every tensor is as it was exported" if report.verified else "no spec: a bare run"
    click.echo(f"{line}; {checked}")


@click.command("formats")
def formats() -> None:
    """List the formats of export and import, and their options."""
    from actscope.formats import FORMATS, RunFormat

    rows: list[tuple[object, ...]] = []
    for name in FORMATS.names():
        form = FORMATS.get(name)
        ways = ", ".join(w for w, can in (("export", form.writes), ("import", form.reads)) if can)
        lossless = "yes" if isinstance(form, RunFormat) and form.lossless else "no"
        options = "; ".join(f"{k}: {o.help}" for k, o in form.options.items())
        rows.append((name, form.holds, ways, lossless, form.summary, options))
    columns = ["format", "holds", "ways", "lossless", "files", "options"]
    console().print(table("", columns, rows))


def add_commands(group: click.Group) -> None:
    """Put the commands under ``actscope runs``."""
    for command in (export, import_, formats):
        group.add_command(command)
