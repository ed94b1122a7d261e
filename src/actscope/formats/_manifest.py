"""What lies beside the data of an export: what it is of, and one line for every unit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from actscope.core.activations import ExampleFailure
from actscope.core.arrays import dtype_name
from actscope.core.errors import BadInputError, DamagedRunError, OutputFolderError
from actscope.core.provenance import sha256_text
from actscope.core.spec import UnitPlan
from actscope.formats._layout import Layout, UnitShape, out_dtype
from actscope.stores import Coding, SiteEntry, dump_json, dump_record, load_record

__all__ = ["MANIFEST", "UNITS", "ExportFolder", "Manifest", "UnitLine", "append_line", "read_lines"]

MANIFEST = "actscope.json"
UNITS = "actscope.units.jsonl"
VERSION = 1
_KIND = "actscope-export"
_AGAIN = "export the run again"
_HEAD = re.compile(rb'\{"sha256": "([0-9a-f]{64})", "unit": ')


@dataclass(frozen=True)
class Manifest:
    """What an export is of.

    Attributes:
        to: The format.
        request: Digest of everything that decides its content.
        sites: Keys of what was exported.
        options: The format's options.
        spec: The run's spec, cut to those sites.
        plan: The run's unit plan.
        environment: Versions of what computed.
        created: When the run was begun.
        units: How many it has.
    """

    to: str
    request: str
    sites: tuple[str, ...]
    options: Mapping[str, Any]
    spec: Mapping[str, Any] | None
    plan: Mapping[str, Any] | None
    environment: Mapping[str, str]
    created: str
    units: int

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        return dump_record(asdict(self) | {"format": _KIND, "version": VERSION})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the one of an export's folder.

        Raises:
            DamagedRunError: it cannot be read.
            BadInputError: a newer version wrote it.
        """
        path = folder / MANIFEST
        try:
            data = load_record(path, _KIND, VERSION)
        except DamagedRunError as error:
            raise DamagedRunError(error.what, got=error.got, next_step=_AGAIN) from error
        try:
            return cls(
                to=str(data["to"]),
                request=str(data["request"]),
                sites=tuple(str(key) for key in data["sites"]),
                options=dict(data["options"]),
                spec=None if data["spec"] is None else dict(data["spec"]),
                plan=None if data["plan"] is None else UnitPlan.from_json(data["plan"]).to_json(),
                environment=dict(data["environment"]),
                created=str(data["created"]),
                units=int(data["units"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRunError(
                f"{path} does not say what this export is of",
                got=repr(error)[:300],
                next_step=_AGAIN,
            ) from error


@dataclass(frozen=True)
class UnitLine:
    """What an export says of one unit.

    Attributes:
        unit: Its id.
        sites: What was captured.
        dtypes: dtype of each tensor in the run.
        shapes: Shape of each.
        xxh3: Checksum of each, as it comes back.
        ends: Last value of each offsets table.
        errors: Examples that could not be captured.
        timings: Seconds by phase.
        metadata: Whatever else the commit record holds.
        marks: What the format goes on from.
        codings: How sites were made smaller in the run; None where the export does not say.
    """

    unit: str
    sites: tuple[SiteEntry, ...]
    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    xxh3: Mapping[str, str]
    ends: Mapping[str, int]
    errors: tuple[ExampleFailure, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    marks: Mapping[str, int] = field(default_factory=dict[str, int])
    codings: Mapping[str, Coding] | None = None

    def to_bytes(self) -> bytes:
        """One line of JSON."""
        data = dict(self.__dict__) | {
            "sites": [entry.to_json() for entry in self.sites],
            "errors": [failure.to_json() for failure in self.errors],
            "codings": self.codings and {k: asdict(c) for k, c in self.codings.items()},
        }
        text = dump_json(data, "a unit")
        line = f'{{"sha256": "{sha256_text(text)}", "unit": {text}}}\n'
        return line.encode("ascii")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> UnitLine:
        """Read what ``to_bytes`` wrote."""
        shapes = {str(k): tuple(int(n) for n in shape) for k, shape in data["shapes"].items()}
        if any(n < 0 for shape in shapes.values() for n in shape) or not all(shapes.values()):
            raise ValueError("a size that is none")
        sites = tuple(SiteEntry.from_json(entry) for entry in data["sites"])
        if any(str(entry.site) not in shapes for entry in sites):
            raise ValueError("a site without a tensor")
        dtypes = {name: dtype_name(out_dtype(str(data["dtypes"][name]), True)) for name in shapes}
        return cls(
            unit=str(data["unit"]),
            sites=sites,
            dtypes=dtypes,
            shapes=shapes,
            xxh3={name: str(data["xxh3"][name]) for name in shapes},
            ends={str(k): int(n) for k, n in data["ends"].items()},
            errors=tuple(ExampleFailure(**error) for error in data["errors"]),
            timings={str(k): float(n) for k, n in data["timings"].items()},
            metadata=dict(data["metadata"]),
            marks={str(k): int(n) for k, n in data["marks"].items()},
            codings=_codings(data.get("codings")),
        )


def _codings(data: Mapping[str, Any] | None) -> dict[str, Coding] | None:
    if data is None:
        return None
    return {
        str(key): Coding(
            str(c["codec"]), int(c["bytes"]), float(c["max_error"]), float(c["rms_error"])
        )
        for key, c in data.items()
    }


def _checked(raw: bytes) -> Mapping[str, Any]:
    """What a line says of a unit, once its digest is right."""
    head = _HEAD.match(raw)
    if head is None or sha256_text(raw[head.end() : -2].decode("ascii")) != head[1].decode():
        raise ValueError("it is not as it was written: its digest does not match")
    return cast("Mapping[str, Any]", json.loads(raw[head.end() : -2]))


def read_lines(path: Path) -> tuple[list[UnitLine], int]:
    """The whole lines of a file, and their size in bytes: a torn last line is left out.

    Raises:
        DamagedRunError: a whole line cannot be read.
    """
    lines: list[UnitLine] = []
    size = 0
    try:
        if path.is_symlink():
            raise ValueError("a link")
        with path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                lines.append(UnitLine.from_json(_checked(raw)))
                size += len(raw)
    except FileNotFoundError:
        return [], 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRunError(
            f"line {len(lines) + 1} of {path} cannot be read",
            got=repr(error)[:300],
            next_step="export the run again",
        ) from error
    return lines, size


def append_line(path: Path, line: UnitLine, size: int) -> int:
    """Add a line, durably, to a file of a size, and return its new size.

    Raises:
        OutputFolderError: somebody else has added lines meanwhile.
    """
    with path.open("ab") as file:
        if file.seek(0, os.SEEK_END) != size:
            raise OutputFolderError(
                f"another process is writing {path.parent}",
                next_step="let one of them finish; the same export again then does nothing",
            )
        file.write(line.to_bytes())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


class ExportFolder:
    """An export on disk.

    Args:
        path: Its folder.

    Raises:
        DamagedRunError: it is incomplete, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.load(path)
        self.units: Sequence[UnitLine] = read_lines(path / UNITS)[0]
        if len(self.units) != self.manifest.units:
            raise DamagedRunError(
                f"{path / UNITS} has {len(self.units)} of {self.manifest.units} units",
                next_step="export the run again",
            )

    @cached_property
    def layout(self) -> Layout:
        """The units laid end to end."""
        shapes = [UnitShape(dict(unit.shapes), dict(unit.ends)) for unit in self.units]
        try:
            return Layout(shapes)
        except BadInputError as error:
            raise DamagedRunError(
                f"the lines of {self.path / UNITS} do not fit together",
                got=error.what,
                next_step=_AGAIN,
            ) from error

    def file(self, name: str) -> Path:
        """A file of the export; a link is not followed.

        Raises:
            DamagedRunError: it is missing, or a link.
        """
        path = self.path / name
        if path.is_symlink() or not path.is_file():
            raise DamagedRunError(
                f"{path} is missing",
                got="a link" if path.is_symlink() else "no file",
                next_step="export the run again",
            )
        return path
