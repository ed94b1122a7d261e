"""Everything that hooks, flags or writes could leave on a model, to compare before and after."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.tobytes()).hexdigest()


def _generation(hf: nn.Module) -> Any:
    config = getattr(hf, "generation_config", None)
    return None if config is None else [id(config), config.to_dict()]


def state_of(hf: nn.Module) -> dict[str, Any]:
    """Everything a hook, a flag or a write could have left behind."""
    modules = list(hf.named_modules())
    return {
        "hooks": [(n, len(m._forward_hooks)) for n, m in modules],
        "always": [(n, len(m._forward_hooks_always_called)) for n, m in modules],
        "kwargs": [(n, len(m._forward_hooks_with_kwargs)) for n, m in modules],
        "pre": [(n, len(m._forward_pre_hooks)) for n, m in modules],
        "pre kwargs": [(n, len(m._forward_pre_hooks_with_kwargs)) for n, m in modules],
        "backward": [(n, len(m._backward_hooks)) for n, m in modules],
        "training": [m.training for _, m in modules],
        "forward": [(n, "forward" in vars(m)) for n, m in modules],
        "config": json.dumps(hf.config.to_dict(), sort_keys=True, default=str),
        "generation": json.dumps(_generation(hf), sort_keys=True, default=str),
        "attention": (
            AttentionInterface.get_interface,
            sorted(AttentionInterface().valid_keys()),
        ),
        "values": {k: _digest(v) for k, v in hf.state_dict().items()},
        "grads": [(n, p.requires_grad, p.grad is None) for n, p in hf.named_parameters()],
    }
