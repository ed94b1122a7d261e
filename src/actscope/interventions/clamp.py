"""Hold a projection or a neuron at a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.core.protocols import SitePlace, TokenPlaces
from actscope.interventions._base import Float64, SiteIntervention
from actscope.interventions._vectors import check_width, digest, finite_number, like, unit_vector

if TYPE_CHECKING:
    import torch

__all__ = ["INTERVENTION", "Clamp"]


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(SiteIntervention):
    """Set the projection on a direction, or some neurons, to a value.

    With a direction ``h + (value - h . u) u``, ``u = v / |v|``: the rest of ``h`` stays. With
    ``neurons`` alone these columns become ``value``.

    Attributes:
        direction: ``[width]`` of any length; with ``heads`` or ``neurons``, as wide as these.
        value: In units of the activations.

    Raises:
        BadInputError: neither a direction nor neurons, or a number that is not finite.
    """

    name: ClassVar[str] = "clamp"

    direction: Any = None
    value: float = field(kw_only=True)
    _unit: Float64 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("value", finite_number(self.value, "value"))
        if self.direction is not None:
            self._set("_unit", unit_vector(self.direction))
        elif self.neurons is None:
            raise BadInputError(
                "nothing to clamp", expected="a direction or neurons=[...]", got="neither"
            )

    @property
    def params(self) -> Mapping[str, Any]:
        """The value, and a digest of the unit direction if there is one."""
        found = {**super().params, "value": self.value}
        return found if self._unit is None else {**found, "direction": digest(self._unit)}

    @property
    def unit(self) -> Float64 | None:
        """The unit direction, if there is one."""
        return self._unit

    def fits(self, place: SitePlace, width: int) -> None:
        """The direction is as wide as the chosen columns."""
        if self._unit is not None:
            check_width(self._unit, "direction", place, width)

    def change(
        self, rows: torch.Tensor, places: TokenPlaces, columns: npt.NDArray[np.int64] | None
    ) -> torch.Tensor:
        """The rows with the projection, or the columns, at the value."""
        if self._unit is None:
            return rows.new_full(rows.shape, self.value)
        u = like(rows, self._unit)
        return rows + (self.value - rows @ u).unsqueeze(-1) * u


INTERVENTION = Clamp
