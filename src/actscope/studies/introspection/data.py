"""Read a collection: rows and activations, with what is missing or not as it should be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.core.spec import UnitPlan, unit_id
from actscope.studies.introspection.layer_files import LayerFiles
from actscope.studies.introspection.passes import PASSES, Pass
from actscope.studies.introspection.record import committed, read_config, unit_record

__all__ = ["Collection", "PassData", "UnitSums", "content_of", "open_collection", "paired"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UnitSums:
    """What the bytes of one unit were when they were written.

    Attributes:
        start: Place of its first question in the layer files.
        stop: One past the last.
        sums: By the pass's folder and the layer: ``mcq/03``.
    """

    start: int
    stop: int
    sums: Mapping[str, str]


@dataclass(frozen=True)
class PassData:
    """One pass of a collection.

    Attributes:
        which: The pass.
        rows: One a question, in order.
        files: Its activations.
        units: Checksums of its units; empty where a copy left the records behind.
    """

    which: Pass
    rows: Sequence[Mapping[str, Any]]
    files: LayerFiles
    units: Sequence[UnitSums] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Question ids."""
        return tuple(str(row["question_id"]) for row in self.rows)

    def numbers(self, field: str) -> Float64:
        """``[n]`` of a field of numbers or booleans."""
        return np.array([row[field] for row in self.rows], np.float64)

    def answers(self, layer: int, places: npt.ArrayLike | None = None) -> Float64:
        """``[n, d]`` float64: the activation at the answer position after a block."""
        mapped = self.files.read(layer)[: len(self.rows), -1]
        return np.asarray(mapped if places is None else mapped[np.asarray(places)], np.float64)

    def tokens(self, layer: int, place: int) -> Array:
        """``[L, d]`` all tokens of one prompt, padding left out."""
        return self.files.read(layer)[place, self.rows[place]["first_token_index"] :]


@dataclass(frozen=True)
class Collection:
    """A folder that ``collect`` wrote.

    Attributes:
        path: The folder.
        config: ``run_config.json``.
        passes: What is there, by the pass's name.
        missing: Questions of the range that are not on the disk.
    """

    path: Path
    config: Mapping[str, Any]
    passes: Mapping[str, PassData]
    missing: int

    @property
    def name(self) -> str:
        """``base`` or ``finetuned``, and the model's name."""
        return f"{self.config['model_type']} {self.config['base_model']}"

    @property
    def model(self) -> str:
        """The model, and the adapter that it had."""
        adapter = self.config["lora_checkpoint"]
        worn = f"with the adapter {adapter}" if adapter else "without an adapter"
        return f"{self.config['base_model']} {worn}"

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks whose output is stored."""
        return tuple(self.config["layers"])

    def __getitem__(self, name: str) -> PassData:
        if name not in self.passes:
            raise BadInputError(
                f"{self.path} has no pass {name}",
                got=", ".join(self.passes) or "none",
                next_step="collect it with --which-questions mcq,self,other",
            )
        return self.passes[name]


def open_collection(path: str | Path) -> tuple[Collection, Pass | None]:
    """A collection by its folder, or by the folder of one of its passes.

    Returns:
        The collection, and the pass whose folder was given.

    Raises:
        BadInputError: there is no collection.
        DamagedRunError: a file is not as it was written.
    """
    folder, chosen = Path(path), None
    if read_config(folder) is None:
        chosen = next((p for p in PASSES if p.folder == folder.resolve().name), None)
        # A path such as `.` has no parent in its text.
        outside = folder.parent if folder.name == folder.resolve().name else folder.resolve().parent
        folder = outside if chosen else folder
    config = read_config(folder)
    if config is None:
        inside = sorted(p.name for p in Path(path).iterdir()) if Path(path).is_dir() else []
        raise BadInputError(
            f"{path} is no collection",
            got=", ".join(inside[:6]) or "no folder, or an empty one",
            expected="a folder with run_config.json, or one of its passes: "
            + ", ".join(p.folder for p in PASSES),
            next_step="actscope introspect collect --output-dir DIR makes one",
        )
    plan = UnitPlan.from_json(config["plan"])
    rows, units = _rows(folder, plan)
    named = {p for p in PASSES if p.word in config["which_questions"]}
    passes = {
        p.name: PassData(p, rows.get(p.folder, []), _files(folder, config, p, plan), units)
        for p in PASSES
        if p in named
    }
    found = max((len(p) for p in passes.values()), default=0)
    return Collection(folder, config, passes, plan.stop - plan.start - found), chosen


def _files(folder: Path, config: Mapping[str, Any], which: Pass, plan: UnitPlan) -> LayerFiles:
    shape = (plan.stop - plan.start, config["seq_len"][which.folder], config["d_model"])
    return LayerFiles(folder / which.folder, tuple(config["layers"]), shape, config["dtype"])


def _rows(
    folder: Path, plan: UnitPlan
) -> tuple[dict[str, list[Mapping[str, Any]]], list[UnitSums]]:
    """Of the units' records; of ``metadata.json`` where these were left behind by a copy."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    units: list[UnitSums] = []
    safe = committed(folder)
    if not safe:
        for which in PASSES:
            path = folder / which.folder / "metadata.json"
            if path.is_file():
                rows[which.folder] = _load_rows(path)
        return rows, units
    for start, stop in plan.units():
        unit = unit_id(start, stop)
        if unit not in safe:
            break  # a row's place is its place in the layer files
        record = unit_record(folder, unit)
        for name, found in record["rows"].items():
            rows.setdefault(name, []).extend(found)
        place = start - plan.start
        units.append(UnitSums(place, place + stop - start, record.get("checksums", {})))
    return rows, units


def _load_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"{path} cannot be read", got=str(error)[:120]) from error
    if not isinstance(found, list):
        raise DamagedRunError(f"{path} is no list of rows", got=type(found).__name__)
    return found


def content_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes two rows one question under two ids: its words and its answers."""
    answers = dict(row.get("options") or {}).values()
    told = [str(row.get("question_text")), *sorted(map(str, answers))]
    return tuple(" ".join(text.split()).casefold() for text in told)


def paired(one: PassData, other: PassData) -> tuple[list[int], list[int]]:
    """Places of the questions that both have, in the order of the first.

    Raises:
        BadInputError: they share no question, or one has a question twice.
    """
    places = {name: i for i, name in enumerate(other.ids)}
    if len(places) < len(other) or len(set(one.ids)) < len(one):
        raise BadInputError("a question is there twice", got=f"{one.which.folder}")
    both = [i for i, name in enumerate(one.ids) if name in places]
    if not both:
        raise BadInputError(
            "the two share no question",
            got=f"{len(one)} and {len(other)} questions",
            next_step="collect both from one --dataset-path and range",
        )
    return both, [places[one.ids[i]] for i in both]
