"""One ``.pt`` a unit: ``torch.load(file, weights_only=True)`` gives a dictionary of tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from actscope.core.arrays import DTYPES, Array, to_torch
from actscope.core.errors import DamagedRunError
from actscope.formats._parts import PartFormat
from actscope.stores import FileSums, UnitFormat

__all__ = ["FORMAT", "PtFormat", "load_pt", "numpy_of"]


def load_pt(path: Path) -> Any:
    """What a ``.pt`` file holds, tensors mapped from the file; nothing of it is run.

    Raises:
        DamagedRunError: it is no plain torch archive, or asks for more than tensors.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise ValueError(f"{member.filename} is compressed or encrypted")
                if member.filename.startswith("/") or ".." in member.filename.split("/"):
                    raise ValueError(f"{member.filename} leads out of the archive")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its parser meets
        raise DamagedRunError(
            f"{path} is no file of plain tensors; nothing of it was run",
            got=_reason(error),
            expected="what torch.load(..., weights_only=True) reads",
            next_step="save tensors, in lists and dictionaries, with torch.save",
        ) from error


def _reason(error: Exception) -> str:
    """What torch met; not its advice, which is to load the file with code and all."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is not None:
        return f"it names {named[1][:200]}"
    if isinstance(error, pickle.UnpicklingError):
        return "it asks for more than tensors"
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def numpy_of(tensor: Any) -> Array:
    """A dense CPU tensor as numpy, over the same memory, bfloat16 included.

    Raises:
        ValueError: it is sparse, quantised, complex or on no device.
    """
    import torch

    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_complex():
        raise ValueError(f"a tensor that is not dense numbers: {tensor.layout}, {tensor.dtype}")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        raw = cast("Array", tensor.contiguous().view(torch.int16).numpy())
        return raw.view(DTYPES["bfloat16"])
    return cast("Array", tensor.numpy())


def _write(file: BinaryIO, tensors: Mapping[str, Array], header: Mapping[str, str]) -> FileSums:
    import torch

    plain: dict[str, Any] = {name: to_torch(np.asarray(array)) for name, array in tensors.items()}
    torch.save({"header": dict(header), "tensors": plain}, file)
    return FileSums("", {})


class _PtFile:
    """A file that was read; its tensors stay in the file's own pages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = load_pt(path)
        if not isinstance(data, dict):
            data = {"tensor": data}
        self._data = cast("dict[str, Any]", data)
        header = self._data.get("header", {})
        self.header: dict[str, str] = {str(k): str(v) for k, v in dict(header).items()}

    def names(self) -> list[str]:
        """Its tensors, those of nested dictionaries too."""
        return list(self._tensors())

    def _tensors(self) -> dict[str, Any]:
        import torch

        inner = self._data.get("tensors", self._data)
        data = cast("dict[Any, Any]", inner if isinstance(inner, dict) else self._data)
        return {str(k): v for k, v in data.items() if isinstance(v, torch.Tensor)}

    def read(self, name: str) -> Array:
        """One tensor, read-only."""
        tensors = self._tensors()
        try:
            array = numpy_of(tensors[name])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DamagedRunError(
                f"{self._path} holds no readable tensor {name!r}",
                got=str(error)[:300],
                next_step="save dense tensors",
            ) from error
        array = array.view()
        array.flags.writeable = False
        return array

    def close(self) -> None:
        """Let go of the tensors."""
        self._data = {}


class PtFormat(PartFormat):
    """torch files of tensors."""

    name: ClassVar[str] = "pt"
    summary: ClassVar[str] = "one .pt a unit, a tensor a site, for torch.load(weights_only=True)"
    keeps_bfloat16: ClassVar[bool] = True
    unit_format: ClassVar[UnitFormat] = UnitFormat(
        name="pt", folder="", suffix=".pt", keeps_bfloat16=True, write=_write, read=_PtFile
    )
    other_suffixes: ClassVar[tuple[str, ...]] = (".pth",)


FORMAT = PtFormat()
