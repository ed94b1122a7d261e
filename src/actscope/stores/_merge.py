"""Several runs of one spec, over any ranges of its dataset, become one."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DuplicateUnitError, RunMismatchError
from actscope.core.spec import UnitPlan, spec_differences, unit_id
from actscope.stores._reader import Run, open_run
from actscope.stores._remote import as_folder
from actscope.stores._run_folder import STORES, FolderRunWriter
from actscope.stores._stored_batch import stored_batch
from actscope.stores._stored_unit import StoredUnit

__all__ = ["MergeReport", "merge_runs"]


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        path: The merged run.
        copied: Units whose data file was copied byte by byte.
        cut: Units that were written anew from a part of another one.
        repeated: Examples that more than one run holds; the first run named gave them.
        missing: Ranges of the dataset between the first and the last that no run holds.
    """

    path: Path
    copied: int
    cut: int
    repeated: int
    missing: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Piece:
    """Examples ``start`` to ``stop - 1``, all of them or some, of a unit."""

    unit: StoredUnit
    start: int
    stop: int


def merge_runs(
    sources: Sequence[str | Path], target: str | Path, *, keep_first: bool = False
) -> MergeReport:
    """Write the units of several runs to a new one; the same call again goes on after a kill.

    Ranges may leave gaps, which become pending units of the new run, and may overlap: an example
    is taken from the first run named that holds it.

    Args:
        sources: The runs, unchanged by this. All must be of one spec and one store.
        target: The new run's folder, or that of the same merge begun before.
        keep_first: Take the first run's values where two hold other values for one example,
            instead of refusing.

    Raises:
        RunMismatchError: two specs differ; it says in what.
        DuplicateUnitError: two runs hold other values for one example.
        DamagedRunError: a unit is not as it was committed.
        BadInputError: a run has no spec, or lies where the merged run would.
    """
    path = as_folder(target)
    runs = [open_run(source) for source in sources]
    try:
        _refuse_unlike(runs, path)
        chosen, repeated = _chosen([p for run in runs for p in _pieces(run)], keep_first)
        plan, missing = _plan(runs, chosen)
        pieces = _cut_at_units(chosen, plan)
        storage = STORES.get(runs[0].store)(path.parent)
        with storage.open_run(path.name, runs[0].spec, plan.to_json()) as writer:
            copied = sum(_write(writer, piece) for piece in pieces)
    finally:
        for run in runs:
            run.close()
    return MergeReport(path, copied, len(pieces) - copied, repeated, missing)


def _refuse_unlike(runs: Sequence[Run], target: Path) -> None:
    if not runs:
        raise BadInputError("there is no run to merge", expected="one or more runs")
    first = runs[0]
    for run in runs:
        if run.path.resolve() == target.resolve():
            raise BadInputError(
                f"{target} is one of the runs to merge", expected="a new folder for the merged run"
            )
        if run.spec is None:
            raise BadInputError(
                f"{run.path} has no spec, so nobody knows whether it belongs to the others",
                next_step="runs that a capture wrote have one",
            )
        differences = spec_differences(first.spec or {}, run.spec)
        if differences:
            raise RunMismatchError(
                str(first.path),
                differences,
                next_step=f"{run.path} is what was asked for; only runs of one spec merge",
            )
        if run.store != first.store:
            raise BadInputError(
                f"{run.path} was written by another store than {first.path}",
                got=run.store,
                expected=first.store,
                next_step="merge runs of one store",
            )


def _pieces(run: Run) -> list[_Piece]:
    planned: dict[str, tuple[int, int]] = {}
    if run.plan is not None:
        planned = dict(zip(run.plan.unit_ids(), run.plan.units(), strict=True))
    pieces: list[_Piece] = []
    for name, unit in zip(run.units, run.stored_units, strict=True):
        metadata = unit.commit.metadata
        start, stop = planned.get(name) or (metadata.get("start"), metadata.get("stop"))
        if not isinstance(start, int) or not isinstance(stop, int):
            raise BadInputError(
                f"unit {name!r} of {run.path} does not say which examples it covers",
                expected="a run with a plan, or numbers 'start' and 'stop' in the unit's metadata",
            )
        pieces.append(_Piece(unit, start, stop))
    return pieces


def _chosen(found: Sequence[_Piece], keep_first: bool) -> tuple[list[_Piece], int]:
    """Pieces in dataset order that do not overlap; the pieces found first win.

    Returns:
        The pieces, and how many examples were found more than once.
    """
    chosen: list[_Piece] = []  # by place, so that a neighbour is found without looking at all
    repeated = 0
    for piece in found:
        free = [piece]
        at = max(bisect_right(chosen, piece.start, key=_start) - 1, 0)
        while at < len(chosen) and chosen[at].start < piece.stop:
            other, at = chosen[at], at + 1
            start, stop = max(piece.start, other.start), min(piece.stop, other.stop)
            if start >= stop:
                continue
            repeated += stop - start
            if not keep_first:
                _refuse_other_values(other.unit, piece.unit, start, stop)
            free = [part for p in free for part in _without(p, start, stop)]
        for part in free:
            insort(chosen, part, key=_start)
    return chosen, repeated


def _start(piece: _Piece) -> int:
    return piece.start


def _without(piece: _Piece, start: int, stop: int) -> list[_Piece]:
    before = replace(piece, stop=min(piece.stop, start))
    after = replace(piece, start=max(piece.start, stop))
    return [part for part in (before, after) if part.start < part.stop]


def _refuse_other_values(one: StoredUnit, two: StoredUnit, start: int, stop: int) -> None:
    if one.commit.same_content(two.commit) and one.commit.errors == two.commit.errors:
        return
    a, b = stored_batch(one, start, stop), stored_batch(two, start, stop)
    differ = _differences(a, b)
    if differ:
        raise DuplicateUnitError(
            f"two runs hold other values for examples {start} to {stop - 1}",
            got=f"{one.path} and {two.path} differ in {', '.join(differ[:5])}",
            next_step="`actscope runs diff` says how much; --keep-first takes the first run's",
        )


def _differences(a: ActivationBatch, b: ActivationBatch) -> list[str]:
    differ = ["examples"] if (a.examples, a.failures) != (b.examples, b.failures) else []
    differ += [] if np.array_equal(a.token_ids, b.token_ids) else ["tokens.ids"]
    for site in dict.fromkeys((*a.sites, *b.sites)):
        x, y = a.arrays.get(site), b.arrays.get(site)
        if x is None or y is None or not _same_bits(x, y):
            differ.append(str(site))
    return differ


def _same_bits(a: Array, b: Array) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def _plan(
    runs: Sequence[Run], pieces: Sequence[_Piece]
) -> tuple[UnitPlan, tuple[tuple[int, int], ...]]:
    """A plan whose units are the pieces, and the gaps between them in units of the usual size."""
    plans = [run.plan for run in runs if run.plan is not None]
    ends = [(plan.start, plan.stop) for plan in plans] + [(p.start, p.stop) for p in pieces]
    start = min((low for low, _ in ends), default=0)
    stop = max((high for _, high in ends), default=0)
    sizes = [plan.unit_size for plan in plans] or [p.stop - p.start for p in pieces]
    size = max(sizes, default=1)
    bounds = {bound for piece in pieces for bound in (piece.start, piece.stop)}
    cuts = sorted(b for b in bounds if start < b < stop and b % size)
    base = plans[0] if plans else UnitPlan(0, 0, 1)
    plan = replace(base, start=start, stop=stop, unit_size=size, cuts=tuple(cuts))
    missing: list[tuple[int, int]] = []
    at = start
    for piece in pieces:
        if piece.start > at:
            missing.append((at, piece.start))
        at = piece.stop
    return plan, tuple([*missing, (at, stop)] if at < stop else missing)


def _cut_at_units(pieces: Sequence[_Piece], plan: UnitPlan) -> list[_Piece]:
    """The same pieces, cut where a unit of the plan begins inside one."""
    units = iter(plan.units())
    made: list[_Piece] = []
    for piece in pieces:
        at = piece.start
        while at < piece.stop:
            low, high = next(units)
            if low >= at:
                made.append(replace(piece, start=low, stop=high))
                at = high
    return made


def _write(writer: FolderRunWriter, piece: _Piece) -> bool:
    """Commit a piece as a unit of its own.

    Returns:
        Whether the data file could be copied as it is.
    """
    name = unit_id(piece.start, piece.stop)
    commit = piece.unit.commit
    if commit.unit == name and writer.unit_format.place is None:  # all of it in one file
        writer.adopt(commit, piece.unit.path)
        return True
    cut = {"start": piece.start, "stop": piece.stop, "cut_from": commit.unit}
    batch = stored_batch(piece.unit, piece.start, piece.stop)
    codings = {key: entry.coding for key, entry in commit.tensors.items()}
    writer.append(name, batch, {**commit.metadata, **cut}, codings=codings)
    return False
