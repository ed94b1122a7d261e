"""A unit taken apart into its examples, and put together again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from actscope.core.activations import ExampleRecord
from actscope.core.arrays import Array
from actscope.core.errors import DamagedRunError
from actscope.core.sites import Site
from actscope.formats._job import ExportUnit
from actscope.formats._layout import out_dtype
from actscope.formats._manifest import UnitLine
from actscope.formats._records import records_of
from actscope.stores import dump_json

__all__ = ["example_tensors", "unit_of_examples"]

_PER_TOKEN = ("tokens.ids", "tokens.phase")


def example_tensors(
    unit: ExportUnit, sites: Sequence[Site]
) -> Iterator[tuple[ExampleRecord, dict[str, Array]]]:
    """(record, tensors) of each example; a site's are ``[L_i, d]``, or ``[d]`` where pooled."""
    records = records_of(unit["examples"], str(unit.stored.path))
    rows, tokens = unit["rows.offsets"], unit["tokens.offsets"]
    pooled = {entry.site: entry.pooled for entry in unit.commit.sites}
    heads = {entry.site: entry.heads for entry in unit.commit.sites}
    arrays = {site: unit[str(site)] for site in sites}
    positions = unit["rows.positions"]
    for i, record in enumerate(records):
        start, stop = rows[i : i + 2].tolist()
        tensors = {
            name: unit[name][tokens[i] : tokens[i + 1]] for name in _PER_TOKEN if name in unit
        }
        tensors["rows.positions"] = positions[start:stop]
        for site in sites:
            if site.layout == "blocks":
                a, b = (unit["pairs.offsets"][i : i + 2] * heads[site]).tolist()
                tensors[str(site)] = arrays[site][a:b]
            else:
                tensors[str(site)] = arrays[site][i] if pooled[site] else arrays[site][start:stop]
        yield record, tensors


def unit_of_examples(
    examples: Sequence[tuple[str, Mapping[str, Array]]], line: UnitLine
) -> dict[str, Array]:
    """The tensors of a unit from its examples, each a record in JSON and its tensors.

    Raises:
        DamagedRunError: an example lacks a tensor, or its record is none.
    """
    try:
        records = [ExampleRecord.from_json(json.loads(text)) for text, _ in examples]
        return _joined(records, [tensors for _, tensors in examples], line)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DamagedRunError(
            f"an example of unit {line.unit!r} is not what was exported",
            got=repr(error)[:300],
            next_step="export the run again",
        ) from error


def _joined(
    records: Sequence[ExampleRecord], examples: Sequence[Mapping[str, Array]], line: UnitLine
) -> dict[str, Array]:
    entries = {str(entry.site): entry for entry in line.sites}
    found: dict[str, Array] = {}
    for name, shape in line.shapes.items():
        empty = np.zeros((0, *shape[1:]), out_dtype(line.dtypes[name], keeps_bfloat16=True))
        if name in entries and entries[name].pooled:
            found[name] = np.stack([e[name] for e in examples]) if examples else empty
        elif name in entries or name in _PER_TOKEN or name == "rows.positions":
            found[name] = np.concatenate([e[name] for e in examples]) if examples else empty
    lines = "".join(dump_json(record.to_json(), record.id) + "\n" for record in records)
    found["examples"] = np.frombuffer(lines.encode("ascii"), np.uint8)
    pooled = not len(found["rows.positions"]) and line.ends.get("rows.offsets", 0) == len(records)
    counts = [1 if pooled else len(e["rows.positions"]) for e in examples]
    found["rows.offsets"] = _offsets(counts)
    found["tokens.offsets"] = _offsets([len(e["tokens.phase"]) for e in examples])
    if "pairs.offsets" in line.shapes:
        pairs = [c * r.n_tokens for c, r in zip(counts, records, strict=True)]
        found["pairs.offsets"] = _offsets(pairs)
    return found


def _offsets(counts: Sequence[Any]) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
