"""llama.cpp's control vectors: ``llama-cli --control-vector v.gguf``; repeng reads them too.

A tensor ``direction.L`` is added to the output of block L, counted from 0. Block 0 has none: its
number is refused by llama.cpp's loader, so it is refused here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actscope.core.errors import BadInputError, DamagedRunError
from actscope.formats._directions import Directions
from actscope.formats._format import DirectionFormat, needs
from actscope.stores import TEMP_PREFIX, disk_errors, make_folder, sync_folder

__all__ = ["FORMAT", "GgufFormat"]

_ARCH = "controlvector"
_MOST_TENSORS = 4096
_MOST_FIELDS = 4096
_LARGEST = 4 << 30


class GgufFormat(DirectionFormat):
    """GGUF control vectors."""

    name: ClassVar[str] = "gguf"
    holds: ClassVar[str] = "directions"
    summary: ClassVar[str] = "a llama.cpp control vector, one .gguf; layers from 1 on"
    extra: ClassVar[str] = "gguf"

    def write(self, directions: Directions, path: Path) -> None:
        """Write the file under another name, then give it its own."""
        gguf = _library()
        if 0 in directions.vectors:
            raise BadInputError(
                "a GGUF control vector has no direction for layer 0: llama.cpp refuses the file",
                next_step="--layers takes the others, such as --layers 1,2,3",
            )
        make_folder(path.absolute().parent)
        temp = path.with_name(f"{TEMP_PREFIX}{path.name}-{os.getpid()}")
        with disk_errors("writing directions", path):
            try:
                writer = gguf.GGUFWriter(temp, _ARCH)
                writer.add_string(f"{_ARCH}.model_hint", directions.model_type or "unknown")
                writer.add_uint32(f"{_ARCH}.layer_count", max(directions.vectors))
                for layer, vector in sorted(directions.vectors.items()):
                    writer.add_tensor(f"direction.{layer}", np.asarray(vector, np.float32))
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
                writer.close()
                with temp.open("rb") as file:
                    os.fsync(file.fileno())
                temp.replace(path)
                sync_folder(path.absolute().parent)
            finally:
                temp.unlink(missing_ok=True)

    def read(self, path: Path) -> Directions:
        """Read a file after a look at how much it says it holds."""
        gguf = _library()
        try:
            _check_counts(path)
            reader = gguf.GGUFReader(path)
            if _text(reader, "general.architecture") != _ARCH:
                raise ValueError("a GGUF file, but no control vector")
            vectors = {_layer(t.name): _vector(t) for t in reader.tensors}
            hint = _text(reader, f"{_ARCH}.model_hint")
            return Directions(vectors, hint)
        except BadInputError as error:
            raise DamagedRunError(f"{path} holds no directions", got=error.what) from error
        except Exception as error:  # the parser raises whatever it meets
            raise DamagedRunError(
                f"{path} cannot be read as a GGUF control vector",
                got=str(error)[:300] or type(error).__name__,
                next_step="write the file again",
            ) from error


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise needs("gguf", "gguf", error) from error
    return gguf


def _check_counts(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(24)
        size = os.fstat(file.fileno()).st_size
    if len(head) < 24 or head[:4] != b"GGUF" or head[4:8] not in (b"\2\0\0\0", b"\3\0\0\0"):
        raise ValueError("it does not begin as a GGUF file of version 2 or 3")
    tensors, fields = (int.from_bytes(head[at : at + 8], "little") for at in (8, 16))
    if tensors > _MOST_TENSORS or fields > _MOST_FIELDS or size > _LARGEST:
        raise ValueError(f"{tensors} tensors and {fields} fields in {size} bytes")


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(bytes(field.parts[-1]), "utf-8")


def _layer(name: str) -> int:
    match = re.fullmatch(r"direction\.(\d{1,5})", name)
    if match is None:
        raise ValueError(f"a tensor {name[:80]!r}, which is no direction")
    return int(match[1])


def _vector(tensor: Any) -> Any:
    if tensor.data.dtype != np.float32 or tensor.data.ndim != 1:
        raise ValueError(f"{tensor.name} is no vector of float32")
    return np.array(tensor.data)


FORMAT = GgufFormat()
