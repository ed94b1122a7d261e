"""The first bytes of a ``.npy`` file, read by a pattern: nothing is evaluated, objects are refused.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import re
from typing import Any, BinaryIO

import numpy as np

from actscope.core.arrays import Array

__all__ = ["npy_header", "parse_npy", "read_npy_header"]

_LARGEST_HEADER = 10_000
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf][0-9]{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]*)\), \} *\n"
)


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The first bytes of a ``.npy`` file of a shape (version 1.0, C order)."""
    file = io.BytesIO()
    data = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, data)
    return file.getvalue()


def read_npy_header(file: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """(dtype, shape, whether in Fortran order); the file stands at the first value afterwards.

    Raises:
        ValueError: it is no array of plain numbers.
    """
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError("it does not begin as an npy file")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _LARGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    match = _HEADER.fullmatch(file.read(length))
    if match is None:
        raise ValueError("no plain array of numbers: objects, records and texts are not read")
    try:
        dtype = np.dtype(match[1].decode("ascii"))
        shape = tuple(int(n) for n in match[3].split(b",") if n.strip())
    except (TypeError, ValueError) as error:
        raise ValueError(f"no plain array of numbers: {error}") from error
    return dtype, shape, match[2] == b"True"


def parse_npy(raw: bytes) -> Array:
    """An array over the bytes of a ``.npy`` file: plain numbers, as many as there are bytes.

    Raises:
        ValueError: it is something else.
    """
    file = io.BytesIO(raw)
    dtype, shape, fortran = read_npy_header(file)
    if fortran:
        raise ValueError("an array in Fortran order")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape)
