"""Everything that hooks, flags or writes could leave on a model, to compare before and after."""

from __future__ import annotations

import json
from typing import Any

from torch import nn


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
        "values": {k: v.double().sum().item() for k, v in hf.state_dict().items()},
        "grads": [(n, p.requires_grad, p.grad is None) for n, p in hf.named_parameters()],
    }
