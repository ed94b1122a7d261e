"""Fewer bytes for a tensor: ``zstd`` without loss, ``int8`` with one exponent for 32 values.

A coded tensor lies in its data file as plain bytes, so every store can hold it. Its commit record
keeps the dtype and shape of the values, the checksum of the values as they are read back, and what
coding cost. ``int8`` is MXINT8 of the OCP Microscaling Formats 1.0: a value is an integer of -127
to 127 times a power of two, which every float dtype holds exactly. So what was read back and is
coded once more, as merging does, gives the same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import DTYPES, Array, dtype_name
from actscope.core.coding import INT8_BLOCK
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._formats import TensorFile
from actscope.stores._records import Coding, TensorEntry

__all__ = ["CODECS", "coded", "require_codec", "values_of"]

_FLOATS = ("float32", "float16", "bfloat16")
_LEVEL = 3
_LOWEST, _HIGHEST = -127, 121
_PIECE = 1 << 20

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Codec:
    """How an array becomes bytes, and bytes of a known dtype and shape the array.

    Attributes:
        encode: None for an array that it does not keep.
        decode: May raise anything where the bytes are not what ``encode`` made.
    """

    encode: Callable[[Array], _Bytes | None]
    decode: Callable[[_Bytes, np.dtype[Any], tuple[int, ...]], Array]


def require_codec(name: str) -> None:
    """Refuse a codec whose library is not there before anything is captured.

    Raises:
        BadInputError: with the command that installs it.
    """
    if name == "zstd":
        _zstandard()


def coded(name: str, array: Array) -> tuple[_Bytes, Array, Coding] | None:
    """An array's bytes, the values that will be read back, and what that cost.

    Args:
        name: One of ``CODECS``.
        array: Activations, any shape.

    Returns:
        None where the codec does not keep the array: ``int8`` takes finite float32, float16 and
        bfloat16 only.
    """
    if not array.size:
        return None
    data = CODECS[name].encode(array)
    if data is None:
        return None
    back = CODECS[name].decode(data, array.dtype, array.shape)
    largest, relative = _errors(array, back)
    return data, back, Coding(name, data.nbytes, largest, relative)


def values_of(file: TensorFile, name: str, entry: TensorEntry) -> Array:
    """A tensor of a data file as it was given to the store, whatever lies there.

    Raises:
        DamagedRunError: the bytes cannot be what was written.
    """
    stored = file.read(name)
    coding = entry.coding
    if coding is None:
        return stored
    if coding.codec not in CODECS:
        raise BadInputError(
            f"tensor {name!r} is kept in a way this actscope does not know",
            got=coding.codec,
            expected="one of " + ", ".join(CODECS),
            next_step="pip install --upgrade actscope",
        )
    if stored.dtype != np.uint8 or stored.shape != (coding.bytes,):
        raise DamagedRunError(
            f"tensor {name!r} is damaged: it is not what was committed",
            got=f"{dtype_name(stored.dtype)} {list(stored.shape)}",
            expected=f"{coding.bytes} bytes of {coding.codec}",
        )
    dtype = DTYPES.get(entry.dtype) or np.dtype(entry.dtype)
    try:
        array = CODECS[coding.codec].decode(stored, dtype, entry.shape)
    except BadInputError:  # the library is not installed
        raise
    except Exception as error:  # a library's own errors; any of them means other bytes
        raise DamagedRunError(
            f"tensor {name!r} is damaged: its bytes are no {coding.codec}", got=str(error)
        ) from error
    array.flags.writeable = False
    return array


def _errors(array: Array, back: Array) -> tuple[float, float]:
    """Largest absolute error, and root of the summed squared errors over that of the values."""
    if back.tobytes() == array.tobytes():
        return 0.0, 0.0
    a, b = array.reshape(-1), back.reshape(-1)
    largest = error = size = 0.0
    for at in range(0, len(a), _PIECE):
        x = a[at : at + _PIECE].astype(np.float64)
        gap = x - b[at : at + _PIECE].astype(np.float64)
        largest = max(largest, float(np.abs(gap).max()))
        error += float(gap @ gap)
        size += float(x @ x)
    return largest, math.sqrt(error / size) if size else 0.0


def _to_int8(array: Array) -> _Bytes | None:
    """Exponents ``[n, blocks]``, then integers ``[n, width]``, both int8."""
    if dtype_name(array.dtype) not in _FLOATS:
        return None
    rows = array.reshape(-1, array.shape[-1])
    exponents = np.empty((len(rows), -(-rows.shape[1] // INT8_BLOCK)), np.int8)
    values = np.empty(rows.shape, np.int8)
    step = max(1, _PIECE // rows.shape[1])
    for at in range(0, len(rows), step):
        piece = rows[at : at + step].astype(np.float32)
        if not np.isfinite(piece).all():
            return None
        exponents[at : at + step], values[at : at + step] = _quantised(piece)
    return np.concatenate([exponents.reshape(-1), values.reshape(-1)]).view(np.uint8)


def _quantised(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    starts = np.arange(0, rows.shape[1], INT8_BLOCK)
    largest = np.maximum.reduceat(np.abs(rows), starts, axis=1)
    exponents = np.clip(np.frexp(largest)[1] - 7, _LOWEST, _HIGHEST)  # largest: 64 to 128 steps
    steps = np.repeat(exponents, INT8_BLOCK, axis=1)[:, : rows.shape[1]]
    with np.errstate(under="ignore"):
        values = np.clip(np.rint(np.ldexp(rows, -steps)), -127, 127)
    return exponents.astype(np.int8), values.astype(np.int8)


def _from_int8(data: _Bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    width = shape[-1]
    count, blocks = math.prod(shape[:-1]), -(-width // INT8_BLOCK)
    if len(data) != count * (blocks + width):
        raise ValueError(f"{len(data)} bytes do not make {list(shape)}")
    both = data.view(np.int8)
    exponents = both[: count * blocks].reshape(count, blocks)
    values = both[count * blocks :].reshape(count, width)
    result: Array = np.empty((count, width), dtype)
    step = max(1, _PIECE // width)
    for at in range(0, count, step):
        steps = np.repeat(exponents[at : at + step].astype(np.int32), INT8_BLOCK, axis=1)
        piece = values[at : at + step].astype(np.float32)
        result[at : at + step] = np.ldexp(piece, steps[:, :width])
    return result.reshape(shape)


def _to_zstd(array: Array) -> _Bytes:
    """First bytes of all values, then second bytes, and so on, as one zstd frame.

    Signs and exponents of neighbours are alike and mantissas are noise: apart they compress better.
    """
    planes = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
    packer = _zstandard().ZstdCompressor(level=_LEVEL)
    return np.frombuffer(packer.compress(np.ascontiguousarray(planes.T).data), np.uint8)


def _from_zstd(data: _Bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    library = _zstandard()
    size = math.prod(shape) * dtype.itemsize
    frame = data.tobytes()
    told = library.frame_content_size(frame)
    if told != size:  # before anything that large is made
        raise ValueError(f"a frame of {told} bytes for {size}")
    raw = np.frombuffer(library.ZstdDecompressor().decompress(frame, max_output_size=size), "u1")
    planes = raw.reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(shape)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise BadInputError(
            "the codec zstd needs zstandard",
            got=str(error),
            next_step="pip install 'actscope[zstd]', or write with another codec",
        ) from error
    return zstandard


CODECS: Mapping[str, _Codec] = {
    "int8": _Codec(_to_int8, _from_int8),
    "zstd": _Codec(_to_zstd, _from_zstd),
}
"""Every codec of ``core.coding.CODEC_NAMES``."""
