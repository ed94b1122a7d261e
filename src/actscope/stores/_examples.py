"""The examples of a run: their records, and which one is meant by a place or an id."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from typing import overload

from actscope.core.activations import ExampleRecord
from actscope.core.errors import BadInputError
from actscope.stores._stored_batch import stored_examples
from actscope.stores._stored_unit import StoredUnit

__all__ = ["Examples", "place_of"]


class Examples(Sequence[ExampleRecord]):
    """Records of a run's examples; a unit's records are read when one of them is asked for."""

    def __init__(self, units: Sequence[StoredUnit], ends: Sequence[int]) -> None:
        self._stored = units
        self._ends = ends
        self._unit = lru_cache(maxsize=64)(self._read)

    def _read(self, at: int) -> tuple[ExampleRecord, ...]:
        return tuple(stored_examples(self._stored[at]))

    def __repr__(self) -> str:
        return f"<{len(self)} examples: index them, iterate over them>"

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[ExampleRecord]:
        for at in range(len(self._stored)):
            yield from self._unit(at)

    @overload
    def __getitem__(self, index: int) -> ExampleRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ExampleRecord]: ...
    def __getitem__(self, index: int | slice) -> ExampleRecord | list[ExampleRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there is no example {index}: there are {len(self)}")
        at = bisect_right(self._ends, place)
        return self._unit(at)[place - (self._ends[at - 1] if at else 0)]

    @cached_property
    def by_id(self) -> Mapping[str, int]:
        """Place of each id; of an id that files of others hold twice, the first."""
        places: dict[str, int] = {}
        for place, record in enumerate(self):
            places.setdefault(record.id, place)
        return places


def place_of(example: int | str, size: int, by_id: Callable[[], Mapping[str, int]]) -> int:
    """The place of an example among so many.

    Args:
        example: Its place, negative from the end, or its id.
        size: How many there are.
        by_id: Place of each id; asked only for an id.

    Raises:
        BadInputError: there is no such example, or it is neither a place nor an id.
    """
    if isinstance(example, str):
        places = by_id()
        if example not in places:
            some = ", ".join(map(repr, islice(places, 3)))
            raise BadInputError(
                "no example has this id",
                got=repr(example),
                expected=f"an id such as {some}, or a place" if some else "nothing: none exist",
                next_step="[record.id for record in run.examples] are the ids",
            )
        return places[example]
    try:
        index = operator.index(example)
    except TypeError:
        raise BadInputError(
            "an example is given by its place or its id",
            got=repr(example)[:60],
            expected=f"0 to {size - 1}, or a text",
        ) from None
    if not -size <= index < size:
        raise BadInputError("no such example", got=index, expected=f"0 to {size - 1}")
    return index % size
