"""A unit's arrays, filled batch by batch, every example at its own place.

Batches go by length and a unit is in dataset order. What each example will need is known before the
first pass, so the arrays are made once and every batch is copied to where it belongs: nothing is
held twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch, ExampleRecord, TokenRow
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError
from actscope.core.sites import Site

__all__ = ["Assembly", "UnitMemory"]


class UnitMemory:
    """The memory of one unit's arrays, for a later unit to use again.

    Memory that is touched for the first time costs more than what is copied into it.
    """

    def __init__(self) -> None:
        self._flat: dict[Site, Array] = {}

    def take(self, site: Site, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of a site, uninitialised."""
        size = math.prod(shape) * dtype.itemsize
        if site not in self._flat or self._flat[site].nbytes < size:
            self._flat.pop(site, None)  # let go of the smaller one first
            self._flat[site] = np.empty(size, dtype=np.uint8)
        return self._flat[site][:size].view(dtype).reshape(shape)


class Assembly:
    """The arrays of a unit in the making.

    Args:
        rows: Its examples, in dataset order.
        kept: How many tokens of each are kept.
        memory: Where its arrays lie.
    """

    def __init__(
        self, rows: Sequence[TokenRow], kept: Sequence[int], memory: UnitMemory | None = None
    ) -> None:
        self._memory = memory or UnitMemory()
        self._rows = rows
        self._kept = np.asarray(kept, dtype=np.int64)
        self._tokens = np.asarray([len(row) for row in rows], dtype=np.int64)
        self._arrays: dict[Site, Array] = {}
        self._bounds: dict[Site, npt.NDArray[np.int64]] = {}
        self._positions = np.empty(int(self._kept.sum()), dtype=np.int32)
        self._row_bounds = _bounds(self._kept)
        self._first: ActivationBatch | None = None
        self._there = np.zeros(len(rows), dtype=np.bool_)

    def __len__(self) -> int:
        """How many examples have arrived."""
        return int(self._there.sum())

    def put(self, part: ActivationBatch, places: Sequence[int]) -> None:
        """Copy a batch to where its examples belong.

        Args:
            part: Without failures; its memory may be used again afterwards.
            places: The place of each of its examples in the unit.

        Raises:
            BadInputError: an example has another number of rows than was planned.
        """
        if self._first is None:
            self._make(part)
        for site, array in part.arrays.items():
            _copy(array, _of(part, site), self._arrays[site], self._bounds[site], places)
        if not part.pooled:
            _copy(part.positions, part.offsets, self._positions, self._row_bounds, places)
        self._there[list(places)] = True

    def _make(self, part: ActivationBatch) -> None:
        self._first = replace(part, arrays={}, examples=())
        for site, array in part.arrays.items():
            if part.is_pooled(site):
                counts = np.ones(len(self._rows), dtype=np.int64)
            elif site.layout == "blocks":
                counts = self._kept * self._tokens * part.heads[site]
            else:
                counts = self._kept
            bounds = self._bounds[site] = _bounds(counts)
            shape = (int(bounds[-1]), *array.shape[1:])
            self._arrays[site] = self._memory.take(site, shape, array.dtype)

    def batch(self, records: Sequence[ExampleRecord]) -> ActivationBatch:
        """The unit, of the examples that have arrived.

        Args:
            records: Theirs, in dataset order.
        """
        first, there = self._first, self._there
        assert first is not None
        if not there.all():
            self._close_gaps()
        rows = [row for row, arrived in zip(self._rows, there, strict=True) if arrived]
        kept = np.ones(len(rows), np.int64) if first.pooled else self._kept[there]
        return replace(
            first,
            arrays=self._arrays,
            offsets=_bounds(kept),
            positions=np.zeros(0, np.int32) if first.pooled else self._positions,
            examples=tuple(records),
            token_ids=np.concatenate([row.token_ids for row in rows]),
            token_offsets=_bounds(self._tokens[there]),
            phase=np.concatenate([row.phase for row in rows]),
        )

    def _close_gaps(self) -> None:
        """Move what arrived over the places of what did not."""
        for site, array in self._arrays.items():
            self._arrays[site] = _closed(array, self._bounds[site], self._there)
        self._positions = _closed(self._positions, self._row_bounds, self._there)


def _bounds(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _of(part: ActivationBatch, site: Site) -> npt.NDArray[np.int64]:
    """Where the examples of a batch lie in its array."""
    if part.is_pooled(site):
        return np.arange(len(part) + 1)
    return part.block_offsets * part.heads[site] if site.layout == "blocks" else part.offsets


def _copy(
    source: Array,
    at: npt.NDArray[np.int64],
    target: Array,
    bounds: npt.NDArray[np.int64],
    places: Sequence[int],
) -> None:
    starts, stops = bounds[list(places)].tolist(), bounds[[p + 1 for p in places]].tolist()
    for (a, b), start, stop in zip(pairwise(at.tolist()), starts, stops, strict=True):
        if b - a != stop - start:
            raise BadInputError(
                "a batch has another number of rows than its span says",
                got=b - a,
                expected=stop - start,
            )
        target[start:stop] = source[a:b]


def _closed(array: Array, bounds: npt.NDArray[np.int64], there: npt.NDArray[np.bool_]) -> Array:
    end = 0
    for place in np.flatnonzero(there).tolist():
        start, stop = int(bounds[place]), int(bounds[place + 1])
        array[end : end + stop - start] = array[start:stop]  # numpy copes with the overlap
        end += stop - start
    return array[:end]
