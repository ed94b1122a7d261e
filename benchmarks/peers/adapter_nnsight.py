"""nnsight: values are read inside a trace that ends with ``tracer.stop()`` after the last of them.

The model is wrapped as it is (``NNsight``): ready token ids go straight in, without the pipeline
that texts would go through.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from nnsight import NNsight

from peers.batches import Batch
from peers.plain import attention, blocks, eager_attention, load_model
from peers.tasks import Keep, Peer


class Traced(Peer):
    """One trace per batch over the blocks of a wrapped model."""

    def __init__(self, model: Any) -> None:
        self.hf = model
        self.model = NNsight(model)
        names = {module: name for name, module in model.named_modules()}
        plain = blocks(model)
        self.blocks = [self._envoy(names[block]) for block in plain]
        self.attentions = [self._envoy(names[attention(block)]) for block in plain]
        self.n_layers = len(plain)

    def _envoy(self, path: str) -> Any:
        found: Any = self.model
        for name in path.split("."):
            found = found[int(name)] if name.isdigit() else getattr(found, name)
        return found

    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        wanted = [self.blocks[layer] for layer in layers]
        with self.model.trace(batch.ids, use_cache=False) as tracer:
            found = [].save()
            for block in wanted:
                output = block.output
                found.append(keep(output[0] if isinstance(output, tuple) else output))
            tracer.stop()
        return list(found)

    def attending(self) -> AbstractContextManager[Any]:
        return eager_attention(self.hf)

    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        wanted = self.attentions[layer]
        with self.model.trace(batch.ids, use_cache=False) as tracer:
            found = wanted.output[1][:, heads].save()
            tracer.stop()
        return found


def load(folder: Path) -> Peer:
    return Traced(load_model(folder))
