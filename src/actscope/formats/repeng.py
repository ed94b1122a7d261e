"""The fields of repeng's ``ControlVector``, in a ``.pt`` file.

``data = torch.load("v.pt", weights_only=True)``, then ``ControlVector(data["model_type"],
{k: v.numpy() for k, v in data["directions"].items()})``. Layers are blocks from 0 on. repeng reads
and writes GGUF itself, see ``gguf``.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from actscope.formats._directions import Directions
from actscope.formats._format import DirectionFormat
from actscope.formats._torch_directions import read_vectors, tensors_of, write_pt

__all__ = ["FORMAT", "RepengFormat"]


class RepengFormat(DirectionFormat):
    """``model_type`` and ``directions``."""

    name: ClassVar[str] = "repeng"
    holds: ClassVar[str] = "directions"
    summary: ClassVar[str] = "repeng's ControlVector fields, one .pt"

    def write(self, directions: Directions, path: Path) -> None:
        """Write the dictionary."""
        vectors = tensors_of(directions.vectors)
        write_pt({"model_type": directions.model_type, "directions": vectors}, path)

    def read(self, path: Path) -> Directions:
        """Read the dictionary.

        Raises:
            DamagedRunError: it cannot be read.
        """
        fields, vectors = read_vectors(path, "directions")
        return Directions(vectors, str(fields.get("model_type", "")))


FORMAT = RepengFormat()
