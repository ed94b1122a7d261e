"""Hugging Face's own ``output_hidden_states`` and ``output_attentions``, without the LM head.

There is no early stop and no choice of layers or heads: all are computed and kept. What Hugging
Face calls the last hidden state has been through the final norm.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peers.batches import Batch
from peers.plain import blocks, eager_attention, load_model
from peers.tasks import Keep, Peer


class HuggingFace(Peer):
    """The base model's own outputs."""

    last_is_normed = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base = model.base_model
        self.n_layers = len(blocks(model))

    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        states = self.base(batch.ids, use_cache=False, output_hidden_states=True).hidden_states
        return [keep(states[layer + 1]) for layer in layers]

    def attending(self) -> AbstractContextManager[Any]:
        return eager_attention(self.model)

    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        found = self.base(batch.ids, use_cache=False, output_attentions=True).attentions
        return found[layer][:, heads]


def load(folder: Path) -> Peer:
    return HuggingFace(load_model(folder))
