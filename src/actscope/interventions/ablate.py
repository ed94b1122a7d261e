"""Take something away: everything, everything but the mean, or the component along a direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.core.protocols import SitePlace, TokenPlaces
from actscope.interventions._base import Float64, SiteIntervention
from actscope.interventions._vectors import check_width, digest, like, unit_vector, vector

if TYPE_CHECKING:
    import torch

__all__ = ["INTERVENTION", "Ablate"]


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(SiteIntervention):
    """Remove what a site says.

    ========================  =================================================================
    ``Ablate()``              zero ablation: every value becomes 0
    ``Ablate(mean=m)``        mean ablation: every row becomes ``m``
    ``Ablate(direction)``     directional ablation: ``h - (h . u) u`` with ``u = v / |v|``
    ========================  =================================================================

    Directional ablation is that of Arditi et al., "Refusal in language models is mediated by a
    single direction", 2024.

    Attributes:
        direction: ``[width]`` of any length; with ``heads`` or ``neurons``, as wide as these.
        mean: ``[width of the site]``, such as ``batch.numpy("mlp_out", 3).mean(0)``.

    Raises:
        BadInputError: both, a value that is not finite, or the zero vector as direction.
    """

    name: ClassVar[str] = "ablate"

    direction: Any = None
    mean: Any = field(default=None, kw_only=True)
    _unit: Float64 | None = field(init=False, default=None)
    _mean: Float64 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction is not None and self.mean is not None:
            raise BadInputError(
                "ablate a direction or replace by a mean, not both",
                next_step="Clamp(direction, value=...) sets a projection to that of a mean",
            )
        if self.direction is not None:
            self._set("_unit", unit_vector(self.direction))
        if self.mean is not None:
            self._set("_mean", vector(self.mean, "mean"))

    @property
    def params(self) -> Mapping[str, Any]:
        """What is removed, and a digest of the vector it needs."""
        found: dict[str, Any] = {**super().params, "kind": "zero"}
        if self._unit is not None:
            found |= {"kind": "direction", "direction": digest(self._unit)}
        if self._mean is not None:
            found |= {"kind": "mean", "mean": digest(self._mean)}
        return found

    @property
    def unit(self) -> Float64 | None:
        """The direction that is removed, if it is one."""
        return self._unit

    def fits(self, place: SitePlace, width: int) -> None:
        """The direction is as wide as the chosen columns, the mean as wide as the site."""
        if self._unit is not None:
            check_width(self._unit, "direction", place, width)
        if self._mean is not None:
            check_width(self._mean, "mean", place, place.width)

    def change(
        self, rows: torch.Tensor, places: TokenPlaces, columns: npt.NDArray[np.int64] | None
    ) -> torch.Tensor:
        """Zeros, the mean, or the rows without their component along the direction."""
        if self._mean is not None:
            mean = self._mean if columns is None else self._mean[columns]
            return like(rows, mean).expand_as(rows).clone()
        if self._unit is None:
            return rows.new_zeros(rows.shape)
        u = like(rows, self._unit)
        return rows - (rows @ u).unsqueeze(-1) * u


INTERVENTION = Ablate
