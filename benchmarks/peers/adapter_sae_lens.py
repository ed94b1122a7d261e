"""SAELens' caching: ``ActivationsStore`` of several hook points over a plain Hugging Face model.

``CacheActivationsRunner`` writes what such a store hands it; it takes one hook point a run, and
joins texts into rows of one length, so its values are of other texts than those asked for. The
store's ``get_multi_hook_activations``, which takes tokens and gives all hook points in one pass, is
what can be compared. ``HookedProxyLM`` hooks only what it is told to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activations_store import ActivationsStore
from transformers import AutoTokenizer

from peers.batches import Batch
from peers.plain import blocks, load_model
from peers.tasks import Keep, NotOfferedError, Peer


class Stored(Peer):
    """One store per choice of layers: a store's hook points are fixed when it is made."""

    def __init__(self, folder: Path) -> None:
        model = load_model(folder)
        names = {module: name for name, module in model.named_modules()}
        self.names = [names[block] for block in blocks(model)]
        self.n_layers = len(self.names)
        self.width = model.config.hidden_size
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.proxy = HookedProxyLM(model, tokenizer, hook_names=self.names)
        self.stores: dict[tuple[int, ...], Any] = {}

    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        names = [self.names[layer] for layer in layers]
        found = self._store(layers, names).get_multi_hook_activations(batch.ids)
        return [keep(found[name]) for name in names]

    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        raise NotOfferedError("its stores hold one vector per token: no attention patterns")

    def _store(self, layers: list[int], names: list[str]) -> Any:
        key = tuple(layers)
        if key not in self.stores:
            unread = Dataset.from_dict({"input_ids": [[1] * 64] * 4})
            self.stores[key] = ActivationsStore.from_config_multi_hook(
                self.proxy, dataset=unread, hook_names=names, streaming=False, context_size=64,
                hook_d_ins=dict.fromkeys(names, self.width), total_training_tokens=1,
                prepend_bos=False,
            )  # fmt: skip
        return self.stores[key]


def load(folder: Path) -> Peer:
    return Stored(folder)
