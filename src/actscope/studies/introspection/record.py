"""``run_config.json``, and one record a unit: what says that the unit's rows are on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actscope.core.errors import DamagedRunError, OutputFolderError, RunMismatchError
from actscope.core.provenance import environment
from actscope.core.spec import UnitPlan, spec_differences
from actscope.stores import TEMP_PREFIX, disk_errors, make_folder, publish, put_if_absent
from actscope.studies.introspection.job import FORMAT, Job
from actscope.studies.introspection.ranges import AnotherRangeError, range_differences

__all__ = ["CONFIG", "UNITS", "adopt", "committed", "read_config", "unit_record", "write_json"]

CONFIG = "run_config.json"
UNITS = "units"
_NEEDED = (
    "model_type", "base_model", "model_source", "lora_checkpoint", "lora_source", "dataset_path",
    "num_questions", "which_questions", "dtype", "layers", "d_model", "seq_len", "fingerprint",
    "spec", "plan", "templates", "environment", "created",
)  # fmt: skip


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a collection, or None where there is none.

    Raises:
        DamagedRunError: it cannot be read, or is of another program.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    found = _load(path)
    if found.get("format") != FORMAT:
        raise DamagedRunError(
            f"{path} is of another format", got=str(found.get("format"))[:60], expected=FORMAT
        )
    absent = [name for name in _NEEDED if name not in found]
    if absent:
        raise DamagedRunError(f"{path} is not whole", got=f"no {', '.join(absent)}")
    return found


def adopt(job: Job) -> Job:
    """Begin the collection, or go on with the one that is there.

    How it is cut into units was decided when it began; everything else must be as it was.

    Raises:
        AnotherRangeError: another range of the same questions; it says how to add to this one.
        RunMismatchError: another option than the collection was begun with, by name.
        OutputFolderError: the folder holds something else.
    """
    from dataclasses import replace

    folder = job.params.output_dir
    stored = read_config(folder)
    if stored is None:
        _refuse_foreign(folder)
        make_folder(folder / UNITS)
        text = json.dumps(_config(job), indent=1, ensure_ascii=False) + "\n"
        with disk_errors(f"writing {CONFIG}", folder):
            put_if_absent(folder / CONFIG, "run", text.encode())
        stored = read_config(folder) or {}
    plan = UnitPlan.from_json(stored["plan"])
    of_range = range_differences(plan, job.plan)
    others = [*spec_differences(stored["spec"], job.spec), *_plan_differences(plan, job)]
    if of_range and not others:
        raise AnotherRangeError(folder, plan, job.plan)
    if others:
        raise RunMismatchError(
            str(folder),
            [*others, *of_range],
            next_step="ask for what is stored, or give another --output-dir",
        )
    return replace(job, plan=plan)


def _plan_differences(plan: UnitPlan, job: Job) -> list[tuple[str, object, object]]:
    """What was asked for by name, and is not how the range was cut."""
    found: list[tuple[str, object, object]] = []
    for name in ("batch_size", "batch_tokens", "unit_size"):
        wanted = getattr(job.params, name)
        if wanted is not None and wanted != getattr(plan, name):
            found.append((name, getattr(plan, name), wanted))
    if job.params.share_prefix == "off" and plan.share_prefix:
        found.append(("share_prefix", "auto", "off"))
    return found


def committed(folder: Path) -> set[str]:
    """Ids of the units that are on the disk."""
    return {p.stem for p in (folder / UNITS).glob("*.json") if not p.name.startswith(TEMP_PREFIX)}


def unit_record(folder: Path, unit: str) -> dict[str, Any]:
    """One unit's record.

    Raises:
        DamagedRunError: it cannot be read.
    """
    path = folder / UNITS / f"{unit}.json"
    found = _load(path)
    if not isinstance(found.get("rows"), dict):
        raise DamagedRunError(f"{path} is not whole", got="no rows")
    return found


def write_json(path: Path, value: object) -> None:
    """Write a file that appears whole or not at all, in the place of one that says otherwise."""
    data = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    with disk_errors(f"writing {path.name}", path):
        if path.is_file() and path.read_bytes() == data:
            return
        publish(path.parent, "data", lambda file: file.write(data), lambda _: path.name)


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"{path} cannot be read", got=str(error)[:120]) from error
    if not isinstance(found, dict):
        raise DamagedRunError(f"{path} holds no object", got=type(found).__name__)
    return found


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputFolderError(f"{folder} is a file", expected="a folder, or nothing yet")
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    others = sorted(n for n in names if n != UNITS and not n.startswith(TEMP_PREFIX))
    if others:
        raise OutputFolderError(
            f"{folder} holds something that is no collection",
            got=", ".join(others[:5]),
            expected="an empty folder, a collection, or nothing yet",
            next_step="give another --output-dir",
        )


def _source(job: Job) -> str:
    """What ``load_model`` takes to load the model again."""
    name = job.model.identity.name
    given = str(getattr(getattr(job.model.hf, "config", None), "_name_or_path", "") or name)
    if name == "demo":
        return name
    return str(Path(given).absolute()) if Path(given).is_dir() else given


def _config(job: Job) -> Mapping[str, Any]:
    identity, params = job.model.identity, job.params
    adapter = job.model.adapters.get(job.model.active_adapter or "")
    return {
        "format": FORMAT,
        "model_type": "finetuned" if identity.adapter else "base",
        "base_model": identity.name,
        "model_source": _source(job),
        "lora_checkpoint": identity.adapter,
        "lora_source": str(Path(adapter.source).absolute()) if adapter else None,
        "dataset_path": params.dataset,
        "num_questions": len(job.questions),
        "offset": params.offset,
        "which_questions": [p.word for p in job.passes],
        "dtype": params.dtype,
        "layers": list(job.layers),
        "d_model": job.model.d_model,
        "seq_len": dict(job.seq_len),
        "fingerprint": job.fingerprint,
        "spec": job.spec,
        "plan": job.plan.to_json(),
        "templates": dict(job.templates.texts),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }
