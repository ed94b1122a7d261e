"""One ``.npy`` file per layer for a whole run, filled slot by slot: ``[n, seq, d]`` or ``[n, d]``.

The file is made once, at its full size, and never rewritten: every unit has its slots. What no row
fills is zero, and is checked to be zero, so that any changed byte in a committed unit's slots is
found.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._io import fail_point, put_if_absent
from actscope.stores._npy import npy_header, read_npy_header
from actscope.stores._records import encode_unit

__all__ = ["Slots", "layer_file_name", "read_slots", "write_slots"]


def layer_file_name(key: str) -> str:
    """``activations_layer_03.npy`` for the residual stream after block 3, else the site's key."""
    match = re.fullmatch(r"blocks\.(\d+)\.resid_post", key)
    if match:
        return f"activations_layer_{int(match[1]):02d}.npy"
    return encode_unit(key).replace("%2e", ".") + ".npy"


@dataclass(frozen=True)
class Slots:
    """Where the examples of a unit lie in the files of a run.

    Attributes:
        n: Slots of the whole run.
        first: The unit's first slot.
        stop: One past its last; slots of examples that failed stay zero.
        places: The slot of each example.
    """

    n: int
    first: int
    stop: int
    places: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Slots:
        """Read what ``to_list`` wrote."""
        n, first, stop, *places = numbers
        return cls(int(n), int(first), int(stop), tuple(int(place) for place in places))

    def to_list(self) -> list[int]:
        """Numbers for JSON."""
        return [self.n, self.first, self.stop, *self.places]


def write_slots(
    path: Path, slots: Slots, rows: Array, counts: Sequence[int] | None, seq: int
) -> None:
    """Write the rows of a unit into its slots, the rest of them zero; durable when it returns.

    Args:
        path: The layer's file; it is made if there is none.
        slots: Where.
        rows: ``[sum of counts, d]``, or ``[len(places), d]`` where pooled.
        counts: Rows of each example; None where pooled.
        seq: Rows there is room for in a slot.

    Raises:
        BadInputError: the file holds arrays of another shape or dtype.
    """
    inner = rows.shape[1:] if counts is None else (seq, *rows.shape[1:])
    block = np.zeros((slots.stop - slots.first, *inner), rows.dtype.newbyteorder("<"))
    at = 0
    for i, place in enumerate(slots.places):
        if counts is None:
            block[place - slots.first] = rows[i]
        else:
            block[place - slots.first, : counts[i]] = rows[at : at + counts[i]]
            at += counts[i]
    header = npy_header(block.dtype, (slots.n, *inner))
    if not path.exists():
        put_if_absent(path, "data", header)
    with path.open("r+b") as file:
        if file.read(len(header)) != header:
            raise BadInputError(
                f"{path} holds arrays of another shape or dtype",
                expected=f"{block.dtype} {[slots.n, *inner]}",
                next_step="choose another output folder",
            )
        one = block.nbytes // len(block)
        _allocate(file.fileno(), len(header) + slots.n * one)
        file.seek(len(header) + slots.first * one)
        file.write(block.data)
        file.flush()
        fail_point("data.slots-written")
        os.fsync(file.fileno())


def _allocate(handle: int, size: int) -> None:
    """Take all the disk the file will ever need, so that a full disk shows before the work."""
    if os.fstat(handle).st_size >= size:
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        os.ftruncate(handle, size)  # a file system without allocation: a file with holes


_FULL = {errno.ENOSPC, errno.EDQUOT}


def read_slots(path: Path, slots: Slots, counts: Sequence[int] | None) -> Array:
    """The rows of a unit, a copy; see ``write_slots``.

    Raises:
        DamagedRunError: the file is not what was made, or holds something where no row lies.
    """
    layers = _mapped(path, slots.n)
    if layers.ndim < (2 if counts is None else 3):
        raise DamagedRunError(f"{path} has no room for rows", got=list(layers.shape))
    pieces: list[Array] = []
    filled = dict(zip(slots.places, counts or [1] * len(slots.places), strict=True))
    for place in range(slots.first, slots.stop):
        n = filled.get(place, 0)
        slot = layers[place : place + 1] if counts is None else layers[place]
        if slot[n:].tobytes().strip(b"\0"):
            raise DamagedRunError(
                f"{path} is damaged: slot {place} holds something where no row lies"
            )
        pieces += [slot[:n]] if n else []
    if not pieces:
        width = layers.shape[1:] if counts is None else layers.shape[2:]
        return np.zeros((0, *width), layers.dtype)
    return np.concatenate(pieces)


def _mapped(path: Path, n: int) -> Array:
    """The whole file as one array, mapped into memory.

    Raises:
        DamagedRunError: its first bytes or its size are not those of such an array.
    """
    try:
        if path.is_symlink():
            raise ValueError("a link")
        with path.open("rb") as file:
            dtype, shape, fortran = read_npy_header(file)
            start = file.tell()
            file.seek(0)
            if fortran or file.read(start) != npy_header(dtype, shape):
                raise ValueError("not the first bytes that were written")
            if not shape or shape[0] != n:
                raise ValueError(f"{shape} where {n} slots were made")
            if os.fstat(file.fileno()).st_size != start + dtype.itemsize * math.prod(shape):
                raise ValueError("its size is not its shape's")
            return np.memmap(file, dtype, "r", start, shape)
    except (OSError, ValueError, OverflowError) as error:
        raise DamagedRunError(f"{path} is not the file that was made", got=str(error)) from error
