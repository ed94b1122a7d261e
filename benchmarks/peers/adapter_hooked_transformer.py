"""TransformerLens' own implementation of the model, ``HookedTransformer``, with the same weights.

TransformerLens 4 has dropped it; this is the last 3 that SAELens also takes. ``from_pretrained``
takes only names it knows, so these are its steps one by one, for a model in a folder. No weight is
folded or centred: its values are those of the model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as loading

from peers.cached import Cached
from peers.plain import load_model
from peers.tasks import Peer


def load(folder: Path) -> Peer:
    found = loading.convert_hf_model_config(str(folder))
    found |= {"init_weights": False, "device": "cpu", "dtype": torch.float32}
    config = HookedTransformerConfig.from_dict(found)
    weights = loading.get_pretrained_state_dict(str(folder), config, load_model(folder))
    model = HookedTransformer(config, default_padding_side="right")
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return Cached(model.eval(), "blocks.{}.hook_resid_post", "blocks.{}.attn.hook_pattern")
