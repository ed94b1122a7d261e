"""The fields of ``SteeringVector`` of the library steering-vectors, in a ``.pt`` file.

``SteeringVector(**torch.load("v.pt", weights_only=True))`` is the object. Layers are decoder blocks
from 0 on; a vector is added to the block's output.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from actscope.core.errors import BadInputError
from actscope.formats._directions import Directions
from actscope.formats._format import DirectionFormat
from actscope.formats._torch_directions import read_vectors, tensors_of, write_pt

__all__ = ["FORMAT", "SteeringVectorsFormat"]

_TYPE = "decoder_block"


class SteeringVectorsFormat(DirectionFormat):
    """``layer_activations`` and ``layer_type``."""

    name: ClassVar[str] = "steering_vectors"
    holds: ClassVar[str] = "directions"
    summary: ClassVar[str] = "steering-vectors' SteeringVector fields, one .pt"

    def write(self, directions: Directions, path: Path) -> None:
        """Write the dictionary."""
        vectors = tensors_of(directions.vectors)
        write_pt({"layer_activations": vectors, "layer_type": _TYPE}, path)

    def read(self, path: Path) -> Directions:
        """Read the dictionary.

        Raises:
            DamagedRunError: it cannot be read.
            BadInputError: it steers something else than block outputs.
        """
        fields, vectors = read_vectors(path, "layer_activations")
        if fields.get("layer_type", _TYPE) != _TYPE:
            raise BadInputError(
                f"{path} steers another part of a layer",
                got=str(fields["layer_type"])[:80],
                expected=_TYPE,
                next_step="only outputs of whole blocks are read",
            )
        return Directions(vectors)


FORMAT = SteeringVectorsFormat()
