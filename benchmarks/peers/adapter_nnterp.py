"""nnterp: ``layers_output`` and ``attention_probabilities`` of a ``StandardizedTransformer``.

It has one attention implementation per model: with attention probabilities it is eager. So
patterns come from a model of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnterp import StandardizedTransformer

from peers.batches import Batch
from peers.tasks import Keep, Peer


class Standardized(Peer):
    """Traces that stop after the last value read; one model in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model: Any = None
        self._eager: bool | None = None
        self.n_layers = self.model(eager=False).num_layers

    def model(self, *, eager: bool) -> Any:
        """The model as the task needs it; a change is paid for in the warm-up."""
        if self._eager != eager:
            self._model = None
            self._model = StandardizedTransformer(
                str(self.folder), enable_attention_probs=eager, dtype=torch.float32,
                device_map="cpu",
            )  # fmt: skip
            self._eager = eager
        return self._model

    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        model = self.model(eager=False)
        with model.trace(batch.ids, use_cache=False) as tracer:
            found = [].save()
            for layer in layers:
                found.append(keep(model.layers_output[layer]))
            tracer.stop()
        return list(found)

    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        model = self.model(eager=True)
        with model.trace(batch.ids, use_cache=False) as tracer:
            found = model.attention_probabilities[layer][:, heads].save()
            tracer.stop()
        return found


def load(folder: Path) -> Peer:
    return Standardized(folder)
