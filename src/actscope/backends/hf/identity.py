"""Which model is this? Hashes that do not depend on where its files lie."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.placement import offloaded_value
from actscope.core.provenance import sha256_json, sha256_text

__all__ = ["chat_template_hash", "config_hash", "tokenizer_hash", "values_hash"]

_SAMPLES = 64


_NOT_OF_THE_MODEL = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "output_attentions", "output_hidden_states", "return_dict",
}  # fmt: skip


def config_hash(hf: nn.Module) -> str:
    """A digest of the configuration and the stop tokens, empty for a module without one.

    Weights alone do not say what a model computes: ``rope_theta`` and ``rms_norm_eps`` do too.
    """
    config = getattr(hf, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return ""
    fields = {k: v for k, v in config.to_dict().items() if k not in _NOT_OF_THE_MODEL}
    stops = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
    text = json.dumps([fields, stops], sort_keys=True, default=str)
    return sha256_text(text)[:32]


def values_hash(model: nn.Module) -> str:
    """A digest of every weight's and buffer's name, shape and up to 64 evenly spaced values.

    It tells two sets of weights apart in a moment, without reading terabytes.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict(keep_vars=True).items():
        _update(digest, name, value, model)
    return "values:" + digest.hexdigest()[:32]


def _update(digest: Any, name: str, value: Any, model: nn.Module) -> None:
    """Add one entry of a state dict; a quantised weight is several tensors and how to use them."""
    if not isinstance(value, torch.Tensor):
        digest.update(f"{name}{type(value).__name__}".encode())
        return
    digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
    if hasattr(value, "__tensor_flatten__"):
        quantised: Any = value
        parts, settings = quantised.__tensor_flatten__()
        digest.update(str(settings).encode())
        for part in parts:
            _update(digest, f"{name}.{part}", getattr(value, part), model)
        return
    if value.device.type == "meta":
        value = offloaded_value(model, name)
    flat = value.detach().reshape(-1)
    step = max(flat.numel() // _SAMPLES, 1)
    sample = flat[::step][:_SAMPLES]
    digest.update(sample.to("cpu", torch.float32).numpy().tobytes())


def tokenizer_hash(tokenizer: Any) -> str:
    """A digest of the vocabulary and the rules, empty without a tokenizer."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)  # set and reset by calls, not part of the identity
        rules.pop("padding", None)
        return sha256_json(rules)
    return sha256_json(tokenizer.get_vocab())


def chat_template_hash(tokenizer: Any) -> str:
    """A digest of the chat template, empty where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    return sha256_text(template if isinstance(template, str) else json.dumps(template))
