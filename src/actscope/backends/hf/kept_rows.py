"""Which rows of a padded batch are kept, where they go, and what is made of them in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.attention_rows import Checked, QueryBlock
from actscope.backends.hf.resolve import Tap
from actscope.backends.hf.transfer import placed
from actscope.core.activations import (
    ActivationBatch,
    Batch,
    ExampleFailure,
    ExampleRecord,
    TokenRow,
)
from actscope.core.arrays import DTYPES, Array
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import PROMPT
from actscope.selectors import select

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel
    from actscope.backends.hf.prefix import SharedPrefix

__all__ = [
    "Group",
    "Kept",
    "assemble",
    "cut",
    "described",
    "keeps_width",
    "picks",
    "plan_rows",
    "to_array",
    "to_arrays",
]

Group = tuple[int, int, torch.dtype]
"""Rows, width and dtype: sites alike in all three share one buffer and one copy."""


@dataclass
class Kept:
    """What one batch keeps: which rows of the padded batch, and where they go.

    Attributes:
        rows: Flat row indices into ``[n * pos]``, examples in order: of every kept token, or of
            one an example where the strategy picks one.
        examples: Which examples keep anything, or None for all.
        mask: ``[kept examples, pos]`` bool, the kept tokens (pooled).
        buffers: ``[sites, rows, width]`` of each group.
        slots: Site -> (group, place in its buffer).
        loose: Sites whose width only the strategy knows.
        pending: Sites not seen yet in this pass.
        blocks: The queries and keys of each kept example, for patterns.
        checks: What tells whether each pattern is right, to be looked at after the pass.
        calls: How often the module of a tap has run in this pass.
        parts: What has arrived of sites that are sums.
        shared: The passes of texts that begin alike, else None.
    """

    rows: torch.Tensor
    examples: torch.Tensor | None
    mask: torch.Tensor
    buffers: dict[Group, torch.Tensor] = field(default_factory=dict[Group, torch.Tensor])
    slots: dict[Site, tuple[Group, int]] = field(default_factory=dict[Site, tuple[Group, int]])
    loose: dict[Site, torch.Tensor] = field(default_factory=dict[Site, torch.Tensor])
    pending: set[Site] = field(default_factory=set[Site])
    blocks: tuple[QueryBlock, ...] = ()
    checks: dict[Site, Checked] = field(default_factory=dict[Site, Checked])
    calls: dict[tuple[Site, Tap], int] = field(default_factory=dict[tuple[Site, Tap], int])
    parts: dict[Site, dict[Tap, torch.Tensor]] = field(
        default_factory=dict[Site, dict[Tap, torch.Tensor]]
    )
    shared: SharedPrefix | None = None

    def restart(self, sites: Iterable[Site]) -> None:
        """Nothing has been seen yet in the pass that comes.

        Raises:
            BadInputError: it is not the first of a batch, and the one before has left a site out.
        """
        if self.shared is not None and self.shared.turn and self.pending:
            missing = ", ".join(str(s) for s in sorted(self.pending))
            raise BadInputError(f"the forward pass never reached {missing}")
        self.pending = set(sites)
        self.calls.clear()

    def share(self, shared: SharedPrefix) -> SharedPrefix:
        """Take the rows from those of several passes."""
        self.shared = shared
        self.rows = shared.index.reshape(-1)[self.rows]
        return shared

    def padded(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[kept examples, pos, d]`` of what ``_keep`` was given."""
        if self.shared is not None:
            return self.of_examples(self.shared.padded(tensor))
        return self.of_examples(tensor.reshape(-1, self.mask.shape[1], tensor.shape[-1]))

    def of_examples(self, tensor: torch.Tensor) -> torch.Tensor:
        """The examples that keep anything."""
        return tensor if self.examples is None else tensor.index_select(0, self.examples)


def cut(
    batch: Batch, selection: Selection
) -> tuple[list[Array | None], tuple[ExampleFailure, ...]]:
    """The positions that each example keeps, None and a failure for those that keep none."""
    spans: list[Array | None] = []
    failures: list[ExampleFailure] = []
    for index, row in enumerate(batch.rows):
        try:
            spans.append(select(row, selection.span))
        except ExampleError as error:
            spans.append(None)
            failures.append(ExampleFailure(row.id, index, error.kind, str(error)))
    return spans, tuple(failures)


def plan_rows(
    spans: list[Array | None],
    keep: list[int],
    width: int,
    starts: Sequence[int],
    device: torch.device,
    picks: str | None = None,
) -> Kept:
    """Where the kept tokens of a padded batch lie.

    Args:
        spans: The positions that each example keeps.
        keep: The examples that keep any.
        width: Columns of the padded batch.
        starts: The column of each example's first token.
        device: Where the model's tensors are.
        picks: ``first`` or ``last``: of each example, this kept token alone.
    """
    mask = np.zeros((len(keep), width), dtype=np.bool_)
    flat: list[Array] = []
    for place, index in enumerate(keep):
        positions = spans[index]
        assert positions is not None
        mask[place, positions + starts[index]] = True
        flat.append(index * width + starts[index] + _picked(positions, picks))
    rows = placed(np.concatenate(flat).astype(np.int64), device)
    everyone = len(keep) == len(spans)
    examples = None if everyone else placed(np.asarray(keep, dtype=np.int64), device)
    return Kept(rows, examples, placed(mask, device))


def _picked(positions: Array, picks: str | None) -> Array:
    if picks is None:
        return positions
    return positions[-1:] if picks == "last" else positions[:1]


def to_arrays(kept: Kept, buffers: Sequence[torch.Tensor] | None = None) -> dict[Site, Array]:
    """One copy per buffer, then views.

    Args:
        kept: What the batch keeps.
        buffers: Its buffers on the CPU, where they are there already.
    """
    here = [b.cpu() for b in kept.buffers.values()] if buffers is None else buffers
    on_cpu = dict(zip(kept.buffers, here, strict=True))
    tensors = {site: on_cpu[group][place] for site, (group, place) in kept.slots.items()}
    tensors |= {site: tensor.cpu() for site, tensor in kept.loose.items()}
    return {site: to_array(tensor) for site, tensor in tensors.items()}


def to_array(tensor: torch.Tensor) -> Array:
    """The same CPU memory as numpy, bfloat16 by ``ml_dtypes``."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()


def assemble(
    batch: Batch,
    spans: list[Array | None],
    keep: list[int],
    arrays: dict[Site, Array],
    selection: Selection,
    failures: tuple[ExampleFailure, ...],
) -> ActivationBatch:
    """Arrays of the kept examples with their tokens: what a capture returns."""
    rows = [batch.rows[i] for i in keep]
    kept = [positions for positions in spans if positions is not None]
    counts = [1] * len(rows) if selection.strategy.pools else [len(p) for p in kept]
    positions = [] if selection.strategy.pools else kept
    return ActivationBatch(
        arrays={site: arrays[site] for site in selection.sites},
        offsets=_offsets(counts),
        positions=_joined(positions, np.int32),
        examples=tuple(_record(row, index) for row, index in zip(rows, keep, strict=True)),
        token_ids=_joined([row.token_ids for row in rows], np.int64),
        token_offsets=_offsets([len(row) for row in rows]),
        phase=_joined([row.phase for row in rows], np.uint8),
        pooled=selection.strategy.pools,
        failures=failures,
    )


def described(model: HFModel, batch: ActivationBatch) -> ActivationBatch:
    """The same with what the model says about it: blocks, heads, and what was done to it."""
    heads = {
        site: model.heads(site)
        for site, array in batch.arrays.items()
        if site.layout == "blocks" or array.shape[-1] == model.width(site)
    }
    return replace(
        batch,
        n_layers=model.n_layers,
        heads={site: count for site, count in heads.items() if count},
        interventions=model.interventions.describe(),
    )


def _record(row: TokenRow, index: int) -> ExampleRecord:
    return ExampleRecord(row.id, index, len(row), int((row.phase == PROMPT).sum()))


def _offsets(counts: list[int]) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _joined(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def keeps_width(selection: Selection) -> bool:
    """Whether pooling keeps the width: every strategy but a custom one does."""
    return selection.strategy.name != "custom"


def picks(selection: Selection) -> str | None:
    """Which one kept token the strategy's row is, if it is that of one: ``first`` or ``last``."""
    return getattr(selection.strategy, "picks", None)
