"""Put collections over neighbouring ranges of one dataset together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from actscope.capture.disk import free_disk, refuse_bytes, refuse_unwritable
from actscope.core.errors import BadInputError, OutputFolderError, RunMismatchError
from actscope.core.spec import UnitPlan, spec_differences, unit_id
from actscope.stores import checksum, disk_errors, make_folder, put_if_absent
from actscope.studies.introspection.data import Collection, PassData, open_collection
from actscope.studies.introspection.layer_files import LayerFiles
from actscope.studies.introspection.record import CONFIG, UNITS, write_json

__all__ = ["merge"]

_QUESTIONS_AT_ONCE = 64


def merge(parts: Sequence[str | Path], out: Path) -> Collection:
    """One collection of several, whose ranges follow each other without a gap.

    Rows are padded anew to the longest prompt of all parts, so ``acts[q, -1]`` stays the answer
    position.

    Args:
        parts: Their folders, in any order; all complete.
        out: A new folder.

    Raises:
        RunMismatchError: the parts differ in more than their range.
        BadInputError: fewer than two parts, one that is not complete, or ranges with a gap or an
            overlap.
        OutputFolderError: the folder is not empty.
    """
    opened = [open_collection(part)[0] for part in parts]
    ordered = sorted(opened, key=lambda c: UnitPlan.from_json(c.config["plan"]).start)
    start, stop = _check(ordered)
    if out.exists() and any(out.iterdir()):
        raise OutputFolderError(f"{out} is not empty", next_step="give another --output-dir")
    first = ordered[0].config
    seq_len = {k: max(c.config["seq_len"][k] for c in ordered) for k in first["seq_len"]}
    config = {
        **first,
        "num_questions": stop - start,
        "offset": start,
        "seq_len": seq_len,
        "plan": {**first["plan"], "start": start, "stop": stop, "unit_size": stop},
        "merged_from": [str(c.path) for c in ordered],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write(ordered, out, config, (start, stop))
    return open_collection(out)[0]


def _check(parts: Sequence[Collection]) -> tuple[int, int]:
    """The whole range."""
    if len(parts) < 2:
        raise BadInputError("a merge needs at least two collections", got=len(parts))
    for part in parts[1:]:
        differences = spec_differences(parts[0].config["spec"], part.config["spec"])
        if differences:
            raise RunMismatchError(
                str(part.path), differences, next_step="merge runs that differ in their range alone"
            )
    plans = [UnitPlan.from_json(part.config["plan"]) for part in parts]
    for part, plan, following in zip(parts, plans, [*plans[1:], None], strict=True):
        if part.missing:
            raise BadInputError(
                f"{part.path} is not complete: {part.missing} questions are missing",
                next_step="run its collect command again first",
            )
        if following is not None and plan.stop != following.start:
            raise BadInputError(
                "the ranges do not follow each other",
                got=", ".join(f"{p.start} to {p.stop}" for p in plans),
                expected="each beginning where the one before ends",
            )
    return plans[0].start, plans[-1].stop


def _write(
    parts: Sequence[Collection], out: Path, config: dict[str, Any], bounds: tuple[int, int]
) -> None:
    n = bounds[1] - bounds[0]
    names = list(parts[0].passes)
    files = {
        name: LayerFiles(
            out / parts[0][name].which.folder,
            parts[0].layers,
            (n, config["seq_len"][parts[0][name].which.folder], config["d_model"]),
            config["dtype"],
        )
        for name in names
    }
    refuse_unwritable(out)
    refuse_bytes(sum(f.bytes for f in files.values()), free_disk(out), out)
    make_folder(out / UNITS)
    rows: dict[str, list[dict[str, Any]]] = {}
    sums: dict[str, str] = {}
    for name, target in files.items():
        folder = target.folder.name
        target.create()
        for layer in target.layers:
            _copy(parts, name, layer, target)
            sums[f"{folder}/{layer:02d}"] = checksum(target.read(layer))
        rows[folder] = [r for part in parts for r in _moved(part[name], target.shape[1])]
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    with disk_errors(f"writing {CONFIG}", out):
        put_if_absent(out / CONFIG, "run", text.encode())
    record: dict[str, Any] = {
        "unit": unit_id(*bounds),
        "fingerprint": config["fingerprint"],
        "rows": rows,
        "checksums": sums,
    }
    write_json(out / UNITS / f"{record['unit']}.json", record)
    for folder, found in rows.items():
        write_json(out / folder / "metadata.json", found)


def _copy(parts: Sequence[Collection], name: str, layer: int, target: LayerFiles) -> None:
    place = 0
    for part in parts:
        mapped = part[name].files.read(layer)
        for begin in range(0, len(mapped), _QUESTIONS_AT_ONCE):
            block = mapped[begin : begin + _QUESTIONS_AT_ONCE]
            padding = ((0, 0), (target.shape[1] - block.shape[1], 0), (0, 0))
            target.write(layer, place, np.pad(block, padding))
            place += len(block)


def _moved(collected: PassData, seq: int) -> list[dict[str, Any]]:
    """Rows whose indices count in rows of another length."""
    shift = seq - collected.files.shape[1]
    fields = ("answer_token_index", "confidence_token_index", "first_token_index")
    return [
        {**row, **{field: row[field] + shift for field in fields if field in row}}
        for row in collected.rows
    ]
