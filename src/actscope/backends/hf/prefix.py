"""Texts that begin alike: the beginning goes through the model once, the rest reads its cache.

Several passes take the place of one. The first computes the beginnings, padded on the left as for
generation, and fills the model's cache. Those that follow repeat the cache for texts whose rests
are about equally long, and compute these. Whether a model's cache gives the values of a plain pass
is never assumed: at first use the two are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.forward import forward_cached
from actscope.backends.hf.live import (
    beyond_window,
    length_dependent,
    live_tolerance,
    no_live_site,
    window_of,
    worst_row,
)
from actscope.backends.hf.probe import probe_ids
from actscope.backends.hf.resolve import Tap
from actscope.core.activations import Batch, TokenRow
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError
from actscope.core.prefixes import end_passes
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import Span
from actscope.strategies import as_strategy

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["PrefixCheck", "SharedPrefix", "prefix_refusal", "shareable"]

_PROBE_PASS = 3
"""Cuts the ends of the check into two passes, one of which holds padding."""


@dataclass(frozen=True)
class PrefixCheck:
    """What the comparison with plain passes has found.

    Attributes:
        refusal: Why texts cannot share their beginnings; empty where they can.
        uneven: Whether beginnings of different lengths may share a pass.
    """

    refusal: str
    uneven: bool


@dataclass(frozen=True)
class _Pass:
    """One of the passes.

    Attributes:
        ids: ``[rows, columns]`` token ids.
        mask: ``[rows, cached + columns]``, 1 on tokens.
        positions: ``[rows, columns]``, of each token within its text.
        group: ``[rows]``, which beginning each row goes on from; None for the beginnings.
        in_order: Whether that is one row for each beginning, in their order.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    group: torch.Tensor | None = None
    in_order: bool = field(default=False, kw_only=True)


@dataclass
class SharedPrefix:
    """The passes of one batch.

    Attributes:
        passes: In order; the first computes the beginnings.
        starts: Row of each pass's first token among the tokens of all passes, and their number.
        index: ``[n, pos]``, for every place of the padded batch its row among those.
        found: What the passes have left of each site so far, ``[starts[-1], d]``.
        turn: Which pass is running.
    """

    passes: tuple[_Pass, ...]
    starts: tuple[int, ...]
    index: torch.Tensor
    found: dict[Site, torch.Tensor] = field(default_factory=dict[Site, torch.Tensor])
    turn: int = 0

    @classmethod
    def of(cls, batch: Batch, pad_id: int, device: torch.device) -> SharedPrefix:
        """The passes of a batch whose rows say how much of their beginnings they share."""
        rows = [row.token_ids for row in batch.rows]
        counts = batch.beginnings
        heads = [ids[:count].tobytes() for ids, count in zip(rows, counts, strict=True)]
        known = {head: place for place, head in enumerate(dict.fromkeys(heads))}
        group = np.array([known[head] for head in heads], dtype=np.int64)
        width = max(counts)
        beginnings = _padded([np.frombuffer(h, np.int64) for h in known], pad_id, left=True)
        passes = [_Pass(*_moved((*beginnings, _positions(beginnings[1])), device))]
        index = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for i, count in enumerate(counts):
            index[i, :count] = (group[i] + 1) * width - count + np.arange(count)
        starts = [0, beginnings[0].size]
        ends = [ids[count:] for ids, count in zip(rows, counts, strict=True)]
        for places in end_passes([len(end) for end in ends], batch.pass_tokens):
            ids, mask = _padded([ends[i] for i in places], pad_id, left=False)
            for slot, i in enumerate(places):
                tokens = np.arange(len(ends[i]))
                index[i, counts[i] + tokens] = starts[-1] + slot * ids.shape[1] + tokens
            offsets = np.array([counts[i] for i in places], dtype=np.int64)[:, None]
            positions = offsets + np.arange(ids.shape[1])
            which = group[places]
            whole = np.concatenate([beginnings[1][which], mask], axis=1)
            in_order = np.array_equal(which, np.arange(len(known)))
            passes.append(_Pass(*_moved((ids, whole, positions, which), device), in_order=in_order))
            starts.append(starts[-1] + ids.size)
        return cls(tuple(passes), tuple(starts), _moved((index,), device)[0])

    def arrived(self, site: Site, tensor: torch.Tensor) -> torch.Tensor | None:
        """Rows of all passes, ``[starts[-1], d]``, once the last has left its own."""
        flat = tensor.reshape(-1, tensor.shape[-1])
        rows = self.found.get(site)
        if rows is None:
            rows = flat.new_empty((self.starts[-1], flat.shape[1]))
            self.found[site] = rows
        rows[self.starts[self.turn] : self.starts[self.turn + 1]] = flat
        return self.found.pop(site) if self.turn == len(self.passes) - 1 else None

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` of the whole texts, from the rows of all passes."""
        taken = rows.index_select(0, self.index.reshape(-1))
        return taken.reshape(*self.index.shape, rows.shape[-1])

    def run(
        self, model: torch.nn.Module, restart: Callable[[], None], seen: type[BaseException]
    ) -> None:
        """All passes.

        Args:
            model: The Hugging Face model.
            restart: Called before each; raises where the one before has left a site out.
            seen: What a hook raises when a pass has shown all that is wanted.
        """
        from transformers import DynamicCache

        filled: Any = DynamicCache(config=getattr(model, "config", None))
        for turn, one in enumerate(self.passes):
            self.turn = turn
            restart()
            cache = filled if one.group is None else _repeated(filled, one.group, one.in_order)
            with suppress(seen):
                forward_cached(model, one.ids, one.mask, one.positions, cache)


def shareable(model: HFModel, taps: Mapping[Site, Tap], batch: Batch) -> Batch:
    """The batch as this model can run it.

    Texts that are longer than a window too wide for the check run whole: what a cache does with
    such a window was compared with nothing.

    Raises:
        BadInputError: its texts cannot share their beginnings.
    """
    reason = prefix_refusal(model, taps)
    if reason:
        raise BadInputError(
            "these texts cannot share their beginnings",
            got=reason,
            next_step="share_prefix='off' (--share-prefix off) gives every text its own pass",
        )
    window = window_of(model)
    if window is not None and not beyond_window(model) and max(map(len, batch.rows)) > window:
        return replace(batch, shared=0)
    if model.prefix_checks[_key(model, taps)].uneven:
        return batch
    return replace(batch, shared=min(batch.beginnings))


def prefix_refusal(model: HFModel, taps: Mapping[Site, Tap]) -> str:
    """Why texts cannot share their beginnings on this model; empty where they can.

    Tolerance: ``live_tolerance`` of the model's dtype, as for activations taken while decoding.
    """
    if not model.causal:
        return "the model is not causal: how a text begins depends on how it ends"
    if model.interventions.describe():
        return "an intervention is active"
    for site, tap in taps.items():
        reason = "it is read inside attention" if tap.side in ("attention", "result") else ""
        reason = reason or no_live_site(model, site, tap)
        if reason:
            return f"{site}: {reason}"
    key = _key(model, taps)
    if key not in model.prefix_checks:
        model.prefix_checks[key] = _check(model, tuple(taps))
    return model.prefix_checks[key].refusal


def _key(model: HFModel, taps: Mapping[Site, Tap]) -> tuple[str | None, frozenset[Site]]:
    return (model.active_adapter, frozenset(taps))


def _check(model: HFModel, sites: tuple[Site, ...]) -> PrefixCheck:
    """Beginnings of different lengths, and where these go wrong those of one length."""
    refusal = length_dependent(model)
    if refusal:
        return PrefixCheck(refusal, uneven=False)
    if not _compared(model, sites, shorter=3):
        return PrefixCheck("", uneven=True)
    return PrefixCheck(_compared(model, sites, shorter=0), uneven=False)


def _compared(model: HFModel, sites: tuple[Site, ...], shorter: int) -> str:
    """Compare shared passes with one plain pass over texts of two beginnings and several ends.

    Args:
        model: The wrapped model.
        sites: What is compared.
        shorter: By how many tokens one beginning is shorter than the other.
    """
    rows, beginnings = _probe_rows(model, shorter)
    if not rows:
        return f"its context of {model.context_length} tokens is too short for the check"
    batch = Batch(tuple(rows), shared=tuple(beginnings), pass_tokens=_PROBE_PASS)
    with model.open(Selection(sites, as_strategy(None), Span())) as session:
        try:
            together = session.run_shared(batch)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"the model does not go on from a cache ({type(error).__name__}: {error})"[:200]
        for place, row in enumerate(rows):
            moved, site = worst_row(session.run(Batch((row,))), together, place)
            if not moved <= live_tolerance(model.dtype):
                return (
                    f"the cache moves {site} by {moved:.1e} of the row's largest value against a "
                    f"plain pass; up to {live_tolerance(model.dtype):.0e} would be rounding"
                )
    return ""


def _probe_rows(model: HFModel, shorter: int) -> tuple[list[TokenRow], list[int]]:
    """Two beginnings with ends of 2, 5 and 3, and of 4 and 1 tokens; past a narrow window."""
    p = max(24, beyond_window(model))
    if model.context_length is not None:
        p = min(p, model.context_length - 6)
    if p - shorter < 2:
        return [], []
    ids = np.resize(probe_ids(model.hf)[0].cpu().numpy(), p + 40).astype(np.int64)
    ends = [(0, 2), (0, 5), (0, 3), (1, 4), (1, 1)]
    lengths = [p, p - shorter]
    made = [
        np.concatenate([ids[b : b + lengths[b]], ids[3 * k : 3 * k + n]])
        for k, (b, n) in enumerate(ends)
    ]
    rows = [TokenRow.from_ids(str(k), row) for k, row in enumerate(made)]
    return rows, [lengths[b] for b, _ in ends]


def _repeated(cache: Any, group: torch.Tensor, in_order: bool) -> Any:
    """A cache of its own with one entry for every row; a pass adds to its cache.

    What a layer keeps is not copied where its rows are what the pass needs and the layer joins
    old and new into a new tensor: the beginnings stay as they are for the next pass.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    mine = copy.copy(cache)
    mine.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in mine.layers:
        states = {k: dict(v) for k, v in vars(layer).items() if isinstance(v, dict)}
        vars(layer).update(states)
    joins = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in mine.layers)
    if not (in_order and joins):
        mine.reorder_cache(group)
    return mine


def _padded(rows: Sequence[Array], pad_id: int, *, left: bool) -> tuple[Array, Array]:
    """Token ids ``[n, columns]`` and int64 mask, 1 on tokens."""
    columns = max(map(len, rows))
    ids = np.full((len(rows), columns), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        where = slice(columns - len(row), None) if left else slice(0, len(row))
        ids[place, where] = row
        mask[place, where] = 1
    return ids, mask


def _positions(mask: Array) -> Array:
    """Of tokens whose padding is on the left."""
    return np.maximum(mask.cumsum(axis=1) - 1, 0)


def _moved(arrays: Sequence[Array], device: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
