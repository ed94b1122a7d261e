"""Which model is this? Hashes that do not depend on where its files lie."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from actscope.core.provenance import sha256_json, sha256_text

__all__ = ["chat_template_hash", "tokenizer_hash", "values_hash"]

_SAMPLES = 64


def values_hash(model: nn.Module) -> str:
    """A digest of every parameter's name, shape and up to 64 evenly spaced values.

    It tells two sets of weights apart in a moment, without reading terabytes.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if parameter.device.type == "meta":
            continue
        flat = parameter.detach().reshape(-1)
        step = max(flat.numel() // _SAMPLES, 1)
        sample = flat[::step][:_SAMPLES]
        values = sample.to("cpu", torch.float32).numpy()
        digest.update(values.tobytes())
    return "values:" + digest.hexdigest()[:32]


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
