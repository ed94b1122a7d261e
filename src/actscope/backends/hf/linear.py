"""What kind of map a module is, seen by what it does."""

from __future__ import annotations

import torch
from torch import nn

from actscope.backends.hf.placement import fetched
from actscope.backends.hf.trace import evaluation_mode, first_tensor

__all__ = ["is_affine", "is_elementwise"]


@torch.no_grad()
def is_affine(model: nn.Module, path: str, x: torch.Tensor) -> bool:
    """Whether ``f(x) + f(y) == f(x + y) + f(0)`` up to rounding, for ``y`` the rows in reverse."""
    y = x.flip(-1) * 0.5
    try:
        with fetched(model, path) as module, evaluation_mode(module):
            made = [first_tensor(module(part)) for part in (x, y, x + y, torch.zeros_like(x))]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # it takes more than one tensor: no plain linear module
    outputs = [tensor.float() for tensor in made if tensor is not None]
    if len(outputs) != 4:
        return False
    a, b, both, zero = outputs
    size = torch.stack([a.abs().amax(), b.abs().amax(), both.abs().amax()]).amax()
    half = x.dtype in (torch.bfloat16, torch.float16)
    return float((a + b - both - zero).abs().amax()) <= (0.03 if half else 1e-4) * float(size)


@torch.no_grad()
def is_elementwise(model: nn.Module, path: str, x: torch.Tensor) -> bool:
    """Whether each output depends on the input at its own place only, as activations do."""
    try:
        with fetched(model, path) as module, evaluation_mode(module):
            plain, shifted = first_tensor(module(x)), first_tensor(module(x.roll(1, -1)))
            alone = first_tensor(module(torch.cat([x[..., :1], torch.zeros_like(x[..., 1:])], -1)))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    if plain is None or shifted is None or alone is None or plain.shape != x.shape:
        return False
    return torch.allclose(plain.roll(1, -1).float(), shifted.float(), rtol=1e-2, atol=1e-5) and (
        torch.allclose(plain[..., 0].float(), alone[..., 0].float(), rtol=1e-2, atol=1e-5)
    )
