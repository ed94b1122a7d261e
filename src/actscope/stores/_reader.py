"""Reading a run, whichever store wrote it. Nothing that is opened here executes code."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, pairwise
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ExampleFailure
from actscope.core.arrays import DTYPES, Array, to_float32, to_torch
from actscope.core.cache import ActivationCache
from actscope.core.errors import BadInputError, DamagedRunError, UnknownNameError
from actscope.core.sites import Site, captured_site, resolve_layer
from actscope.core.spec import UnitPlan
from actscope.stores._examples import Examples, place_of
from actscope.stores._records import COMMITS, RUN_FILE, SiteEntry, load_run
from actscope.stores._remote import as_folder
from actscope.stores._run_folder import committed_files
from actscope.stores._slice import RunSlice, Sliceable
from actscope.stores._stored_unit import StoredUnit, UnitFiles, format_of
from actscope.stores._summary import RunSummary, summarise
from actscope.stores._tags import read_tags
from actscope.stores._verify import VerifyReport, no_run, verify_run

if TYPE_CHECKING:
    import torch

__all__ = ["Run", "open_run"]

_READERS = 4
"""Units of a mapped format that are read at a time: a disk is faster with several reads to do."""


def open_run(path: str | Path) -> Run:
    """Open a run for reading.

    Args:
        path: The run's folder, or its address; see ``as_folder``.

    Raises:
        BadInputError: there is no run.
        DamagedRunError: ``run.json`` is not as it was written.
        StorageError: the server of a remote run cannot be reached, or refuses.
    """
    folder = as_folder(path)
    if not (folder / RUN_FILE).is_file():
        if (folder / COMMITS).is_dir():
            raise DamagedRunError(f"{folder / RUN_FILE} is missing: {folder} holds units of a run")
        raise no_run(folder)
    return Run(folder)


class Run(Sliceable):
    """A run on disk, as it was when it was opened; units committed later are not seen.

    Arrays come out as torch CPU tensors of the caller's own: changing one changes neither the
    files nor what is read next. ``array`` gives numpy without copying, read-only.

    Attributes:
        path: The run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = load_run(path)
        self._format = format_of(self._record, path)
        self._files = UnitFiles()
        self._names = committed_files(path) if (path / COMMITS).is_dir() else {}

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{len(self.pending)} pending"
        n = len(self._names)
        return f"<Run {str(self.path)!r}: {n} unit{'s' * (n != 1)}, {state}>"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that are open; arrays that were read stay good."""
        self._files.close()

    @property
    def store(self) -> str:
        """Name of the store that wrote it."""
        return self._record.store

    @property
    def spec(self) -> dict[str, Any] | None:
        """The spec as JSON; None for a bare run."""
        return self._record.spec

    @property
    def fingerprint(self) -> str:
        """The spec's fingerprint, empty for a bare run."""
        return self._record.fingerprint

    @property
    def plan(self) -> UnitPlan | None:
        """How the run was cut into units."""
        return self._record.plan

    @property
    def environment(self) -> dict[str, str]:
        """Versions of what computed."""
        return self._record.environment

    @property
    def created(self) -> str:
        """When the run was begun, ISO time."""
        return self._record.created

    @property
    def tags(self) -> tuple[str, ...]:
        """Words the run was given, as they are now; see ``read_tags``."""
        return read_tags(self.path)

    @cached_property
    def _units(self) -> list[StoredUnit]:
        units = {
            unit: StoredUnit(self.path, name, self._record, self._format, self._files)
            for unit, name in self._names.items()
        }
        if self.plan is not None:
            planned = self.plan.unit_ids()
            order = [u for u in planned if u in units] + sorted(units.keys() - set(planned))
            return [units[u] for u in order]

        def place(unit: StoredUnit) -> tuple[int, int, str]:
            return unit.commit.first_index, unit.commit.sequence, unit.commit.unit

        return sorted(units.values(), key=place)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Ids of the committed units, in dataset order."""
        if self.plan is None:
            return tuple(unit.commit.unit for unit in self._units)
        planned = self.plan.unit_ids()
        known = [u for u in planned if u in self._names]
        return (*known, *sorted(self._names.keys() - set(planned)))

    @cached_property
    def pending(self) -> tuple[str, ...]:
        """Ids of the planned units that are not committed."""
        planned = self.plan.unit_ids() if self.plan is not None else []
        return tuple(unit for unit in planned if unit not in self._names)

    @property
    def complete(self) -> bool:
        """Whether every planned unit is committed."""
        return not self.pending

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """What was captured, in the order asked for."""
        found: dict[Site, None] = {}
        if not self._units and self.spec:
            return tuple(_parse_site(key) for key in self.spec.get("sites", ()))
        for unit in self._units[:1] if self.spec else self._units:
            found |= dict.fromkeys(entry.site for entry in unit.commit.sites)
        return tuple(found)

    @property
    def layers(self) -> list[int]:
        """The layers that occur among the sites, ascending."""
        return sorted({site.layer for site in self.sites if site.layer is not None})

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(unit.commit.counts["examples"] for unit in self._units))

    @property
    def n_examples(self) -> int:
        """Captured examples, failures not counted."""
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return self.n_examples

    @property
    def has_answers(self) -> bool:
        """Whether any example has tokens besides its prompt; from commit records alone."""
        counts = (unit.commit.counts for unit in self._units)
        return any(count["tokens"] > count["prompt_tokens"] for count in counts)

    @cached_property
    def examples(self) -> Examples:
        """Records of the examples, in dataset order, read when asked for."""
        return Examples(self._units, self._ends)

    @cached_property
    def failures(self) -> tuple[ExampleFailure, ...]:
        """Examples that could not be captured."""
        return tuple(error for unit in self._units for error in unit.commit.errors)

    def tokens(self, example: int | str) -> torch.Tensor:
        """All token ids of one example, ``[n_tokens]`` int64.

        Raises:
            BadInputError: the run was made without keeping texts and token ids.
        """
        unit, _ = self._place(example)
        if "tokens.ids" not in unit.commit.tensors:
            raise BadInputError("this run keeps no texts and token ids")
        return to_torch(self._of_tokens("tokens.ids", example))

    def phase(self, example: int | str) -> torch.Tensor:
        """Prompt (0), response (1) or reasoning (2), each token of one example, ``[n_tokens]``."""
        return to_torch(self._of_tokens("tokens.phase", example))

    def positions(self, example: int | str) -> torch.Tensor:
        """Token positions of the stored rows of one example, ``[L_i]`` int32.

        Raises:
            BadInputError: the tokens were pooled.
        """
        unit, at = self._place(example)
        start, stop = unit.read("rows.offsets")[at : at + 2].tolist()
        positions = unit.read("rows.positions")[start:stop]
        if len(positions) != stop - start:
            raise BadInputError("a pooled run has no token positions")
        return to_torch(positions)

    def site(self, name: str | Site, layer: int | None = None) -> Site:
        """The captured site of a name and layer; a negative layer counts from the model's end.

        Raises:
            UnknownNameError: it was not captured.
            BadInputError: the layer is no whole number.
        """
        if isinstance(name, Site):
            name, layer = str(name), None
        if layer is not None:
            layer = self._layer(name, layer)
        return captured_site(self.sites, name, layer)

    def get(
        self, name: str | Site, layer: int | None = None, *, example: int | str
    ) -> torch.Tensor:
        """The activations of one example, ``[L_i, d]``, or ``[d]`` where tokens were pooled.

        Heads have an axis of their own: ``[L_i, head, d_head]`` of q, k, v and z, and
        ``[head, query, key]`` of a pattern, whose keys are all tokens of the example. Where some
        heads were chosen it holds these alone, ascending, as ``site(name, layer).parts`` says.

        Args:
            name: A site's name (``resid_post``) or key (``blocks.3.resid_post``).
            layer: The layer of a name.
            example: Its id, or its place in the run; a negative one counts from the end.

        Raises:
            UnknownNameError: the site was not captured.
            BadInputError: there is no such example.
            DamagedRunError: the stored bytes are not what was committed.
        """
        site = self.site(name, layer)
        unit, at = self._place(example)
        start, stop = self._rows_of(unit, site, at)
        return to_torch(self._shaped(unit, site, at, unit.private(str(site), start, stop)))

    def cache(self, example: int | str) -> ActivationCache:
        """One example's activations under TransformerLens' names: read-only, read when asked for.

        ``run.cache(3)["blocks.2.attn.hook_z"]`` is ``[L, head, d_head]``, without a batch axis.
        """
        self._place(example)
        return ActivationCache(
            self.sites, lambda site: self.get(site, example=example), self._n_layers()
        )

    def array(self, name: str | Site, layer: int | None = None, *, example: int | str) -> Array:
        """Like ``get``, but numpy, read-only and without copying (native store)."""
        site = self.site(name, layer)
        unit, at = self._place(example)
        start, stop = self._rows_of(unit, site, at)
        return self._shaped(unit, site, at, unit.read(str(site))[start:stop])

    def stack(self, name: str | Site, layer: int | None = None) -> torch.Tensor:
        """All rows of a site: ``[n, d]`` where tokens were pooled, else ``[sum L_i, d]``.

        Example i has rows ``offsets[i]:offsets[i + 1]`` of the latter. Heads lie side by side.

        Raises:
            BadInputError: a pattern, whose blocks do not stack.
        """
        return to_torch(self._stacked(self.site(name, layer)))

    def numpy(self, name: str | Site, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Like ``stack``, but numpy in float32."""
        return to_float32(self._stacked(self.site(name, layer)))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """``[n + 1]`` int64: example i has rows ``offsets[i]:offsets[i + 1]`` of ``stack``."""
        counts = [np.diff(unit.read("rows.offsets")) for unit in self._units]
        joined = np.concatenate([np.zeros(1, np.int64), *counts])
        return np.cumsum(joined, dtype=np.int64)

    def is_pooled(self, site: Site) -> bool:
        """Whether a site has one row for each example."""
        return bool(self._units) and self._entry(self._units[0], site).pooled

    def width(self, site: Site) -> int:
        """Values in a row of a site, heads side by side; 0 where nothing is stored."""
        return math.prod(self._units[0].shape(str(site))[1:]) if self._units else 0

    def whole(self) -> RunSlice:
        """All of it, as a part."""
        return RunSlice(self, tuple(range(len(self))))

    def summary(self) -> RunSummary:
        """Counts, sizes, statistics per site, errors by kind; from commit records alone."""
        return summarise(self)

    def verify(self) -> VerifyReport:
        """Read every byte and compare it with what was committed."""
        return verify_run(self.path)

    @property
    def stored_units(self) -> Sequence[StoredUnit]:
        """The committed units, in dataset order, for tools that go through a run file by file."""
        return self._units

    def _layer(self, name: str, given: object) -> int:
        if isinstance(given, bool) or not isinstance(given, Integral):
            raise BadInputError(
                "a layer is a whole number", got=repr(given)[:60], expected="such as 3, or -1"
            )
        layer = int(given)
        if layer >= 0:
            return layer
        n_layers = self._n_layers()
        if n_layers:
            return resolve_layer(layer, n_layers)
        captured = sorted(s.layer for s in self.sites if s.kind == name and s.layer is not None)
        return captured[layer] if -layer <= len(captured) else layer

    def _n_layers(self) -> int:
        """How many blocks the model has; 0 where the run does not say."""
        model = (self.spec or {}).get("model")
        n_layers = model.get("n_layers") if isinstance(model, dict) else None
        return n_layers if isinstance(n_layers, int) else 0

    def place(self, example: int | str) -> int:
        """The place of an example, from 0 on, by its id or by a place that may be negative.

        Raises:
            BadInputError: there is no such example.
        """
        return place_of(example, self.n_examples, lambda: self.examples.by_id)

    def _place(self, example: int | str) -> tuple[StoredUnit, int]:
        """The unit of an example, and its place there."""
        index = self.place(example)
        at = bisect_right(self._ends, index)
        return self._units[at], index - (self._ends[at - 1] if at else 0)

    def _of_tokens(self, table: str, example: int | str) -> Array:
        unit, at = self._place(example)
        start, stop = unit.read("tokens.offsets")[at : at + 2].tolist()
        return unit.read(table)[start:stop]

    def _entry(self, unit: StoredUnit, site: Site) -> SiteEntry:
        for entry in unit.commit.sites:
            if entry.site == site:
                return entry
        raise UnknownNameError(
            f"site of unit {unit.commit.unit!r}", site, [str(e.site) for e in unit.commit.sites]
        )

    def _rows_of(self, unit: StoredUnit, site: Site, at: int) -> tuple[int, int]:
        entry = self._entry(unit, site)
        if entry.pooled:
            return at, at + 1
        blocks = site.layout == "blocks"
        table = unit.read("pairs.offsets" if blocks else "rows.offsets")
        start, stop = (table[at : at + 2] * (entry.heads if blocks else 1)).tolist()
        return start, stop

    def _shaped(self, unit: StoredUnit, site: Site, at: int, rows: Array) -> Array:
        entry = self._entry(unit, site)
        if site.layout == "blocks":
            queries = int(np.diff(unit.read("rows.offsets")[at : at + 2])[0])
            return rows.reshape(entry.heads, queries, -1)
        if entry.heads and rows.shape[-1] % entry.heads == 0:
            rows = rows.reshape(len(rows), entry.heads, -1)
        return rows[0] if entry.pooled else rows

    def _stacked(self, site: Site) -> Array:
        name = str(site)
        if site.layout == "blocks":
            raise BadInputError(
                f"{name} has a block of its own shape for every example",
                next_step="read one at a time: run.get(name, layer, example=i)",
            )
        for unit in self._units:
            self._entry(unit, site)
        dtypes = {unit.dtype(name) for unit in self._units}
        widths = {unit.shape(name)[1:] for unit in self._units}
        if len(widths) > 1:
            raise BadInputError(f"the units hold {name} in different shapes", got=widths)
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        width = widths.pop() if widths else (0,)
        total = sum(unit.shape(name)[0] for unit in self._units)
        result: Array = np.empty((total, *width), DTYPES.get(dtype, dtype))
        ends = list(accumulate(unit.shape(name)[0] for unit in self._units))
        parts = [result[a:b] for a, b in pairwise([0, *ends])]
        with ThreadPoolExecutor(_READERS if self._format.mapped else 1) as readers:
            list(readers.map(lambda unit, part: unit.read_into(name, part), self._units, parts))
        return result


def _parse_site(key: str) -> Site:
    try:
        return Site.parse(key)
    except UnknownNameError:
        return Site.module(key)  # a module of one word, such as lm_head
