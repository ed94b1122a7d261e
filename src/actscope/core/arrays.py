"""numpy is the language of stores, torch the language of the door; this is the bridge.

bfloat16 is carried in numpy by ``ml_dtypes``; both directions share memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from actscope.core.errors import UnknownNameError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "Array", "dtype_name", "dtype_of", "to_float32", "to_torch"]

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name of ``DTYPES``."""
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return DTYPES[name]


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a numpy dtype, ``bfloat16`` included."""
    return str(np.dtype(dtype).name)


def to_torch(array: Array) -> torch.Tensor:
    """A torch CPU tensor over the same memory (a copy only where the array is read-only)."""
    import torch

    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_float32(array: Array) -> npt.NDArray[np.float32]:
    """The same values in float32; no copy where they are float32 already."""
    return np.asarray(array, dtype=np.float32)
