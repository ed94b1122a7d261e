"""Hand-written references, independent of the resolver: where each family's code has its parts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from actscope.core.activations import Batch

BLOCKS = {
    "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "falcon": "transformer.h",
    "bloom": "transformer.h", "opt": "model.decoder.layers", "bert": "encoder.layer",
    "distilbert": "transformer.layer",
}  # fmt: skip
USUAL_BLOCKS = "model.layers"

ATTENTION = {
    "gpt2": "attn", "gpt_neox": "attention", "falcon": "self_attention",
    "bloom": "self_attention.dense", "gemma2": "post_attention_layernorm",
    "gemma3_text": "post_attention_layernorm", "olmo2": "post_attention_layernorm",
}  # fmt: skip
USUAL_ATTENTION = "self_attn"

MLP = {
    "gemma2": "post_feedforward_layernorm", "gemma3_text": "post_feedforward_layernorm",
    "olmo2": "post_feedforward_layernorm", "opt": "fc2", "bloom": "mlp.dense_4h_to_h",
}  # fmt: skip
USUAL_MLP = "mlp"

FINAL_NORM = {
    "gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm",
    "falcon": "transformer.ln_f", "bloom": "transformer.ln_f", "phi": "model.final_layernorm",
    "opt": "model.decoder.final_layer_norm",
}  # fmt: skip
USUAL_FINAL_NORM = "model.norm"

PARALLEL = {"phi", "gpt_neox", "falcon", "cohere", "cohere2"}
SCALE = {"granite": 0.22}

# What HF calls the last hidden state, by reading each family's code: after the final norm, or not.
LAST_HIDDEN_STATE_IS_NORMED = {
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma2", "gemma3_text",
    "gpt_neox", "falcon", "bloom", "opt", "olmo2", "granite", "cohere", "cohere2", "mixtral",
    "olmoe", "qwen3_moe",
}  # fmt: skip


def blocks_of(hf: Any, family: str) -> Any:
    return hf.get_submodule(BLOCKS.get(family, USUAL_BLOCKS))


def hf_arguments(batch: Batch) -> dict[str, Any]:
    ids, mask = batch.padded(0)
    arguments: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
    return arguments


def hf_forward(hf: Any, batch: Batch) -> Any:
    """HF's own outputs for exactly this padded batch, from a copy: asking leaves hooks behind."""
    import inspect

    twin = copy.deepcopy(hf)
    arguments = hf_arguments(batch)
    accepted = inspect.signature(type(hf).forward).parameters
    mask = arguments["attention_mask"]
    if batch.padding_side == "left" and not bool(mask.all()) and "position_ids" in accepted:
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    with torch.no_grad():
        return twin(**arguments, output_hidden_states=True)


def module_outputs(hf: Any, paths: list[str], batch: Batch) -> dict[str, torch.Tensor]:
    """What modules return, by plain hooks on a copy."""
    import inspect

    twin = copy.deepcopy(hf)
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) else output
            seen[path] = tensor.detach().clone()

        return hook

    for path in paths:
        twin.get_submodule(path).register_forward_hook(keep(path))
    arguments = hf_arguments(batch)
    if "use_cache" in inspect.signature(type(hf).forward).parameters:
        arguments["use_cache"] = False
    with torch.no_grad():
        twin(**arguments)
    return seen


def rows_of(tensor: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """The unpadded rows of ``[n, pos, d]``, by the mask alone."""
    _, mask = batch.padded(0)
    shaped = tensor.reshape(*mask.shape, tensor.shape[-1])
    return [shaped[i][torch.from_numpy(mask[i])] for i in range(len(mask))]
