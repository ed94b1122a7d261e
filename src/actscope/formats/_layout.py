"""Where each unit's part of a tensor lies when the units of a run are laid end to end."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from actscope.core.arrays import DTYPES, Array
from actscope.core.errors import BadInputError

__all__ = ["Layout", "UnitShape", "out_dtype"]


@dataclass(frozen=True)
class UnitShape:
    """What the tensors of one unit look like.

    Attributes:
        shapes: Shape of each tensor.
        ends: The last value of each offsets table.
    """

    shapes: dict[str, tuple[int, ...]]
    ends: dict[str, int] = field(default_factory=dict[str, int])


def out_dtype(stored: str, keeps_bfloat16: bool) -> np.dtype[Any]:
    """The dtype that a stored one goes out in: bfloat16 becomes float32 where there is none.

    Raises:
        ValueError: it is no dtype of plain numbers.
    """
    dtype = DTYPES.get(stored)
    if dtype is None:
        if not re.fullmatch(r"u?int(8|16|32|64)", stored):
            raise ValueError(f"a dtype {stored[:80]!r}")
        dtype = np.dtype(stored)
    return DTYPES["float32"] if dtype == DTYPES["bfloat16"] and not keeps_bfloat16 else dtype


class Layout:
    """The tensors of all units as one: ``blocks.3.resid_post`` is ``[sum of rows of the run, d]``.

    Offsets tables overlap by one value: a unit's first is the last of the unit before.

    Raises:
        BadInputError: the units hold different tensors, or rows of different width.
    """

    def __init__(self, units: Sequence[UnitShape]) -> None:
        self.names = tuple(units[0].shapes) if units else ()
        self._starts: dict[str, list[int]] = {}
        self._bases: dict[str, list[int]] = {}
        self._inner: dict[str, tuple[int, ...]] = {}
        for unit in units:
            if unit.shapes.keys() != set(self.names):
                raise BadInputError(
                    "the units of this run hold different tensors",
                    got=sorted(set(self.names) ^ unit.shapes.keys())[:5],
                    next_step="--sites takes the sites that every unit holds",
                )
        for name in self.names:
            one = int(name.endswith(".offsets"))
            self._starts[name] = [0, *accumulate(u.shapes[name][0] - one for u in units)]
            self._bases[name] = [0, *accumulate(u.ends.get(name, 0) for u in units)]
            inner = {u.shapes[name][1:] for u in units}
            if len(inner) > 1:
                raise BadInputError(f"the units hold {name} in different shapes", got=inner)
            self._inner[name] = inner.pop()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the whole run."""
        return (self._starts[name][-1] + name.endswith(".offsets"), *self._inner[name])

    def place(self, name: str, unit: int) -> tuple[int, int]:
        """The first row of a unit's part, and one past its last."""
        start, stop = self._starts[name][unit : unit + 2]
        return start, stop + name.endswith(".offsets")

    def base(self, name: str, unit: int) -> int:
        """What is added to a unit's offsets to make them those of the run; 0 for all else."""
        return self._bases[name][unit]

    def rows(self, name: str, start: int, stop: int, read: Callable[[int], Array]) -> Array:
        """Some rows of a tensor of the whole run; units are read one at a time.

        Args:
            name: The tensor.
            start: First row.
            stop: One past the last.
            read: The tensor of a unit.
        """
        starts = self._starts[name]
        pieces: list[Array] = []
        unit = min(bisect_right(starts, start) - 1, len(starts) - 2)
        at = start
        while at < stop and unit < len(starts) - 1:
            first, last = self.place(name, unit)
            if at < last:
                piece = read(unit)[at - first : stop - first]
                pieces.append(piece + self.base(name, unit) if self._is_offsets(name) else piece)
                at += len(piece)
            unit += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @staticmethod
    def _is_offsets(name: str) -> bool:
        return name.endswith(".offsets")
