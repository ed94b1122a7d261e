"""TransformerLens' own implementation of the model, ``HookedTransformer``, with the same weights.

TransformerLens 4 has dropped it; this is the last 3 that SAELens also takes.
"""

from __future__ import annotations

from pathlib import Path

from transformer_lens import HookedTransformer

from peers.cached import Cached
from peers.plain import load_model
from peers.tasks import Peer


def load(folder: Path) -> Peer:
    model = HookedTransformer.from_pretrained_no_processing(
        str(folder), hf_model=load_model(folder), device="cpu"
    )
    return Cached(model, "blocks.{}.hook_resid_post", "blocks.{}.attn.hook_pattern")
