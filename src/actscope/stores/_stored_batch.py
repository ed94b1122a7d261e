"""A committed unit, or some of its examples, as the batch that made it."""

from __future__ import annotations

import json

from actscope.core.activations import ActivationBatch, ExampleFailure, ExampleRecord
from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.core.sites import Site
from actscope.stores._records import SiteEntry
from actscope.stores._stored_unit import StoredUnit

__all__ = ["stored_batch", "stored_examples", "stored_tokens"]


def stored_examples(unit: StoredUnit) -> list[ExampleRecord]:
    """The records of a unit's examples, in order.

    Raises:
        DamagedRunError: the table is not as it was committed.
    """
    lines = unit.read("examples").tobytes().splitlines()
    try:
        return [ExampleRecord.from_json(json.loads(line)) for line in lines]
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedRunError(
            f"{unit.path} holds no readable example records", got=repr(error)
        ) from error


def stored_tokens(unit: StoredUnit, example: int) -> list[int] | None:
    """The token ids of one example of a unit; None where the run keeps none.

    Raises:
        DamagedRunError: a table is not as it was committed.
    """
    if "tokens.ids" not in unit.commit.tensors:
        return None
    start, stop = unit.read("tokens.offsets")[example : example + 2].tolist()
    return unit.read("tokens.ids")[start:stop].tolist()


def stored_batch(unit: StoredUnit, start: int, stop: int) -> ActivationBatch:
    """The examples of a unit whose dataset index is in a range, with the failures in it.

    The arrays are views of what was read: read-only, in the dtype on disk.

    Raises:
        DamagedRunError: a tensor is not as it was committed.
    """
    records = stored_examples(unit)
    kept = [i for i, record in enumerate(records) if start <= record.index < stop]
    first, last = (kept[0], kept[-1] + 1) if kept else (0, 0)
    offsets = unit.read("rows.offsets")[first : last + 1]
    tokens = unit.read("tokens.offsets")[first : last + 1]
    positions = unit.read("rows.positions")
    pooled = len(positions) != int(unit.read("rows.offsets")[-1])
    kept_ids = unit.read("tokens.ids") if "tokens.ids" in unit.commit.tensors else tokens[:0]
    entries = unit.commit.sites
    return ActivationBatch(
        arrays={e.site: _rows(unit, e, first, last) for e in entries},
        offsets=offsets - offsets[0],
        positions=positions if pooled else positions[slice(*_ends(offsets))],
        examples=tuple(records[first:last]),
        token_ids=kept_ids[slice(*_ends(tokens))],
        token_offsets=tokens - tokens[0],
        phase=unit.read("tokens.phase")[slice(*_ends(tokens))],
        pooled=pooled,
        failures=_failures(unit, start, stop),
        heads=_heads(entries),
    )


def _ends(offsets: Array) -> tuple[int, int]:
    return int(offsets[0]), int(offsets[-1])


def _rows(unit: StoredUnit, entry: SiteEntry, first: int, last: int) -> Array:
    rows = unit.read(str(entry.site))
    if entry.pooled:
        return rows[first:last]
    if entry.site.layout == "blocks":
        start, stop = _ends(unit.read("pairs.offsets")[first : last + 1] * entry.heads)
        return rows[start:stop]
    return rows[slice(*_ends(unit.read("rows.offsets")[first : last + 1]))]


def _heads(entries: tuple[SiteEntry, ...]) -> dict[Site, int]:
    return {entry.site: entry.heads for entry in entries if entry.heads}


def _failures(unit: StoredUnit, start: int, stop: int) -> tuple[ExampleFailure, ...]:
    return tuple(error for error in unit.commit.errors if start <= error.index < stop)
