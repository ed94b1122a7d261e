"""The folder that ``datasets.load_from_disk`` opens: Arrow streams and two small JSON files.

Reading is done with pyarrow alone, and only files that are called ``data-*.arrow``: the names that
``state.json`` gives are not followed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from actscope.core.errors import BadInputError, DamagedRunError
from actscope.formats._format import needs
from actscope.formats._job import ExportJob
from actscope.stores import publish

__all__ = [
    "arrow_files",
    "arrow_name",
    "hugging_face",
    "read_stream",
    "write_index",
    "write_stream",
]

INFO = "dataset_info.json"
STATE = "state.json"


def hugging_face(format_name: str) -> Any:
    """The library ``datasets``, which knows how features are written.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise needs(format_name, "datasets", error) from error
    return datasets


def arrow_name(number: int, of: int) -> str:
    """The file of a unit."""
    return f"data-{number:05d}-of-{of:05d}.arrow"


def write_stream(pa: Any, job: ExportJob, number: int, schema: Any, batches: Iterable[Any]) -> None:
    """Publish one Arrow stream."""

    def fill(file: BinaryIO) -> None:
        with pa.ipc.new_stream(file, schema) as stream:
            for batch in batches:
                stream.write_batch(batch)

    publish(job.folder, "export", fill, lambda _: arrow_name(number, len(job)))


def write_index(job: ExportJob, features: Any) -> None:
    """The two JSON files, the state last: with it the folder is a dataset."""
    info = {
        "citation": "",
        "description": f"Activations of {len(job.run):,} examples, exported by actscope.",
        "features": features.to_dict(),
        "homepage": "",
        "license": "",
    }
    names = [arrow_name(number, len(job)) for number in range(len(job))]
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": job.request[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, data in ((INFO, info), (STATE, state)):
        raw = json.dumps(data, indent=2).encode("utf-8")
        publish(job.folder, "export", lambda f, r=raw: f.write(r), lambda _, n=name: n)


def arrow_files(path: Path) -> list[Path]:
    """The Arrow files of a dataset's folder, in order.

    Raises:
        BadInputError: there are none, or one is a link.
    """
    found = sorted(path.glob("data-*.arrow")) if path.is_dir() else []
    if not found or not (path / STATE).is_file():
        raise BadInputError(
            f"{path} is no dataset's folder",
            expected=f"what Dataset.save_to_disk wrote: {STATE}, {INFO} and data-*.arrow",
        )
    for file in found:
        if file.is_symlink():
            raise BadInputError(f"{file} is a link", next_step="import the folder it leads to")
    return found


def read_stream(pa: Any, path: Path) -> Any:
    """An Arrow stream as a table, mapped into memory.

    Raises:
        DamagedRunError: it is none.
    """
    try:
        with pa.memory_map(str(path)) as source:
            _refuse_compressed(pa, source)
            source.seek(0)
            with pa.ipc.open_stream(source) as stream:
                return stream.read_all()
    except (OSError, ValueError, struct.error, pa.ArrowException) as error:
        raise DamagedRunError(
            f"{path} cannot be read as an Arrow stream",
            got=str(error)[:300],
            next_step="write the file again",
        ) from error


def _refuse_compressed(pa: Any, source: Any) -> None:
    """Refuse buffers that would be unpacked into memory; ``Dataset.save_to_disk`` writes none.

    Layout: https://github.com/apache/arrow/blob/main/format/Message.fbs

    Raises:
        ValueError: a batch is compressed.
        struct.error: a message is no Arrow message.
    """
    for message in pa.ipc.MessageReader.open_stream(source):
        raw = message.metadata.to_pybytes()
        table = struct.unpack_from("<I", raw)[0]
        if message.type not in ("record batch", "dictionary"):
            continue
        batch = _inner(raw, table, 2)
        if message.type == "dictionary":
            batch = _inner(raw, batch, 1)
        if _slot(raw, batch, 3):
            raise ValueError("its batches are compressed")


def _slot(raw: bytes, table: int, number: int) -> int:
    """Where a field lies in a FlatBuffers table, from its beginning; 0 where it has none."""
    layout = table - struct.unpack_from("<i", raw, table)[0]
    at = 4 + 2 * number
    here = at < struct.unpack_from("<H", raw, layout)[0]
    return struct.unpack_from("<H", raw, layout + at)[0] if here else 0


def _inner(raw: bytes, table: int, number: int) -> int:
    """Where the table that a field holds begins."""
    at = table + _slot(raw, table, number)
    return at + struct.unpack_from("<I", raw, at)[0]
