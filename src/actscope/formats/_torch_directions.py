"""Directions as dictionaries of tensors in a ``.pt`` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.formats.pt import load_pt, numpy_of
from actscope.stores import disk_errors, make_folder, publish

__all__ = ["read_vectors", "tensors_of", "write_pt"]


def tensors_of(vectors: Mapping[int, Array]) -> dict[int, Any]:
    """Float32 tensors by layer."""
    import torch

    return {
        int(layer): torch.from_numpy(np.array(vector, np.float32))
        for layer, vector in sorted(vectors.items())
    }


def write_pt(data: Mapping[str, Any], path: Path) -> None:
    """Write a dictionary to a file that appears whole or not at all."""
    import torch

    with disk_errors("writing directions", path):
        folder = path.absolute().parent
        make_folder(folder)
        publish(folder, "export", lambda f: torch.save(dict(data), f), lambda _: path.name)


def read_vectors(path: Path, key: str) -> tuple[dict[str, Any], dict[int, Array]]:
    """(the dictionary, its vectors by layer).

    Raises:
        DamagedRunError: the file holds no such dictionary.
    """
    data = load_pt(path)
    try:
        fields = cast("dict[str, Any]", dict(data))
        vectors: dict[int, Array] = {}
        for layer, tensor in dict(fields[key]).items():
            if type(layer) is not int:
                raise ValueError(f"a layer {layer!r}")
            vectors[layer] = numpy_of(tensor).reshape(-1).astype(np.float32)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamagedRunError(
            f"{path} holds no directions",
            got=str(error)[:300],
            expected=f"a dictionary with {key!r}: tensors by layer",
            next_step="save such a dictionary with torch.save",
        ) from error
    return fields, vectors
