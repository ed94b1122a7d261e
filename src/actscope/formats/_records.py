"""Example records as bytes and back, and batches of examples that another program wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actscope.core.activations import ActivationBatch, ExampleRecord
from actscope.core.arrays import Array
from actscope.core.errors import ActscopeError, BadInputError, DamagedRunError
from actscope.core.sites import Site
from actscope.core.text import PROMPT

__all__ = ["batch_of_arrays", "batch_of_examples", "records_of", "site_of"]

_IDS = ("tokens.ids", "token_ids", "input_ids")


def records_of(lines: Array, where: str) -> tuple[ExampleRecord, ...]:
    """The records of the bytes of an ``examples`` table.

    Raises:
        DamagedRunError: they are no records.
    """
    try:
        texts = lines.astype(np.uint8).tobytes().splitlines()
        return tuple(ExampleRecord.from_json(json.loads(text)) for text in texts)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedRunError(
            f"{where} holds no readable example records", got=repr(error)[:300]
        ) from error


_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def site_of(name: str) -> Site | None:
    """The site a name means: a key, a TransformerLens hook, a module path; None where none."""
    try:
        site = Site.parse(name)
    except ActscopeError:
        return None
    return site if site.path is None or _MODULE.fullmatch(site.path) else None


def batch_of_examples(
    unit: str,
    rows: Mapping[Site, Sequence[Array]],
    *,
    token_ids: Sequence[Array] | None = None,
    ids: Sequence[str] | None = None,
    first: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> ActivationBatch:
    """A batch of examples of which another program kept the rows, and perhaps the tokens.

    Args:
        unit: What the examples are called after, where they have no ids.
        rows: Per site the rows of each example, ``[L_i, d]``; or ``[d]`` each where pooled.
        token_ids: The tokens of each example.
        ids: The examples' ids.
        first: The index of the first.
        metadata: What to note with each.

    Raises:
        BadInputError: the sites have different numbers of examples or rows.
    """
    several = [list(of_site) for of_site in rows.values()]
    n = len(several[0])
    pooled = all(array.ndim == 1 for of_site in several for array in of_site)
    counts = [1 if pooled else len(array) for array in several[0]]
    for site, of_site in zip(rows, several, strict=True):
        shapes = [1 if pooled else len(a) for a in of_site if a.ndim == (1 if pooled else 2)]
        if shapes != counts:
            raise BadInputError(
                f"{unit}: {site} has other examples or rows than {next(iter(rows))}",
                got=f"{len(of_site)} examples",
                expected=f"{n} examples of {counts[:5]} rows, [L, d] each",
            )
    tokens = [np.asarray(t, np.int64).reshape(-1) for t in token_ids or ()]
    lengths = [len(t) for t in tokens] if tokens else [0 if pooled else c for c in counts]
    if len(lengths) != n:
        raise BadInputError(f"{unit}: {len(lengths)} rows of tokens for {n} examples")
    names = list(ids) if ids is not None else [f"{unit}#{i}" for i in range(n)]
    total = sum(lengths)
    return ActivationBatch(
        arrays={
            site: np.stack(of_site) if pooled else np.concatenate(of_site)
            for site, of_site in zip(rows, several, strict=True)
        },
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        positions=np.zeros(0, np.int32)
        if pooled
        else np.concatenate([np.arange(c, dtype=np.int32) for c in counts]),
        examples=tuple(
            ExampleRecord(
                names[i], first + i, lengths[i], lengths[i], metadata=dict(metadata or {})
            )
            for i in range(n)
        ),
        token_ids=np.concatenate(tokens) if tokens else np.zeros(0, np.int64),
        token_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        phase=np.full(total, PROMPT, np.uint8),
        pooled=pooled,
    )


def batch_of_arrays(
    unit: str, arrays: Mapping[str, Array], *, site: str = "", first: int = 0
) -> ActivationBatch:
    """A batch of arrays that are called after their sites.

    Args:
        unit: What the examples are called after.
        arrays: ``[n, d]`` (pooled) or ``[n, seq, d]`` per name; ``token_ids`` ``[n, seq]``.
        site: The kind of site of names that only number layers, such as ``layer_3``.
        first: The index of the first example.

    Raises:
        BadInputError: no name is that of a site, or the shapes are others.
    """
    found: dict[Site, list[Array]] = {}
    for name, array in arrays.items():
        of_name = site_of(name)
        if of_name is None or of_name.path is not None:
            of_name = _numbered(name.rpartition(".")[2], site) or of_name
        if of_name is None:
            continue
        if array.ndim not in (2, 3):
            if of_name.path is not None:
                continue  # any name with a dot could be a module
            raise BadInputError(
                f"{unit}: {name} has shape {list(array.shape)}",
                expected="[examples, d] or [examples, tokens, d]",
            )
        found[of_name] = list(array)
    if not found:
        raise BadInputError(
            f"{unit} holds nothing that is called after a site",
            got=sorted(arrays)[:5],
            expected="names such as blocks.3.resid_post or blocks.3.hook_resid_post",
            next_step="--option site=resid_post says what files that only number layers hold",
        )
    tokens = next((arrays[name] for name in _IDS if name in arrays), None)
    rows = next(iter(found.values()))
    fits = tokens is not None and tokens.ndim == 2 and len(tokens) == len(rows)
    return batch_of_examples(unit, found, token_ids=list(tokens) if fits else None, first=first)  # type: ignore[arg-type]


def _numbered(name: str, site: str) -> Site | None:
    """``activations_layer_03`` or ``layer_3`` with a kind of site."""
    head, _, number = name.rpartition("_")
    if head.rpartition("_")[2] != "layer" or not number.isdecimal() or len(number) > 6:
        return None
    if not site:
        return Site("resid_post", int(number)) if head == "activations_layer" else None
    return Site(site, int(number))
