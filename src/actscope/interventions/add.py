"""Add a direction: steering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from actscope.core.protocols import SitePlace, TokenPlaces
from actscope.interventions._base import Float64, SiteIntervention
from actscope.interventions._vectors import check_width, digest, finite_number, like, unit_vector

if TYPE_CHECKING:
    import torch

__all__ = ["INTERVENTION", "Add"]


@dataclass(frozen=True, eq=False, repr=False)
class Add(SiteIntervention):
    """Add ``strength`` times the unit direction: ``h + strength * v / |v|``.

    Activation addition (Turner et al., "Activation addition: steering language models without
    optimization", 2023). Strength 0 leaves every value as it is, bitwise.

    Attributes:
        direction: ``[width]`` of any length; with ``heads`` or ``neurons``, as wide as these.
        strength: In units of the activations; negative goes the other way.

    Raises:
        BadInputError: a direction or strength that is not finite, or the zero vector.
    """

    name: ClassVar[str] = "add"

    direction: Any
    strength: float = field(kw_only=True)
    _unit: Float64 = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("_unit", unit_vector(self.direction))
        self._set("strength", finite_number(self.strength, "strength"))

    @property
    def params(self) -> Mapping[str, Any]:
        """Strength, and a digest of the unit direction."""
        return {**super().params, "strength": self.strength, "direction": digest(self._unit)}

    @property
    def unit(self) -> Float64 | None:
        """The unit direction."""
        return self._unit

    def fits(self, place: SitePlace, width: int) -> None:
        """The direction has the site's width."""
        check_width(self._unit, "direction", place, width)

    def change(
        self, rows: torch.Tensor, places: TokenPlaces, columns: npt.NDArray[np.int64] | None
    ) -> torch.Tensor:
        """``rows + strength * unit``."""
        return rows + self.strength * like(rows, self._unit)


INTERVENTION = Add
