"""In what two runs differ: their specs, their examples and their values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ExampleRecord
from actscope.core.arrays import Array
from actscope.core.sites import Site
from actscope.core.spec import spec_differences
from actscope.stores._reader import Run, open_run
from actscope.stores._stored_batch import stored_tokens
from actscope.stores._stored_unit import StoredUnit

__all__ = ["RunDiff", "SiteDiff", "diff_runs"]


@dataclass
class SiteDiff:
    """How far the values of one site lie apart, over the examples that both runs hold.

    Attributes:
        examples: Examples compared.
        differing: Examples with another shape or dtype, or with a value that is not the same, bit
            by bit.
        unlike: Examples whose shapes differ, so that no values could be compared.
        max_abs: Largest difference of two values; infinite where one alone is not finite.
    """

    examples: int = 0
    differing: int = 0
    unlike: int = 0
    max_abs: float = 0.0
    _difference: float = 0.0
    _size: float = 0.0

    @property
    def relative(self) -> float:
        """Frobenius norm of all differences over that of the first run's values."""
        if self._difference == 0.0:
            return 0.0
        return math.sqrt(self._difference / self._size) if self._size else math.inf

    def add(self, a: Array, b: Array) -> None:
        """Compare the values of one example."""
        self.examples += 1
        if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
            self._size += _square(a.astype(np.float64))
            return
        self.differing += 1
        if a.shape != b.shape:
            self.unlike += 1
            return
        x, y = a.astype(np.float64), b.astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):
            gap = np.where(same, 0.0, np.abs(x - y))
        gap[np.isnan(gap)] = np.inf
        self.max_abs = max(self.max_abs, float(gap.max(initial=0.0)))
        self._difference += float(np.square(gap).sum())
        self._size += _square(x)


@dataclass
class RunDiff:
    """In what two runs differ.

    Attributes:
        spec: Rows of (field, first, second) where the specs differ.
        only_first: Ids of examples that only the first run holds.
        only_second: Ids of examples that only the second run holds.
        records: Ids of examples whose text, tokens or metadata differ.
        failures: Ids of examples that failed in one run only, or for another reason.
        sites_only_first: Keys of sites that only the first run holds.
        sites_only_second: Keys of sites that only the second run holds.
        sites: The comparison of each site of both, by key.
        examples: How many examples both hold.
    """

    spec: list[tuple[str, object, object]] = field(default_factory=list[Any])
    only_first: list[str] = field(default_factory=list[str])
    only_second: list[str] = field(default_factory=list[str])
    records: list[str] = field(default_factory=list[str])
    failures: list[str] = field(default_factory=list[str])
    sites_only_first: list[str] = field(default_factory=list[str])
    sites_only_second: list[str] = field(default_factory=list[str])
    sites: dict[str, SiteDiff] = field(default_factory=dict[str, SiteDiff])
    examples: int = 0

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON; what is infinite becomes null."""
        sites = {
            key: {
                "examples": site.examples,
                "differing": site.differing,
                "unlike": site.unlike,
                "max_abs": site.max_abs if math.isfinite(site.max_abs) else None,
                "relative": site.relative if math.isfinite(site.relative) else None,
            }
            for key, site in self.sites.items()
        }
        return {**self.__dict__, "sites": sites, "same": self.same}

    @property
    def same(self) -> bool:
        """Whether nothing differs at all."""
        lists = (self.spec, self.only_first, self.only_second, self.records, self.failures)
        return (
            not any(lists)
            and not (self.sites_only_first or self.sites_only_second)
            and not any(site.differing for site in self.sites.values())
        )


def diff_runs(first: str | Path, second: str | Path) -> RunDiff:
    """Compare two runs example by example, whatever their units, plans and stores.

    Examples are the same where dataset index and id are. Values are read example by example;
    memory holds the examples' records, not their values.

    Raises:
        BadInputError: there is no run.
        DamagedRunError: what is compared is not as it was committed.
    """
    with open_run(first) as a, open_run(second) as b:
        diff = RunDiff(spec_differences(a.spec or {}, b.spec or {}))
        _compare_failures(diff, a, b)
        keys = [{str(site): site for site in run.sites} for run in (a, b)]
        diff.sites_only_first = [key for key in keys[0] if key not in keys[1]]
        diff.sites_only_second = [key for key in keys[1] if key not in keys[0]]
        sites = [site for key, site in keys[0].items() if key in keys[1]]
        diff.sites = {str(site): SiteDiff() for site in sites}
        for one, two in _pairs(diff, a, b):
            diff.examples += 1
            if one.record != two.record or one.tokens() != two.tokens():
                diff.records.append(one.record.id)
            for site in sites:
                diff.sites[str(site)].add(one.rows(site), two.rows(site))
    return diff


@dataclass(frozen=True)
class _Stored:
    """An example of a run: its place there, and in its unit."""

    run: Run
    place: int
    unit: StoredUnit
    at: int
    record: ExampleRecord

    def tokens(self) -> list[int] | None:
        return stored_tokens(self.unit, self.at)

    def rows(self, site: Site) -> Array:
        return self.run.array(site, example=self.place)


def _stored(run: Run) -> Iterator[_Stored]:
    place = 0
    for unit in run.stored_units:
        for at in range(unit.commit.counts["examples"]):
            yield _Stored(run, place, unit, at, run.examples[place])
            place += 1


def _pairs(diff: RunDiff, a: Run, b: Run) -> Iterator[tuple[_Stored, _Stored]]:
    """Each example that both runs hold; the others are noted."""
    found = {(two.record.index, two.record.id): two for two in _stored(b)}
    for one in _stored(a):
        two = found.pop((one.record.index, one.record.id), None)
        if two is None:
            diff.only_first.append(one.record.id)
        else:
            yield one, two
    diff.only_second = [two.record.id for two in found.values()]


def _compare_failures(diff: RunDiff, a: Run, b: Run) -> None:
    one, two = ({(f.index, f.id): f.kind for f in run.failures} for run in (a, b))
    diff.failures = [key[1] for key in sorted({*one, *two}) if one.get(key) != two.get(key)]


def _square(values: npt.NDArray[np.float64]) -> float:
    return float(np.square(values[np.isfinite(values)]).sum())
