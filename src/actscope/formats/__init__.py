"""How runs leave for other programs, and how other programs' files become runs.

``export_run("runs/x", "zarr", "out")`` and ``import_run("out", "zarr", "runs/again")``. One file
here adds a format; it defines ``FORMAT``. Nothing that is opened here executes code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actscope.core.errors import BadInputError, DamagedRunError, OutputFolderError
from actscope.core.registry import Registry
from actscope.formats._directions import Directions, directions_of_run, import_directions
from actscope.formats._export import EXPORT_FAIL_POINTS, ExportReport, export_activations
from actscope.formats._format import DirectionFormat, Format, Option, RunFormat
from actscope.formats._import import ImportReport, import_activations
from actscope.stores import Run, as_folder, local_folder, open_run

__all__ = [
    "EXPORT_FAIL_POINTS",
    "FORMATS",
    "DirectionFormat",
    "Directions",
    "ExportReport",
    "Format",
    "ImportReport",
    "Option",
    "RunFormat",
    "directions_of_run",
    "export_directions",
    "export_run",
    "import_run",
    "read_directions",
    "write_directions",
]

FORMATS: Registry[Format] = Registry("actscope.formats", "FORMAT", "format")
"""Every format by name: one file each."""

Progress = Callable[[int, int], None]


def export_run(
    run: Run | str | Path,
    to: str,
    out: str | Path,
    *,
    sites: str | Sequence[str] | None = None,
    layers: str | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a run; the same export again does nothing, or goes on with one that was stopped.

    Args:
        run: A complete run, or its folder.
        to: The format.
        out: The folder to make.
        sites: Which of the captured sites; None for all.
        layers: Which layers of them; None for all.
        options: The format's options.
        progress: Called after each unit with (units done, units).

    Raises:
        BadInputError: the format cannot hold this run, or its library is not installed.
        OutputFolderError: there is something else at ``out``.
        DamagedRunError: the run is damaged.
    """
    form = FORMATS.get(to)
    if not form.writes or not isinstance(form, RunFormat):
        raise BadInputError(
            f"{form.name} cannot be exported to",
            got=f"it holds {form.holds}" if form.writes else "it can only be imported",
            next_step="`actscope runs formats` lists the formats",
        )
    opened = run if isinstance(run, Run) else open_run(run)
    return export_activations(
        opened,
        form,
        local_folder(out).absolute(),
        sites=sites,
        layers=layers,
        options=options,
        progress=progress,
    )


def export_directions(
    run: Run | str | Path,
    to: str,
    out: str | Path,
    *,
    layers: str | Sequence[int] | None = None,
    minus: Run | str | Path | None = None,
) -> Directions:
    """Write the mean ``resid_post`` row of each layer of a run, or how it differs from another's.

    Args:
        run: The run, or its folder.
        to: The format: gguf, steering_vectors or repeng.
        out: The file to make.
        layers: Which layers; None for all that were captured.
        minus: The run whose mean is taken away.

    Returns:
        What was written.

    Raises:
        BadInputError: the format holds no directions, or the run no ``resid_post``.
        OutputFolderError: there is something at ``out``.
    """
    _direction_format(to)
    opened = run if isinstance(run, Run) else open_run(run)
    other = minus if minus is None or isinstance(minus, Run) else open_run(minus)
    found = directions_of_run(opened, minus=other, layers=layers)
    write_directions(found, to, out)
    return found


def import_run(
    source: str | Path,
    form: str,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Make a native run of files in a format; an import that was stopped goes on.

    Args:
        source: The folder of an export, or a file or folder of another program.
        form: The format.
        out: The folder of the new run.
        options: The format's options.
        progress: Called after each unit with (units done, units or 0 where unknown).

    Raises:
        BadInputError: there is nothing of this format.
        DamagedRunError: a file is damaged, or asks for more than data.
    """
    found, path = FORMATS.get(form), local_folder(source)
    if not found.reads:
        raise BadInputError(f"{found.name} can only be exported", next_step="--from another format")
    try:
        if isinstance(found, RunFormat):
            return import_activations(
                path, found, as_folder(out), options=options, progress=progress
            )
        found.check_options(options or {})
        directions = read_directions(path, form)
    except DamagedRunError as error:
        if error.next_step:
            raise
        advice = "nothing of it was run; write the file again, with plain arrays of numbers"
        raise DamagedRunError(
            error.what, got=error.got, expected=error.expected, next_step=advice
        ) from error
    return ImportReport(import_directions(directions, path.stem, as_folder(out)), 1, 1, 0, False)


def write_directions(directions: Directions, to: str, path: str | Path) -> None:
    """Write directions to a file.

    Raises:
        BadInputError: the format holds no directions.
        OutputFolderError: there is something at ``path``.
    """
    target = local_folder(path)
    if target.exists() or target.is_symlink():
        raise OutputFolderError(
            f"{target} is in the way", next_step="choose another --out, or delete it yourself"
        )
    _direction_format(to).write(directions, target)


def read_directions(path: str | Path, form: str) -> Directions:
    """Read directions from a file.

    Raises:
        BadInputError: there is no such file, or the format holds no directions.
        DamagedRunError: it cannot be read.
    """
    source = local_folder(path)
    if not source.is_file():
        raise BadInputError("there is no such file", got=source)
    return _direction_format(form).read(source)


def _direction_format(name: str) -> DirectionFormat:
    form = FORMATS.get(name)
    if not isinstance(form, DirectionFormat):
        raise BadInputError(
            f"{form.name} holds activations, not directions",
            expected="gguf, steering_vectors or repeng",
        )
    return form
