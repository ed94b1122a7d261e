"""The loop of TransformerLens' two kinds of model: ``run_with_cache`` of named hook points."""

from __future__ import annotations

from typing import Any

import torch

from peers.batches import Batch
from peers.tasks import Keep, Peer


class Cached(Peer):
    """Only the hook points asked for are cached, and the pass stops after the last block wanted.

    The bridge stops at the entry of the next block: after the last of all there is none, so the
    final norm and the unembedding run there, and their result is thrown away.
    """

    def __init__(self, model: Any, resid_post: str, pattern: str) -> None:
        self.model = model
        self.n_layers = model.cfg.n_layers
        self.resid_post, self.pattern_name = resid_post, pattern

    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        names = [self.resid_post.format(layer) for layer in layers]
        cache = self._cache(batch, names, layers[-1] + 1)
        return [keep(cache[name]) for name in names]

    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        name = self.pattern_name.format(layer)
        return self._cache(batch, [name], layer + 1)[name][:, heads]

    def _cache(self, batch: Batch, names: list[str], stop: int) -> Any:
        _, cache = self.model.run_with_cache(
            batch.ids, names_filter=names, stop_at_layer=stop, return_type=None,
            return_cache_object=False,
        )  # fmt: skip
        return cache
