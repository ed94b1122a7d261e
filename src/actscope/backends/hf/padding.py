"""Does padding leave a model's rows alone? Asked once per side, by value.

Recurrent mixers carry padding on the left into their state, some models count positions from the
first column whatever the mask says, and a few ignore the mask. Where rows move, texts of different
lengths must not share a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from actscope.backends.hf.blocks import Blocks
from actscope.backends.hf.forward import forward
from actscope.backends.hf.probe import probe_encoder, probe_ids, reading_probe
from actscope.backends.hf.trace import trace_forward
from actscope.core.activations import Batch, TokenRow
from actscope.core.arrays import to_float32
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.strategies import NoneStrategy

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["pads_alike", "rows_alike"]

SHORT = 4
"""Tokens of the text that is padded to the probe's length."""


def pads_alike(model: nn.Module, blocks: Blocks, pad_id: int, side: str) -> bool:
    """Whether the last block returns the same rows for a text alone and padded on that side.

    Args:
        model: The model.
        blocks: Its blocks.
        pad_id: What fills the shorter row.
        side: ``left`` or ``right``.
    """
    ids = probe_ids(model)[0].tolist()
    rows = [TokenRow.from_ids("long", ids), TokenRow.from_ids("short", ids[:SHORT])]
    together = _stream(model, blocks, Batch(tuple(rows), side), pad_id)
    for place, row in enumerate(rows):
        alone = _stream(model, blocks, Batch((row,)), pad_id)[0].float()
        start = len(ids) - len(row) if side == "left" else 0
        beside = together[place, start : start + len(row)].float()
        half = together.dtype in (torch.bfloat16, torch.float16)
        allowed = (0.05 if half else 1e-3) * alone.abs().amax(-1, keepdim=True)
        if not bool(((alone - beside).abs() <= allowed).all()):
            return False
    return True


def rows_alike(model: HFModel, sites: Sequence[Site]) -> bool:
    """Whether sites have the same rows for a text alone and padded on the left.

    Queries and keys may be rotated by the column that a token stands in, which the stream does not
    show: only the differences of positions count there.
    """
    ids = probe_ids(model.hf)[0].tolist()
    rows = reading_probe(model.hf, Batch.from_ids([ids, ids[:SHORT]])).rows
    selection = Selection(tuple(sites), NoneStrategy())
    with model.open(selection) as session:
        together = session.run_anyway(Batch(rows, "left"))
        alone = session.run_anyway(Batch((rows[1],)))
    for site in sites:
        a, b = (to_float32(x) for x in (alone.arrays[site], together.arrays[site][len(ids) :]))
        half = model.site_dtype(site) in (torch.bfloat16, torch.float16)
        allowed = (0.05 if half else 1e-3) * np.abs(a).max(axis=-1, keepdims=True)
        if not bool((np.abs(a - b) <= allowed).all()):
            return False
    return True


def _stream(model: nn.Module, blocks: Blocks, batch: Batch, pad_id: int) -> torch.Tensor:
    """The stream leaving the last block, ``[n, pos, d]``."""
    ids, mask = batch.padded(pad_id)
    device = probe_ids(model).device
    input_ids = torch.from_numpy(ids).to(device)
    attention = torch.from_numpy(mask.astype(np.int64)).to(device)
    left = batch.padding_side == "left" and not bool(mask.all())
    encoder = probe_encoder(model, len(batch.rows))
    trace = trace_forward(
        model,
        lambda: forward(model, input_ids, attention, left_padded=left, encoder=encoder),
    )
    last = blocks.last
    call = trace.turn(blocks.exits[last], blocks.turns[last], blocks.times(last))
    assert call is not None and call.output is not None  # as in the probe
    return blocks.layout.rows(call.output)
