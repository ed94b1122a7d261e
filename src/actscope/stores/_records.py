"""The two kinds of JSON record of a run: ``run.json`` and one commit per unit.

A record's first line is a digest of all bytes after it, so that any changed byte is found.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from actscope.core.activations import ExampleFailure
from actscope.core.arrays import DTYPES
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan
from actscope.core.stats import Moments
from actscope.stores._io import read_limited

__all__ = [
    "COMMITS",
    "FORMAT_VERSION",
    "RUN_FILE",
    "Coding",
    "CommitRecord",
    "RunRecord",
    "SiteEntry",
    "TensorEntry",
    "decode_unit",
    "dump_json",
    "dump_record",
    "encode_unit",
    "load_commit",
    "load_record",
    "load_run",
]

RUN_FILE = "run.json"
COMMITS = "commits"
FORMAT_VERSION = 1
RUN_FORMAT = "actscope-run"
COMMIT_FORMAT = "actscope-commit"
LARGEST_RECORD = 256 << 20

_PLAIN = re.compile(r"[a-z0-9_-]+")
_LONGEST_STEM = 120
_HEAD = re.compile(rb'\{"digest": "sha256:([0-9a-f]{64})",\n')


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` says.

    Attributes:
        store: Name of the store that wrote it.
        spec: The spec's JSON, or None for a bare run.
        fingerprint: The spec's fingerprint, empty for a bare run.
        plan: How the range is cut into units, or None where units come as they are called.
        environment: Versions of what computed.
        created: ISO time, for people.
    """

    store: str
    spec: dict[str, Any] | None
    fingerprint: str
    plan: UnitPlan | None
    environment: dict[str, str]
    created: str

    def to_bytes(self) -> bytes:
        """The bytes of ``run.json``."""
        data = asdict(self) | {"format": RUN_FORMAT, "version": FORMAT_VERSION}
        data["plan"] = None if self.plan is None else self.plan.to_json()
        return dump_record(data)


@dataclass(frozen=True)
class SiteEntry:
    """A site of a unit, whether it has one row an example, and how many heads lie in a row."""

    site: Site
    pooled: bool
    heads: int = 0

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON; what a plain site does not have is left out."""
        data = {**asdict(self.site), "pooled": self.pooled, "heads": self.heads}
        return {k: v for k, v in data.items() if v or k not in ("parts", "heads")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SiteEntry:
        """Read what ``to_json`` wrote."""
        parts = tuple(int(part) for part in data.get("parts", ()))
        site = Site(data["kind"], data["layer"], data["path"], parts)
        return cls(site, bool(data["pooled"]), int(data.get("heads", 0)))


@dataclass(frozen=True)
class Coding:
    """How a tensor was made smaller, and what that cost.

    Attributes:
        codec: One of ``stores._codecs.CODECS``.
        bytes: The size of what lies in the data file.
        max_error: Largest absolute difference between a value and what is read back.
        rms_error: Root of the summed squared differences over that of the squared values.
    """

    codec: str
    bytes: int
    max_error: float
    rms_error: float


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a unit's data file.

    Attributes:
        dtype: A name of ``core.arrays.DTYPES``.
        shape: Its shape.
        xxh3: Checksum (xxh3-128, hex) of the little-endian bytes of its values, as they are read.
        norms: Moments of the row norms, for activations only.
        absmax: Largest finite magnitude.
        non_finite: How many values are NaN or infinite.
        coding: How it lies in the data file, where that is not as plain values.
    """

    dtype: str
    shape: tuple[int, ...]
    xxh3: str
    norms: Moments | None = None
    absmax: float = 0.0
    non_finite: int = 0
    coding: Coding | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {
            k: v for k, v in asdict(self).items() if k not in ("norms", "coding") or v is not None
        }

    @property
    def nbytes(self) -> int:
        """The size of its values."""
        return math.prod(self.shape) * np.dtype(DTYPES.get(self.dtype, self.dtype)).itemsize

    @property
    def stored_bytes(self) -> int:
        """What it takes in the data file."""
        return self.nbytes if self.coding is None else self.coding.bytes

    def same_bytes(self, other: TensorEntry) -> bool:
        """Whether both are the same tensor, bit by bit."""
        return (self.dtype, self.shape, self.xxh3) == (other.dtype, other.shape, other.xxh3)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorEntry:
        """Read what ``to_json`` wrote."""
        norms, coding = data.get("norms"), data.get("coding")
        return cls(
            str(data["dtype"]),
            tuple(int(n) for n in data["shape"]),
            str(data["xxh3"]),
            None if norms is None else Moments.from_json(norms),
            float(data["absmax"]),
            int(data["non_finite"]),
            None if coding is None else Coding(**coding),
        )


@dataclass(frozen=True)
class CommitRecord:
    """What a commit record says: the unit is on disk, and these are its bytes.

    Attributes:
        unit: The unit's id.
        fingerprint: Of the run's spec.
        path: The data file, relative to the run's folder.
        bytes: Its size.
        xxh3: Its checksum.
        sites: What was captured, in the order asked for.
        tensors: Every tensor of the data file.
        counts: examples, tokens, prompt_tokens, rows.
        first_index: Smallest dataset index in the unit, failures included.
        sequence: How many units were committed before it, for runs without a plan.
        errors: Examples that could not be captured.
        timings: Seconds by phase.
        metadata: Whatever else the writer was given.
        environment: Versions, where they are not those of ``run.json``.
        finished: ISO time, for people.
    """

    unit: str
    fingerprint: str
    path: str
    bytes: int
    xxh3: str
    sites: tuple[SiteEntry, ...]
    tensors: Mapping[str, TensorEntry]
    counts: Mapping[str, int]
    first_index: int = 0
    sequence: int = 0
    errors: tuple[ExampleFailure, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    finished: str = ""

    def to_bytes(self) -> bytes:
        """The bytes of the commit record."""
        data = dict(self.__dict__) | {
            "format": COMMIT_FORMAT,
            "version": FORMAT_VERSION,
            "sites": [entry.to_json() for entry in self.sites],
            "tensors": {name: entry.to_json() for name, entry in self.tensors.items()},
            "errors": [failure.to_json() for failure in self.errors],
        }
        return dump_record(data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CommitRecord:
        """Read what ``to_bytes`` wrote."""
        rest = {k: v for k, v in data.items() if k not in ("format", "version", "digest")}
        rest["sites"] = tuple(SiteEntry.from_json(entry) for entry in data["sites"])
        rest["tensors"] = {k: TensorEntry.from_json(v) for k, v in data["tensors"].items()}
        rest["errors"] = tuple(ExampleFailure(**e) for e in data["errors"])
        return cls(**rest)

    def same_content(self, other: CommitRecord) -> bool:
        """Whether both hold the same tensors, bit by bit."""
        return self.tensors.keys() == other.tensors.keys() and all(
            entry.same_bytes(other.tensors[name]) for name, entry in self.tensors.items()
        )


def dump_json(value: Any, where: str, *, indent: int | None = None) -> str:
    """JSON in ASCII, numpy scalars included; lone surrogates and NaN survive the way back.

    Raises:
        BadInputError: something in it is no JSON.
    """

    def plain(item: object) -> object:
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, np.ndarray):
            return item.tolist()
        raise TypeError(type(item).__name__)

    try:
        return json.dumps(value, sort_keys=True, indent=indent, default=plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"{where} cannot be stored as JSON",
            got=str(error),
            expected="texts, numbers, booleans, None, lists and dictionaries with text keys",
        ) from error


def dump_record(data: Mapping[str, Any]) -> bytes:
    """The bytes of a record: its digest on the first line, then the rest of the JSON."""
    body = dump_json(data, "the record", indent=1)[2:].encode("ascii") + b"\n"
    digest = hashlib.sha256(body).hexdigest()
    return b'{"digest": "sha256:%s",\n' % digest.encode("ascii") + body


def load_record(path: Path, expected: str, newest: int | None = None) -> dict[str, Any]:
    """Read a record and check its digest, its kind and its version.

    Raises:
        DamagedRunError: any byte is not as it was written, or the file is gone.
        BadInputError: a newer version wrote it.
    """
    newest = FORMAT_VERSION if newest is None else newest
    try:
        raw = read_limited(path, LARGEST_RECORD)
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"{path} cannot be read", got=str(error)) from error
    head = _HEAD.match(raw)
    if not head or hashlib.sha256(raw[head.end() :]).hexdigest().encode() != head[1]:
        raise DamagedRunError(
            f"{path} is not as it was written: its digest does not match",
            next_step="`actscope runs verify` lists everything that is damaged",
        )
    try:
        data = cast("dict[str, Any]", json.loads(raw))
        kind, version = data["format"], data["version"]
    except (ValueError, KeyError, RecursionError) as error:
        raise DamagedRunError(f"{path} is not a record", got=repr(error)) from error
    if kind != expected or not isinstance(version, int):
        raise DamagedRunError(f"{path} is another kind of record", got=kind, expected=expected)
    if version > newest:
        raise BadInputError(
            f"{path} was written by a newer actscope",
            got=f"format version {version}",
            expected=f"at most {newest}",
            next_step="pip install --upgrade actscope",
        )
    return data


def load_run(folder: Path) -> RunRecord:
    """Read ``run.json`` of a run's folder.

    Raises:
        DamagedRunError: it is not as it was written.
    """
    path = folder / RUN_FILE
    data = load_record(path, RUN_FORMAT)
    try:
        plan = data["plan"]
        return RunRecord(
            store=str(data["store"]),
            spec=data["spec"],
            fingerprint=str(data["fingerprint"]),
            plan=None if plan is None else UnitPlan.from_json(plan),
            environment=dict(data["environment"]),
            created=str(data["created"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedRunError(f"{path} lacks a field", got=repr(error)) from error


def load_commit(folder: Path, file_name: str) -> CommitRecord:
    """Read one commit record of a run's folder.

    Raises:
        DamagedRunError: it is not as it was written.
    """
    path = folder / COMMITS / file_name
    data = load_record(path, COMMIT_FORMAT)
    try:
        record = CommitRecord.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRunError(f"{path} lacks a field", got=repr(error)) from error
    if encode_unit(record.unit) + ".json" != file_name:
        raise DamagedRunError(
            f"{path} is the record of another unit", got=record.unit, expected=file_name
        )
    return record


def encode_unit(unit: str) -> str:
    """A file stem for a unit id: unequal ids never collide, on no file system.

    Lower-case letters, digits, ``-`` and ``_`` stay, all else becomes ``%xx``; an id too long for a
    file name becomes its beginning, ``~`` and a hash.
    """
    raw = unit.encode("utf-8", "surrogatepass")
    stem = "".join(chr(b) if _PLAIN.fullmatch(chr(b)) else f"%{b:02x}" for b in raw)
    if len(stem) <= _LONGEST_STEM:
        return stem
    return f"{stem[:60]}~{hashlib.sha256(raw).hexdigest()[:40]}"


def decode_unit(stem: str) -> str | None:
    """The unit id of a file stem; None where only the record itself knows it, "" if it is none."""
    if "~" in stem:
        return None
    raw = re.sub(
        rb"%([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), stem.encode("utf-8", "surrogatepass")
    )
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return ""
