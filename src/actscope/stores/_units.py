"""From an ``ActivationBatch`` to the tensors of a data file, and what is measured on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch, ExampleFailure
from actscope.core.arrays import DTYPES, Array, dtype_name
from actscope.core.errors import BadInputError, NumericRangeError, UnknownNameError
from actscope.core.sites import Site
from actscope.core.stats import Moments
from actscope.stores._codecs import CODECS, coded, require_codec
from actscope.stores._formats import checksum
from actscope.stores._records import Coding, SiteEntry, TensorEntry, dump_json

__all__ = ["TABLES", "StoredAs", "Unit", "failures_of", "make_unit"]

TABLES = (
    "rows.offsets",
    "rows.positions",
    "pairs.offsets",
    "tokens.ids",
    "tokens.offsets",
    "tokens.phase",
    "examples",
)
"""Names of the tensors of a unit that are no activations."""

_STORAGE_DTYPES = ("native", "float32", "float16", "bfloat16")
_BLOCK = 1 << 16
"""Values that are looked at in one go: half a mebibyte of float64 stays in the cache."""
_BFLOAT16 = DTYPES["bfloat16"]


@dataclass(frozen=True)
class StoredAs:
    """What a run does to the arrays it is given.

    Attributes:
        dtype: ``native`` stores what was computed, pooled values in float32; ``float16`` refuses
            what does not fit; ``given`` is for a run without a spec.
        keep_text: Whether texts and token ids are stored.
        keeps_bfloat16: Whether the file format has bfloat16; float32 takes its place otherwise.
        codec: How activations are made smaller; None leaves them as they are.
    """

    dtype: str
    keep_text: bool
    keeps_bfloat16: bool
    codec: str | None = None

    @classmethod
    def of(cls, spec: Mapping[str, Any] | None, keeps_bfloat16: bool) -> StoredAs:
        """What a spec asks for.

        Raises:
            UnknownNameError: a storage dtype or codec there is none of.
            BadInputError: the codec's library is not installed.
        """
        if spec is None:
            return cls("given", True, keeps_bfloat16)
        dtype = spec.get("storage_dtype", "native")
        if dtype not in _STORAGE_DTYPES:
            raise UnknownNameError("storage dtype", dtype, _STORAGE_DTYPES)
        codec = spec.get("codec")
        if codec is not None:
            if codec not in CODECS:
                raise UnknownNameError("codec", codec, CODECS)
            require_codec(codec)
        return cls(str(dtype), bool(spec.get("keep_text", True)), keeps_bfloat16, codec)


@dataclass(frozen=True)
class Unit:
    """A unit's tensors and what the commit record says about them, its checksums excepted."""

    tensors: dict[str, Array]
    entries: dict[str, TensorEntry]
    sites: tuple[SiteEntry, ...]
    counts: dict[str, int]
    first_index: int


def make_unit(
    unit: str,
    batch: ActivationBatch,
    stored: StoredAs,
    codings: Mapping[str, Coding | None] | None = None,
) -> Unit:
    """Check a batch, convert it to the storage dtype and measure it, as it will be read back.

    Args:
        unit: Its id.
        batch: Its content.
        stored: What the run does to arrays.
        codings: Of values that were coded before, by site: how. They are not changed once more.

    Raises:
        BadInputError: arrays, offsets and tokens do not fit together.
        NumericRangeError: a value does not fit the storage dtype.
    """
    _check(unit, batch)
    tensors: dict[str, Array] = {}
    entries: dict[str, TensorEntry] = {}
    for site, array in batch.arrays.items():
        name = str(site)
        tensors[name] = _converted(site, array, batch, stored)
        before = None if codings is None else codings.get(name)
        found = None
        if stored.codec is not None and (codings is None or before is not None):
            found = _coded(stored.codec, tensors[name], before)
        if found is None:
            entries[name] = _measured(tensors[name])
            continue
        tensors[name], back, coding = found
        entries[name] = replace(_measured(back), xxh3=checksum(back), coding=coding)
    tensors |= _tables(batch, stored)
    entries |= {
        name: TensorEntry(dtype_name(tensors[name].dtype), tensors[name].shape, "")
        for name in tensors.keys() - entries.keys()
    }
    indices = [record.index for record in (*batch.examples, *batch.failures)]
    return Unit(
        tensors,
        entries,
        tuple(
            SiteEntry(site, batch.is_pooled(site), batch.heads.get(site, 0))
            for site in batch.arrays
        ),
        {
            "examples": len(batch),
            "tokens": sum(record.n_tokens for record in batch.examples),
            "prompt_tokens": sum(record.n_prompt_tokens for record in batch.examples),
            "rows": int(batch.offsets[-1]),
        },
        min(indices, default=0),
    )


def _coded(
    codec: str, array: Array, before: Coding | None
) -> tuple[npt.NDArray[np.uint8], Array, Coding] | None:
    """The bytes that take an array's place, the values they are read back as, and the cost.

    Values that were coded before keep the errors of that, and stay as they are where coding them
    again would change them: the blocks of a pattern begin elsewhere when a unit is cut.

    Returns:
        None where the array itself is kept: the codec does not take it, or saves nothing.
    """
    found = coded(codec, array)
    if found is None or found[2].bytes >= array.nbytes:
        return None
    data, back, coding = found
    if before is not None:
        if back.tobytes() != array.tobytes():
            return None
        coding = replace(coding, max_error=before.max_error, rms_error=before.rms_error)
    return data, back, coding


def failures_of(batch: ActivationBatch, metadata: Mapping[str, Any]) -> tuple[ExampleFailure, ...]:
    """The failures of a batch and those its metadata lists under ``errors``, each once."""
    found = list(batch.failures)
    for error in metadata.get("errors") or ():
        try:
            failure = error if isinstance(error, ExampleFailure) else ExampleFailure(**error)
        except TypeError as wrong:
            raise BadInputError(
                "an error in a unit's metadata has other fields than a failure",
                got=repr(error),
                expected="id, index, kind, message",
            ) from wrong
        if failure not in found:
            found.append(failure)
    return tuple(sorted(found, key=lambda failure: failure.index))


def _check(unit: str, batch: ActivationBatch) -> None:
    n = len(batch)
    rows = int(batch.offsets[-1]) if len(batch.offsets) else -1
    problems: list[str] = []
    for name, offsets in (("offsets", batch.offsets), ("token_offsets", batch.token_offsets)):
        if offsets.shape != (n + 1,) or offsets[0] != 0 or bool((np.diff(offsets) < 0).any()):
            problems.append(f"{name} must be {n + 1} ascending numbers from 0")
    if not batch.pooled and batch.positions.shape != (rows,):
        problems.append(f"positions has shape {batch.positions.shape}, offsets end at {rows}")
    tokens = int(batch.token_offsets[-1]) if len(batch.token_offsets) else -1
    if batch.phase.shape != (tokens,) or batch.token_ids.shape not in ((tokens,), (0,)):
        problems.append(f"token_ids and phase must have the {tokens} tokens of token_offsets")
    pairs = int(batch.block_offsets[-1]) if len(batch.offsets) == n + 1 else -1
    for site, array in batch.arrays.items():
        wanted = n if batch.is_pooled(site) else rows
        if site.layout == "blocks":
            wanted = pairs * batch.heads.get(site, 0)
        if array.ndim < 1 or len(array) != wanted:
            problems.append(f"{site} has shape {array.shape}, expected {wanted} rows")
        if not (array.dtype == _BFLOAT16 or array.dtype.kind in "biuf") or array.itemsize > 8:
            problems.append(f"{site} has dtype {array.dtype}, expected numbers of at most 8 bytes")
        if str(site) in TABLES:
            problems.append(f"{site} has the name of a table")
    if problems:
        raise BadInputError(f"unit {unit!r} does not fit together", got="; ".join(problems))


def _tables(batch: ActivationBatch, stored: StoredAs) -> dict[str, Array]:
    records = batch.examples
    if not stored.keep_text:
        unspoken = {"text": None, "response": None, "thought": None}
        records = tuple(replace(record, **unspoken) for record in records)
    lines = "".join(
        dump_json(record.to_json(), f"example {record.id!r}") + "\n" for record in records
    )
    tables: dict[str, Array] = {
        "rows.offsets": batch.offsets.astype(np.int64),
        "rows.positions": batch.positions.astype(np.int32),
        "tokens.offsets": batch.token_offsets.astype(np.int64),
        "tokens.phase": batch.phase.astype(np.uint8),
        "examples": np.frombuffer(lines.encode("ascii"), np.uint8),
    }
    if any(site.layout == "blocks" for site in batch.arrays):
        tables["pairs.offsets"] = batch.block_offsets
    if stored.keep_text and len(batch.token_ids) == int(batch.token_offsets[-1]):
        tables["tokens.ids"] = batch.token_ids.astype(np.int64)
    return tables


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype == _BFLOAT16 or np.issubdtype(dtype, np.floating)


def _target(dtype: np.dtype[Any], pooled: bool, stored: StoredAs) -> np.dtype[Any]:
    """The dtype on disk of a float array."""
    wanted = dtype
    if stored.dtype == "float16":
        return np.dtype(np.float16)
    if stored.dtype != "given":
        if pooled:
            return np.dtype(np.float32)
        if stored.dtype != "native":
            wanted = DTYPES[stored.dtype]
    return wanted


def _converted(site: Site, array: Array, batch: ActivationBatch, stored: StoredAs) -> Array:
    if not _is_float(array.dtype):
        return array
    target = _target(array.dtype, batch.is_pooled(site), stored)
    if target != array.dtype or stored.dtype == "float16":
        array = _narrowed(site, array, target, batch)
    if array.dtype == _BFLOAT16 and not stored.keeps_bfloat16:
        array = array.astype(np.float32)
    return array


def _narrowed(site: Site, array: Array, target: np.dtype[Any], batch: ActivationBatch) -> Array:
    """A plain conversion; it fails rather than turn a number into infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(target)
    bad = ~np.isfinite(result)
    if target != np.float16:
        bad &= np.isfinite(array)  # NaN and infinity stay what they are
    if not bad.any():
        return result
    row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
    largest = _absmax(array)
    count = int(bad.sum())
    raise NumericRangeError(
        f"{count} value(s) of {site} do not fit {dtype_name(target)}, "
        f"first at {_place(site, row, batch)}",
        got=f"a largest finite magnitude of {largest:g}"
        + ("" if np.isfinite(array[row].astype(np.float64)).all() else ", and NaN or infinity"),
        expected="finite values of at most 65504" if target == np.float16 else "smaller values",
        next_step="use --storage-dtype float32, and --dtype float32 if the model itself computes "
        "in float16; nothing of this unit was written",
    )


def _place(site: Site, row: int, batch: ActivationBatch) -> str:
    if batch.is_pooled(site):
        return f"example {batch.examples[row].id!r} (pooled over its tokens)"
    if site.layout == "blocks":
        bounds = batch.block_offsets * batch.heads[site]
        return f"example {batch.examples[int(np.searchsorted(bounds, row, side='right')) - 1].id!r}"
    example = int(np.searchsorted(batch.offsets, row, side="right")) - 1
    position = int(batch.positions[row])
    return f"example {batch.examples[example].id!r}, token position {position}"


def _blocks(array: Array) -> Iterator[tuple[Array, npt.NDArray[np.float64]]]:
    """``[rows, values]`` pieces small enough for the processor's cache, plain and in float64.

    The first is for what is as good in the array's own dtype, where that is fast there.
    """
    flat = array.reshape(len(array), -1) if array.size else array.reshape(0, 1)
    step = max(1, _BLOCK // max(1, flat.shape[1]))
    for at in range(0, len(flat), step):
        block = flat[at : at + step].astype(np.float64)
        yield flat[at : at + step] if array.dtype == np.float32 else block, block


def _absmax(array: Array) -> float:
    largest = 0.0
    for _, block in _blocks(array):
        finite = np.abs(block[np.isfinite(block)])
        largest = max(largest, float(finite.max(initial=0.0)))
    return largest


def _measured(array: Array) -> TensorEntry:
    """Moments of the row norms, largest magnitude and number of non-finite values.

    A pattern is flat: it has no rows whose norm would mean anything.
    """
    norms: list[npt.NDArray[np.float64]] = []
    largest, non_finite = 0.0, 0
    with np.errstate(all="ignore"):
        for piece, block in _blocks(array):
            if array.ndim > 1:
                norms.append(np.sqrt(np.vecdot(block, block)))
            most = max(float(piece.max(initial=0.0)), -float(piece.min(initial=0.0)))
            if np.isfinite(most):
                largest = max(largest, most)
            else:
                finite = np.isfinite(block)
                non_finite += int(block.size - finite.sum())
                largest = max(largest, float(np.abs(block[finite]).max(initial=0.0)))
        moments = Moments.of(np.concatenate(norms) if norms else [])
    return TensorEntry(dtype_name(array.dtype), array.shape, "", moments, largest, non_finite)
