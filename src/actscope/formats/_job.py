"""What a format sees of a run while it is exported: units one at a time, rows of any range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from actscope.core.arrays import Array, dtype_name
from actscope.core.errors import BadInputError
from actscope.core.sites import Site, resolve_layer, split_sites
from actscope.formats._layout import Layout, UnitShape, out_dtype
from actscope.stores import TABLES, CommitRecord, Run, SiteEntry, StoredUnit

__all__ = ["ExportJob", "ExportUnit", "choose_sites", "ends_of", "refuse_partial"]


def refuse_partial(run: Run) -> None:
    """Refuse a run of which planned units are missing.

    Raises:
        BadInputError: it is not complete.
    """
    if not run.complete:
        raise BadInputError(
            f"{run.path} is not complete",
            got=f"{len(run.pending)} of its units are missing",
            next_step="run the same capture again to complete it, then export",
        )


def choose_sites(
    run: Run, sites: str | Sequence[str] | None, layers: str | Sequence[int] | None
) -> tuple[Site, ...]:
    """The captured sites that a user named.

    Args:
        run: The run.
        sites: Names (``resid_post``) and keys (``blocks.3.z``); None for all.
        layers: Layers of the bare names, negative ones from the model's end; None or ``all``.

    Raises:
        UnknownNameError: one was not captured.
        BadInputError: nothing is left.
    """
    wanted = _layer_numbers(run, layers)
    found: dict[Site, None] = {}
    words = split_sites(sites) if isinstance(sites, str) else sites
    for word in words if words is not None else [str(site) for site in run.sites]:
        of_kind = [site for site in run.sites if site.kind == word]
        for site in of_kind or [run.site(word)]:
            if wanted is None or site.layer is None or site.layer in wanted:
                found.setdefault(site)
    if not found and run.n_examples:
        raise BadInputError(
            "none of the captured sites is at these layers",
            got=layers,
            expected="some of " + ", ".join(map(str, run.layers)),
        )
    return tuple(found)


def _layer_numbers(run: Run, layers: str | Sequence[int] | None) -> set[int] | None:
    if layers is None or layers == "all":
        return None
    try:
        numbers = [int(word) for word in (layers.split(",") if isinstance(layers, str) else layers)]
    except ValueError:
        raise BadInputError(
            "layers must be whole numbers", got=layers, expected="0,3,-1 or all"
        ) from None
    model = (run.spec or {}).get("model")
    n_layers = model.get("n_layers") if isinstance(model, dict) else None
    if isinstance(n_layers, int) and n_layers:
        return {resolve_layer(number, n_layers) for number in numbers}
    if min(numbers) < 0:
        raise BadInputError("this run does not say how many layers the model has", got=layers)
    return set(numbers)


@dataclass(frozen=True)
class ExportJob:
    """A run on its way out.

    Attributes:
        run: The run.
        sites: What of it.
        folder: Where the format writes; it becomes the output when all is done.
        options: The format's options, checked.
        keeps_bfloat16: Whether the format has bfloat16; float32 takes its place otherwise.
        request: A digest of what is asked for; resuming goes on only with the same.
    """

    run: Run
    sites: tuple[Site, ...]
    folder: Path
    options: Mapping[str, Any]
    keeps_bfloat16: bool
    request: str = ""

    @property
    def stored(self) -> Sequence[StoredUnit]:
        """The units of the run, in dataset order."""
        return self.run.stored_units

    def __len__(self) -> int:
        return len(self.stored)

    def unit(self, number: int) -> ExportUnit:
        """One unit."""
        return ExportUnit(self, number)

    def names_of(self, commit: CommitRecord) -> list[str]:
        """The tensors of a unit that go out: the chosen sites, and the tables they need.

        Raises:
            BadInputError: the unit lacks a chosen site.
        """
        keys = [str(site) for site in self.sites]
        missing = [key for key in keys if key not in commit.tensors]
        if missing:
            raise BadInputError(
                f"unit {commit.unit!r} does not hold {missing[0]}",
                next_step="--sites takes the sites that every unit holds",
            )
        blocks = any(site.layout == "blocks" for site in self.sites)
        tables = [name for name in TABLES if name in commit.tensors]
        return keys + [name for name in tables if blocks or name != "pairs.offsets"]

    @cached_property
    def layout(self) -> Layout:
        """The units laid end to end."""
        return Layout([self._shape(unit.commit) for unit in self.stored])

    def _shape(self, commit: CommitRecord) -> UnitShape:
        shapes = {name: commit.tensors[name].shape for name in self.names_of(commit)}
        return UnitShape(shapes, ends_of(commit, self.sites))

    def entry(self, site: Site) -> SiteEntry:
        """What the first unit says of a site: whether it is pooled, and its heads."""
        return next(e for e in self.stored[0].commit.sites if e.site == site)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype a tensor goes out in.

        Raises:
            BadInputError: the units hold it in different dtypes.
        """
        found = {unit.commit.tensors[name].dtype for unit in self.stored}
        if len(found) > 1:
            raise BadInputError(f"the units hold {name} in different dtypes", got=sorted(found))
        return out_dtype(found.pop(), self.keeps_bfloat16)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Some rows of a tensor of the whole run, ``[stop - start, ...]``."""
        return self.layout.rows(name, start, stop, lambda unit: self.unit(unit)[name])


def ends_of(commit: CommitRecord, sites: Sequence[Site]) -> dict[str, int]:
    """The last value of each offsets table, from what the commit record says."""
    ends = {"rows.offsets": commit.counts["rows"]}
    if "tokens.phase" in commit.tensors:
        ends["tokens.offsets"] = commit.tensors["tokens.phase"].shape[0]
    for entry in commit.sites:
        if entry.site.layout == "blocks" and entry.site in sites and entry.heads:
            ends["pairs.offsets"] = commit.tensors[str(entry.site)].shape[0] // entry.heads
    return ends


class ExportUnit(Mapping[str, Array]):
    """A unit on its way out: its tensors, read when asked for, in the dtype they go out in."""

    def __init__(self, job: ExportJob, number: int) -> None:
        self.job = job
        self.number = number
        self.stored = job.stored[number]
        self._names = job.names_of(self.commit)

    @property
    def commit(self) -> CommitRecord:
        """Its commit record."""
        return self.stored.commit

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        array = self.stored.read(name)
        target = out_dtype(dtype_name(array.dtype), self.job.keeps_bfloat16)
        return array if target == array.dtype else array.astype(target)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
