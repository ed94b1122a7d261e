"""The safetensors format, streamed: 8 bytes of header length, a JSON header, contiguous data.

Written here because checksums come from the same pass over the data, and because reading has to
work without torch, bfloat16 included. The tests compare both directions with the reference library.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import xxhash

from actscope.core.arrays import DTYPES, Array, dtype_name
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._formats import FileSums, as_bytes
from actscope.stores._remote_path import RemotePath, read_range

__all__ = ["RangedSafetensors", "SafetensorsFile", "safetensors_header", "write_safetensors"]

LARGEST_HEADER = 100_000_000
"""The reference implementation's own cap."""

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""numpy name -> safetensors name, in the reference implementation's order of alignment."""

_RANK = {name: rank for rank, name in enumerate(_CODES)}
_DTYPES = {code: DTYPES.get(name, None) or np.dtype(name) for name, code in _CODES.items()}
_CHUNK = 8 << 20
_COPY_BELOW = 8 << 20
_READ_CHUNK = 2 << 20
_MOST_PRIVATE_MAPS = 128


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Array], header: Mapping[str, str]
) -> FileSums:
    """Stream tensors into an empty file; one pass writes and sums.

    The widest dtypes come first, then names in order, so that every tensor is aligned and equal
    content gives equal bytes.

    Raises:
        BadInputError: a dtype the format does not have.
    """
    order = sorted(tensors, key=lambda n: (-_rank(n, tensors[n]), n))
    whole = xxhash.xxh3_128()
    sums: dict[str, str] = {}
    start = safetensors_header(order, tensors, header)
    file.write(start)
    whole.update(start)
    for name in order:
        data = as_bytes(tensors[name])
        one = xxhash.xxh3_128()
        for at in range(0, len(data), _CHUNK):
            chunk = data[at : at + _CHUNK]
            file.write(chunk)
            whole.update(chunk)
            one.update(chunk)
        sums[name] = one.hexdigest()
    return FileSums(whole.hexdigest(), sums)


def _rank(name: str, array: Array) -> int:
    dtype = dtype_name(array.dtype)
    if dtype not in _RANK:
        raise BadInputError(
            f"tensor {name!r} has a dtype the store does not keep",
            got=dtype,
            expected="one of " + ", ".join(_RANK),
        )
    return _RANK[dtype]


def safetensors_header(
    order: list[str], tensors: Mapping[str, Array], header: Mapping[str, str]
) -> bytes:
    """The first bytes of a file whose tensors follow one another in an order."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(header.items()))} if header else {}
    at = 0
    for name in order:
        array = tensors[name]
        entries[name] = {
            "dtype": _CODES[dtype_name(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    try:
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInputError("a tensor's name is no valid text", got=str(error)) from error
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class _Entry:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A safetensors file, mapped into memory.

    Args:
        path: The file.

    Raises:
        DamagedRunError: it is no well-formed safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        try:
            self._open()
        except (OSError, ValueError) as error:
            raise DamagedRunError(
                f"{path} cannot be read as safetensors",
                got=str(error),
                next_step="write the file again, or `actscope runs verify` where it is of a run",
            ) from error

    def _open(self) -> None:
        with _open_plain(self._path) as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(file.read(8), size)
            self.header, self._entries = _parse_header(file.read(length), size - 8 - length)
            self._base = 8 + length
            if size > self._base:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def names(self) -> list[str]:
        """Its tensors."""
        return list(self._entries)

    def read(self, name: str) -> Array:
        """One tensor, read-only, over the file's own pages.

        Raises:
            DamagedRunError: there is none of that name.
        """
        entry = self._entry(name)
        if entry.start == entry.stop:
            empty = np.empty(entry.shape, entry.dtype)
            empty.flags.writeable = False
            return empty
        if self._map is None:  # closed since, by whoever had too many files open
            self._open()
        assert self._map is not None
        count = math.prod(entry.shape)
        flat = np.frombuffer(self._map, entry.dtype, count, self._base + entry.start)
        return flat.reshape(entry.shape)

    def read_into(self, name: str, target: Array) -> str:
        """Fill a contiguous array of the tensor's dtype and shape from the file.

        Plain reads from front to back: of a file that is not in memory yet several times faster
        than touching its pages one after the other.

        Returns:
            The tensor's checksum.

        Raises:
            DamagedRunError: there is none of that name, or the file ends early.
        """
        entry = self._entry(name)
        data = target.reshape(-1).view(np.uint8).data
        one = xxhash.xxh3_128()
        with _open_plain(self._path) as file, io.FileIO(file.fileno(), closefd=False) as raw:
            if hasattr(os, "posix_fadvise"):  # no reading ahead into the next tensor
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            raw.seek(self._base + entry.start)
            at = 0
            while at < len(data):
                got = raw.readinto(data[at : at + _READ_CHUNK])
                if not got:
                    raise DamagedRunError(f"{self._path} ends within tensor {name!r}")
                one.update(data[at : at + got])  # while the processor still has them
                at += got
        return one.hexdigest()

    def private(self, name: str, start: int, stop: int) -> Array:
        """Rows of one tensor that the caller may change without anyone else seeing it.

        Many bytes are a copy-on-write mapping of the file, few are copied.
        """
        rows = self.read(name)[start:stop]
        if rows.nbytes < _COPY_BELOW or _PrivateMap.alive >= _MOST_PRIVATE_MAPS:
            return rows.copy()
        entry = self._entry(name)
        at = self._base + entry.start + start * (rows.nbytes // len(rows))
        try:
            return _map_privately(self._path, at, rows)
        except (OSError, ValueError):  # no memory maps left: a copy is as good
            return rows.copy()

    def close(self) -> None:
        """Let go of the file; arrays that were read stay good."""
        if self._map is not None:
            with contextlib.suppress(BufferError):  # an array still looks at it
                self._map.close()
            self._map = None

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise DamagedRunError(f"{self._path} holds no tensor {name!r}", got=self.names())
        return self._entries[name]


class RangedSafetensors:
    """A safetensors file on a server: its header is fetched, then the tensors asked for alone.

    Args:
        path: The file.

    Raises:
        DamagedRunError: it is no well-formed safetensors file.
        StorageError: the server cannot be reached, or refuses.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        try:
            size = path.stat().st_size
            length = _header_length(read_range(path, 0, 8), size)
            raw = read_range(path, 8, 8 + length)
            self.header, self._entries = _parse_header(raw, size - 8 - length)
        except (OSError, ValueError) as error:
            raise DamagedRunError(
                f"{path} cannot be read as safetensors",
                got=str(error),
                next_step="`actscope runs verify` lists everything that is damaged",
            ) from error
        self._base = 8 + length

    def names(self) -> list[str]:
        """Its tensors."""
        return list(self._entries)

    def read(self, name: str) -> Array:
        """One tensor, read-only.

        Raises:
            DamagedRunError: there is none of that name, or the file ends early.
            StorageError: the server cannot be reached, or refuses.
        """
        if name not in self._entries:
            raise DamagedRunError(f"{self._path} holds no tensor {name!r}", got=self.names())
        entry = self._entries[name]
        try:
            raw = read_range(self._path, self._base + entry.start, self._base + entry.stop)
        except FileNotFoundError as error:
            raise DamagedRunError(f"{self._path} is gone") from error
        if len(raw) != entry.stop - entry.start:
            raise DamagedRunError(f"{self._path} ends within tensor {name!r}")
        return np.ndarray(entry.shape, entry.dtype, raw)

    def close(self) -> None:
        """Nothing stays open between two requests."""


class _PrivateMap(mmap.mmap):
    """A copy-on-write mapping that counts itself: each one holds a file handle."""

    alive = 0
    counted = False

    def __del__(self) -> None:
        _PrivateMap.alive -= self.counted


def _map_privately(path: Path, at: int, like: Array) -> Array:
    start = at - at % mmap.ALLOCATIONGRANULARITY
    with _open_plain(path) as file:
        length = at - start + like.nbytes
        mapped = _PrivateMap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    mapped.counted = True
    _PrivateMap.alive += 1
    flat = np.frombuffer(mapped, like.dtype, like.size, at - start)
    return flat.reshape(like.shape)


def _open_plain(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    return open(handle, "rb")  # noqa: PTH123 - opened from a handle


def _header_length(first: bytes, size: int) -> int:
    """The header's length, from the first eight bytes of a file of some size.

    Raises:
        ValueError: the file cannot hold such a header.
    """
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(LARGEST_HEADER, size - 8):
        raise ValueError(f"the header is said to have {length} bytes, the file has {size}")
    return length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the header names a tensor twice")
    return found


def _parse_header(raw: bytes, data_size: int) -> tuple[dict[str, str], dict[str, _Entry]]:
    """Read and check a header.

    Raises:
        ValueError: it is malformed, or its tensors do not tile the data exactly.
    """
    try:
        data = json.loads(raw, object_pairs_hook=_no_duplicates)
    except RecursionError as error:
        raise ValueError("the header is nested too deeply") from error
    if not isinstance(data, dict) or not raw.startswith(b"{"):
        raise ValueError("the header is no JSON object")
    fields = cast("dict[str, Any]", data)
    header = fields.pop("__metadata__", {})
    if not isinstance(header, dict):
        raise ValueError("__metadata__ is no JSON object")
    texts = cast("dict[str, Any]", header)
    entries = {name: _parse_entry(name, entry) for name, entry in fields.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            raise ValueError(f"tensor {name!r} leaves a gap or overlaps another")
        at = entry.stop
    if at != data_size:
        raise ValueError(f"the tensors end at byte {at} of {data_size}")
    return {k: str(v) for k, v in texts.items()}, entries


def _parse_entry(name: str, entry: Any) -> _Entry:
    try:
        dtype = _DTYPES[entry["dtype"]]
        numbers = [*entry["shape"], *entry["data_offsets"]]
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r} is not described as it should be: {error!r}") from error
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"tensor {name!r} has a size that is no natural number")
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"tensor {name!r} has {stop - start} bytes, its shape says otherwise")
    return _Entry(dtype, shape, start, stop)
