"""Texts that begin alike: the beginning goes through the model once, the rest reads its cache.

Two passes take the place of one. The first computes the beginnings and fills the model's cache; the
second repeats the cache for the texts and computes what is left of them. Whether a model's cache
gives the values of a plain pass is never assumed: at first use the two are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.forward import forward_cached
from actscope.backends.hf.live import length_dependent, live_tolerance, no_live_site, worst_row
from actscope.backends.hf.probe import probe_ids
from actscope.backends.hf.resolve import Tap
from actscope.core.activations import Batch, TokenRow
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import Span
from actscope.strategies import as_strategy

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["SharedPrefix", "prefix_refusal"]


@dataclass
class SharedPrefix:
    """The two passes of one batch.

    Attributes:
        beginnings: ``[groups, prefix]`` token ids.
        group: ``[n]``, which beginning each text has.
        rest: ``[n, columns]`` token ids, padded on the right.
        mask: ``[n, prefix + columns]``, 1 on tokens.
        index: ``[n * pos]``, for every place of the padded batch its row among all beginnings and
            rests, one after the other.
        begun: What the first pass left of each site, ``[groups * prefix, d]``.
        first: Whether the first pass is running.
    """

    beginnings: torch.Tensor
    group: torch.Tensor
    rest: torch.Tensor
    mask: torch.Tensor
    index: torch.Tensor
    begun: dict[Site, torch.Tensor] = field(default_factory=dict[Site, torch.Tensor])
    first: bool = True

    @classmethod
    def of(cls, batch: Batch, pad_id: int, device: torch.device) -> SharedPrefix:
        """The passes of a batch whose rows share their first ``batch.shared`` tokens in groups."""
        p = batch.shared
        heads = [row.token_ids[:p].tobytes() for row in batch.rows]
        known = {head: place for place, head in enumerate(dict.fromkeys(heads))}
        group = np.array([known[head] for head in heads], dtype=np.int64)
        beginnings = np.stack([np.frombuffer(head, np.int64) for head in known])
        left = Batch(tuple(row.take(np.arange(len(row)) >= p) for row in batch.rows))
        rest, mask = left.padded(pad_id)
        n, columns = rest.shape
        index = np.zeros((n, p + columns), dtype=np.int64)
        index[:, :p] = group[:, None] * p + np.arange(p)
        index[:, p:] = len(known) * p + np.arange(n * columns).reshape(n, columns)
        whole = np.concatenate([np.ones((n, p), np.bool_), mask], axis=1)

        def there(array: Any) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return cls(
            there(beginnings),
            there(group),
            there(rest),
            there(whole.astype(np.int64)),
            there(index.reshape(-1)),
        )

    def taken(self, site: Site, tensor: torch.Tensor) -> torch.Tensor | None:
        """``[n, pos, d]`` of the whole texts, or None from the first pass."""
        flat = tensor.reshape(-1, tensor.shape[-1])
        if self.first:
            self.begun[site] = flat.clone()
            return None
        rows = torch.cat([self.begun.pop(site), flat]).index_select(0, self.index)
        return rows.reshape(len(self.group), -1, rows.shape[-1])

    def run(
        self, model: torch.nn.Module, restart: Callable[[], None], seen: type[BaseException]
    ) -> None:
        """Both passes.

        Args:
            model: The Hugging Face model.
            restart: Called before each.
            seen: What a hook raises when a pass has shown all that is wanted.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=getattr(model, "config", None))
        for go in (self.begin, self.finish):
            restart()
            with suppress(seen):
                go(model, cache)

    def begin(self, model: torch.nn.Module, cache: Any) -> None:
        """The first pass."""
        p = self.beginnings.shape[1]
        positions = torch.arange(p, device=self.rest.device)[None].expand(len(self.beginnings), p)
        forward_cached(model, self.beginnings, torch.ones_like(self.beginnings), positions, cache)

    def finish(self, model: torch.nn.Module, cache: Any) -> None:
        """The second pass."""
        self.first = False
        cache.reorder_cache(self.group)  # one entry for every text
        p, columns = self.beginnings.shape[1], self.rest.shape[1]
        positions = torch.arange(p, p + columns, device=self.rest.device)[None]
        positions = positions.expand(len(self.rest), columns)
        forward_cached(model, self.rest, self.mask, positions, cache)


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
    key = (model.active_adapter, frozenset(taps))
    if key not in model.prefix_refusals:
        model.prefix_refusals[key] = length_dependent(model) or _compared(model, tuple(taps))
    return model.prefix_refusals[key]


def _compared(model: HFModel, sites: tuple[Site, ...]) -> str:
    """Compare two passes with one plain pass over texts of two beginnings and several ends."""
    rows = _probe_rows(model)
    if not rows:
        return f"its context of {model.context_length} tokens is too short for the check"
    selection = Selection(sites, as_strategy(None), Span())
    with model.open(selection) as session:
        try:
            together = session.run_shared(Batch(tuple(rows), shared=len(rows[0]) - 2))
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"the model does not go on from a cache ({type(error).__name__}: {error})"[:200]
        for place, row in enumerate(rows):
            moved, site = worst_row(session.run(Batch((row,))), together, place)
            if moved > live_tolerance(model.dtype):
                return (
                    f"the cache moves {site} by {moved:.1e} of the row's largest value against a "
                    f"plain pass; up to {live_tolerance(model.dtype):.0e} would be rounding"
                )
    return ""


def _probe_rows(model: HFModel) -> list[TokenRow]:
    """Two beginnings with ends of 2, 5 and 3, and of 4 and 1 tokens; past a narrow window."""
    window = getattr(getattr(model.hf, "config", None), "sliding_window", None)
    p = max(24, window + 8 if isinstance(window, int) and window <= 1024 else 0)
    if model.context_length is not None:
        p = min(p, model.context_length - 6)
    if p < 2:
        return []
    ids = np.resize(probe_ids(model.hf)[0].cpu().numpy(), p + 40).astype(np.int64)
    ends = [(0, 2), (0, 5), (0, 3), (1, 4), (1, 1)]
    made = [
        np.concatenate([ids[b : b + p], ids[3 * k : 3 * k + n]]) for k, (b, n) in enumerate(ends)
    ]
    return [TokenRow.from_ids(str(k), row) for k, row in enumerate(made)]
