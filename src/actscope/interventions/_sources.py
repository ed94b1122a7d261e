"""Where a patch takes its rows from: a capture, a run on disk, or an array."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch
from actscope.core.errors import BadInputError
from actscope.core.sites import Site
from actscope.interventions._vectors import as_array, digest

__all__ = ["RowSource", "source_of"]

Array = npt.NDArray[Any]


class RowSource(Protocol):
    """Rows of tokens of some examples."""

    @property
    def digest(self) -> str:
        """Which values these are, for the record."""
        ...

    def some(self, site: Site) -> Array:
        """``[L, width]`` of the first example."""
        ...

    def length(self, name: str) -> int:
        """How many prompt tokens the example that serves ``name`` has."""
        ...

    def rows(self, site: Site, name: str, positions: npt.NDArray[np.int64]) -> Array:
        """``[k, width]`` the rows at these token positions."""
        ...


def source_of(source: Any) -> RowSource:
    """The rows of what a user passed.

    Raises:
        BadInputError: it holds no rows of tokens.
    """
    if isinstance(source, ActivationBatch):
        return _Captured(_BatchReader(source))
    if all(hasattr(source, name) for name in ("get", "positions", "examples", "fingerprint")):
        return _Captured(_RunReader(source))
    return _Plain(source)


class _BatchReader:
    """A capture in memory, read like a run."""

    def __init__(self, batch: ActivationBatch) -> None:
        if batch.pooled:
            raise BadInputError(
                "the source of a patch was pooled to one row an example",
                next_step="capture it without a strategy, or pass rows as an array [L, width]",
            )
        self.batch = batch

    @cached_property
    def digest(self) -> str:
        batch = self.batch
        return digest(batch.offsets, batch.positions, *batch.arrays.values())

    @property
    def examples(self) -> Any:
        return self.batch.examples

    def rows(self, site: Site, index: int) -> Array:
        array = self.batch.arrays.get(site)
        if array is None:
            array = self.batch.array(str(site))  # raises with the known names
        return array[self.batch.offsets[index] : self.batch.offsets[index + 1]]

    def positions(self, index: int) -> Array:
        batch = self.batch
        return batch.positions[batch.offsets[index] : batch.offsets[index + 1]]


class _RunReader:
    """An opened run."""

    def __init__(self, run: Any) -> None:
        self.run = run

    @property
    def digest(self) -> str:
        return f"run:{self.run.fingerprint}"

    @property
    def examples(self) -> Any:
        return self.run.examples

    def rows(self, site: Site, index: int) -> Array:
        rows = as_array(self.run.get(site, example=index))
        return rows.reshape(len(rows), -1)  # heads side by side

    def positions(self, index: int) -> Array:
        return as_array(self.run.positions(index))


class _Captured:
    """Examples by id."""

    def __init__(self, reader: _BatchReader | _RunReader) -> None:
        self._reader = reader
        self._places = {record.id: i for i, record in enumerate(reader.examples)}
        if not self._places:
            raise BadInputError("the source of a patch holds no example")
        reader.positions(0)  # refuses a pooled run

    @property
    def digest(self) -> str:
        return self._reader.digest

    def _place(self, name: str) -> int:
        if len(self._places) == 1:
            return 0
        if name not in self._places:
            known = ", ".join(list(self._places)[:6])
            raise BadInputError(
                f"the source of a patch has no example {name!r}",
                expected=f"an id of its {len(self._places)}: {known}",
                next_step="use a source of one example, or give both sides the same ids",
            )
        return self._places[name]

    def some(self, site: Site) -> Array:
        return self._reader.rows(site, 0)

    def length(self, name: str) -> int:
        return int(self._reader.examples[self._place(name)].n_prompt_tokens)

    def rows(self, site: Site, name: str, positions: npt.NDArray[np.int64]) -> Array:
        place = self._place(name)
        held = np.asarray(self._reader.positions(place), dtype=np.int64)
        at = np.searchsorted(held, positions)
        missing = (at >= len(held)) | (held[np.minimum(at, len(held) - 1)] != positions)
        _refuse_missing(positions[missing], name, f"tokens {_listed(held)}")
        return _finite(as_array(self._reader.rows(site, place))[at], site)


class _Plain:
    """Rows without a name: row i is token i, for every example and every site."""

    def __init__(self, values: Any) -> None:
        try:
            self._values = as_array(values).astype(np.float64)
        except (TypeError, ValueError):
            raise BadInputError(
                "a patch takes its rows from a prompt, a capture, a run or an array",
                got=type(values).__name__,
            ) from None
        if self._values.ndim != 2 or not self._values.size:
            raise BadInputError(
                "an array to patch with holds one row a token",
                got=f"shape {list(self._values.shape)}",
                expected="[L, width]",
            )
        if not np.isfinite(self._values).all():
            raise BadInputError("the rows to patch with have values that are not finite")

    @property
    def digest(self) -> str:
        return digest(self._values)

    def some(self, site: Site) -> Array:
        return self._values

    def length(self, name: str) -> int:
        return len(self._values)

    def rows(self, site: Site, name: str, positions: npt.NDArray[np.int64]) -> Array:
        held = np.arange(len(self._values))
        _refuse_missing(positions[~np.isin(positions, held)], name, f"tokens {_listed(held)}")
        return self._values[positions]


def _refuse_missing(positions: npt.NDArray[np.int64], name: str, held: str) -> None:
    if len(positions):
        raise BadInputError(
            f"the source of a patch has no row for token {int(positions[0])} of example {name!r}",
            got=held,
        )


def _finite(rows: Array, site: Site) -> Array:
    if not np.isfinite(rows.astype(np.float64)).all():
        raise BadInputError(f"the source of a patch has values at {site} that are not finite")
    return rows


def _listed(held: Array) -> str:
    """Positions in words."""
    if len(held) and int(held[-1]) - int(held[0]) == len(held) - 1:
        return f"{int(held[0])} to {int(held[-1])}"
    return ", ".join(str(int(p)) for p in held[:8]) + (", ..." if len(held) > 8 else "")
