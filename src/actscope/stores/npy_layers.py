"""Layers as padded ``.npy`` files of a whole run, ``[n, seq, d]``, for programs that map them.

``numpy.load("run/activations_layer_03.npy", mmap_mode="r")[42]`` is prompt 42 of the range, its
rows first and zeros after them. Each file is made once, at its full size, and every unit is written
straight into its slots: the disk is used once. Tokens, offsets and texts lie beside them in
``units/``, with the commit records, so resuming, checksums and verifying are those of every store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array, dtype_name
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._formats import FileSums, TensorFile, UnitFormat, checksum
from actscope.stores._layer_file import Slots, layer_file_name, read_slots, write_slots
from actscope.stores._records import RunRecord, dump_json
from actscope.stores._remote import is_remote
from actscope.stores._run_folder import FolderRunWriter, FolderStorage
from actscope.stores._units import StoredAs, Unit
from actscope.stores.npz import NPZStorage

__all__ = ["STORE", "NpyLayersStorage"]

_PLACES = "layers"
"""The table that says, in JSON, which slots a unit has and which sites lie in them."""

_NPZ = NPZStorage.unit_format


def _places(tensors: Mapping[str, Array]) -> dict[str, Any]:
    return json.loads(tensors[_PLACES].tobytes()) if _PLACES in tensors else {"sites": {}}


def _counts(offsets: Array) -> list[int]:
    return [int(n) for n in np.diff(offsets)]


def _write(file: BinaryIO, tensors: Mapping[str, Array], header: Mapping[str, str]) -> FileSums:
    """Everything that does not lie in the layers' files, as npz."""
    inside = _places(tensors)["sites"]
    sums = _NPZ.write(file, {k: v for k, v in tensors.items() if k not in inside}, header)
    return FileSums(sums.file, {k: checksum(v) for k, v in tensors.items()})


class _LayersFile:
    """A unit's npz file, and its slots in the layers' files."""

    def __init__(self, path: Path) -> None:
        self._run = path.parent.parent
        self._path = path
        self._tables: TensorFile = _NPZ.read(path)
        self.header = self._tables.header
        try:
            raw = {_PLACES: self._tables.read(_PLACES)} if self._has_places() else {}
            places = _places(raw)
            self._sites = {str(k): bool(v) for k, v in places["sites"].items()}
            self._slots = Slots.of(places["slots"]) if self._sites else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedRunError(
                f"{path} does not say where its rows lie", got=repr(error)
            ) from error

    def _has_places(self) -> bool:
        return _PLACES in self._tables.names()

    def names(self) -> list[str]:
        """Its tensors."""
        return [*self._tables.names(), *self._sites]

    def read(self, name: str) -> Array:
        """One tensor, read-only; rows of a layer are gathered from their slots."""
        if name not in self._sites or self._slots is None:
            return self._tables.read(name)
        counts: list[int] | None = None
        if not self._sites[name]:
            counts = _counts(self._tables.read("rows.offsets"))
            if len(counts) != len(self._slots.places):
                raise DamagedRunError(f"{self._path} holds other examples than slots")
        rows = read_slots(self._run / layer_file_name(name), self._slots, counts)
        rows.flags.writeable = False
        return rows

    def place(self, name: str) -> str:
        """The file a tensor lies in, relative to the run's folder."""
        if name in self._sites:
            return layer_file_name(name)
        return f"{self._path.parent.name}/{self._path.name}"

    def close(self) -> None:
        """Close the file; arrays that were read stay good."""
        self._tables.close()


def _place(file: TensorFile, name: str) -> str:
    return cast("_LayersFile", file).place(name)


class _LayersWriter(FolderRunWriter):
    """Writes rows into slots first, then publishes and commits a unit like every writer."""

    def __init__(
        self,
        path: Path,
        record: RunRecord,
        unit_format: UnitFormat,
        stored_as: StoredAs,
        seq_len: int | None,
    ) -> None:
        super().__init__(path, record, unit_format, stored_as)
        self._seq_len = seq_len
        plan = record.plan
        self._start = 0 if plan is None else plan.start
        self._n = 0 if plan is None else plan.stop - plan.start
        self._bounds = {} if plan is None else dict(zip(plan.unit_ids(), plan.units(), strict=True))

    def _prepared(self, batch_id: str, unit: Unit, batch: ActivationBatch) -> Unit:
        """Add the table of places; a run without a plan has no slots, its units hold all."""
        sites = {
            str(entry.site): entry.pooled
            for entry in unit.sites
            if entry.site.layout != "blocks" and unit.tensors[str(entry.site)].ndim > 1
        }
        if not self._bounds or not sites:
            return unit
        bounds = self._bounds[batch_id]
        places = [record.index - self._start for record in batch.examples]
        first, stop = (bound - self._start for bound in bounds)
        if len(set(places)) < len(places) or any(not first <= p < stop for p in places):
            raise BadInputError(
                "the npy_layers store has one slot an example",
                got="examples that share an index or lie outside their unit",
                next_step="several answers to a prompt need another store, such as shards",
            )
        if not all(sites.values()):
            self._check_room(batch)
        slots = Slots(self._n, first, stop, tuple(places))
        table = {"slots": slots.to_list(), "sites": sites}
        raw = np.frombuffer(dump_json(table, "the places").encode("ascii"), np.uint8)
        entry = replace(unit.entries["examples"], shape=raw.shape, dtype=dtype_name(raw.dtype))
        return replace(
            unit,
            tensors={**unit.tensors, _PLACES: raw},
            entries={**unit.entries, _PLACES: entry},
        )

    def _check_room(self, batch: ActivationBatch) -> None:
        longest = int(np.diff(batch.offsets).max(initial=0))
        if self._seq_len is None:
            raise BadInputError(
                "the npy_layers store must know the longest sequence before it makes its files",
                next_step="--max-length N or NpyLayersStorage(path, seq_len=N), or pool the tokens",
            )
        if longest > self._seq_len:
            at = int(np.argmax(np.diff(batch.offsets)))
            raise BadInputError(
                f"example {batch.examples[at].id!r} has more rows than its slot",
                got=f"{longest} rows",
                expected=f"at most {self._seq_len}",
                next_step="begin a run with a larger seq_len, or use another store",
            )

    def _place(self, unit: Unit) -> None:
        places = _places(unit.tensors)
        for key, pooled in places["sites"].items():
            write_slots(
                self.path / layer_file_name(key),
                Slots.of(places["slots"]),
                unit.tensors[key],
                None if pooled else _counts(unit.tensors["rows.offsets"]),
                self._seq_len or 0,
            )


class NpyLayersStorage(FolderStorage):
    """Runs of one padded ``.npy`` file per layer; bfloat16 becomes float32.

    A run with a plan has ``plan.stop - plan.start`` slots of ``seq_len`` rows. Attention patterns,
    and runs without a plan, whose size nobody knows, lie in ``units/`` as npz. Two writers that
    write other values into one unit at the same moment leave it damaged, which reading reports; the
    other stores keep the first.

    Args:
        path: The folder that holds the runs.
        seq_len: Rows of a slot; None takes the spec's ``max_length`` and the longest answer.
    """

    keeps_bfloat16: ClassVar[bool] = False
    takes_codecs: ClassVar[bool] = False
    unit_format: ClassVar[UnitFormat] = UnitFormat(
        name="npy_layers",
        folder="units",
        suffix=".npz",
        keeps_bfloat16=False,
        write=_write,
        read=_LayersFile,
        check_first=True,  # a wrong table would blame whole layers
        place=_place,
    )

    def __init__(self, path: str | Path, seq_len: int | None = None) -> None:
        super().__init__(path)
        if is_remote(self.path):
            raise BadInputError(
                "the npy_layers store writes to local disks alone: its files are filled in place",
                got=self.path,
                next_step="--store shards, or a local folder that is copied when it is complete",
            )
        self.seq_len = seq_len

    def _writer(self, path: Path, record: RunRecord, stored_as: StoredAs) -> FolderRunWriter:
        seq_len = self.seq_len or _longest(record.spec or {})
        return _LayersWriter(path, record, self.unit_format, stored_as, seq_len)


def _longest(spec: Mapping[str, Any]) -> int | None:
    """The longest sequence a spec allows; None where it sets no limit."""
    limit = spec.get("max_length")
    if not isinstance(limit, int):
        return None
    generation = spec.get("generation") or {}
    return limit + int(generation.get("max_new_tokens", 0))


STORE = NpyLayersStorage
