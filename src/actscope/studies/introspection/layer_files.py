"""The activations of a pass: ``.npy`` files by layer, ``[questions, seq, d]``, padded on the left.

Each file is made once at its full size and every unit is written straight into its questions'
place, so the disk is used once; padding is what was never written, and reads as zeros. A unit's
bytes are flushed before its commit record says that they are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError, NumericRangeError
from actscope.stores import TEMP_PREFIX, checksum, disk_errors, make_folder, sync_folder

__all__ = ["LayerFiles", "layer_file_name", "left_padded"]


def layer_file_name(layer: int) -> str:
    """``activations_layer_03.npy``."""
    return f"activations_layer_{layer:02d}.npy"


@dataclass(frozen=True)
class LayerFiles:
    """The files of one pass.

    Attributes:
        folder: Of the pass.
        layers: Blocks whose output is stored.
        shape: ``[questions, seq, d]``.
        dtype: ``float16`` or ``float32``.
    """

    folder: Path
    layers: tuple[int, ...]
    shape: tuple[int, int, int]
    dtype: str

    @property
    def bytes(self) -> int:
        """Of all files, headers left aside."""
        return len(self.layers) * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def create(self, *, begun: bool = False) -> None:
        """Make what is missing, at its full size.

        Args:
            begun: Whether units are on record. A file that is missing then held their rows, and an
                empty one in its place would read as zeros.

        Raises:
            DamagedRunError: a file is there with another shape, or is missing from a collection
                that has begun.
        """
        make_folder(self.folder)
        for layer in self.layers:
            path = self.folder / layer_file_name(layer)
            if path.exists():
                self._check(path)
                continue
            if begun:
                raise _missing(path)
            draft = path.with_name(f"{TEMP_PREFIX}{path.name}-{os.getpid()}")
            with disk_errors(f"making {path.name}", path):
                made = np.lib.format.open_memmap(
                    draft, mode="w+", dtype=np.dtype(self.dtype), shape=self.shape
                )
                made.flush()
                del made
                draft.replace(path)
        sync_folder(self.folder)

    def write(self, layer: int, start: int, block: Array) -> str:
        """Put the rows of some questions in place; they are on the disk when this returns.

        Args:
            layer: Which.
            start: Place of the first question within the file.
            block: ``[k, seq, d]``.

        Returns:
            The checksum of the block.
        """
        path = self.folder / layer_file_name(layer)
        block = np.ascontiguousarray(block, dtype=self.dtype)
        step = block[0].nbytes
        data = path.stat().st_size - step * self.shape[0]
        with disk_errors(f"writing {path.name}", path):
            handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                _write_all(handle, block, data + start * step)
                os.fsync(handle)
            finally:
                os.close(handle)
        return checksum(block)

    def read(self, layer: int) -> Array:
        """``[questions, seq, d]``, mapped and read-only.

        Raises:
            DamagedRunError: there is none, or it has another shape.
        """
        path = self.folder / layer_file_name(layer)
        if not path.is_file():
            raise _missing(path)
        self._check(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _check(self, path: Path) -> None:
        try:
            found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise DamagedRunError(f"{path} is no .npy file", got=str(error)[:120]) from error
        if found.shape != self.shape or found.dtype != np.dtype(self.dtype):
            raise DamagedRunError(
                f"{path} has another shape than the run says",
                got=f"{found.dtype} {list(found.shape)}",
                expected=f"{self.dtype} {list(self.shape)}",
            )


def _missing(path: Path) -> DamagedRunError:
    return DamagedRunError(
        f"{path} is missing",
        expected="the rows of every unit on record",
        next_step=f"put it back, or delete {path.parent.parent} and collect again",
    )


def left_padded(
    rows: Array, bounds: Sequence[tuple[int, int]], seq: int, dtype: str, names: Mapping[str, Any]
) -> Array:
    """Rows of some prompts as a block whose last column is each prompt's last token.

    Args:
        rows: ``[tokens, d]``.
        bounds: First row and one past the last of each prompt.
        seq: Columns of the block.
        dtype: Of the block.
        names: ``layer`` and ``ids`` (one a prompt), for the error.

    Returns:
        ``[prompts, seq, d]``, zeros before the first token.

    Raises:
        NumericRangeError: a value does not fit the dtype; the message names layer, prompt, token
            and the largest magnitude.
    """
    block = np.zeros((len(bounds), seq, rows.shape[1]), np.dtype(dtype))
    for place, (start, stop) in enumerate(bounds):
        values: npt.NDArray[np.float32] = rows[start:stop].astype(np.float32, copy=False)
        if dtype == "float16":
            _refuse_overflow(values, names, place)
        block[place, seq - (stop - start) :] = values
    return block


def _refuse_overflow(values: npt.NDArray[np.float32], names: Mapping[str, Any], place: int) -> None:
    sizes = np.abs(values).max(axis=1, initial=0.0)
    most = float(np.finfo(np.float16).max)
    bad = ~(sizes <= most)  # NaN is no size
    if not bad.any():
        return
    token = int(np.argmax(bad))
    raise NumericRangeError(
        f"a value of layer {names['layer']} does not fit float16",
        got=f"{sizes[token]:.6g} at token {token} of {names['ids'][place]!r}; the largest of the "
        f"prompt is {np.nanmax(sizes) if np.isfinite(sizes).any() else np.nan:.6g}",
        expected=f"at most {most:g}",
        next_step="--dtype float32 in a new folder",
    )


def _write_all(handle: int, block: Array, offset: int) -> None:
    view = memoryview(block.data).cast("B")
    at = 0
    while at < len(view):
        at += os.pwrite(handle, view[at:], offset + at)
