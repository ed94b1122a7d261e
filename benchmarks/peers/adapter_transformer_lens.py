"""TransformerLens' bridge: Hugging Face's own modules under TransformerLens' names."""

from __future__ import annotations

from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from peers.cached import Cached
from peers.plain import load_model
from peers.tasks import Peer


def load(folder: Path) -> Peer:
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=load_model(folder), tokenizer=None, device="cpu"
    )
    return Cached(bridge, "blocks.{}.hook_out", "blocks.{}.attn.hook_pattern")
