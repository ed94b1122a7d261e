"""What kind of map a module is, seen by what it does."""

from __future__ import annotations

import torch
from torch import nn

from actscope.backends.hf.placement import fetched
from actscope.backends.hf.trace import evaluation_mode, first_tensor

__all__ = ["is_affine", "is_elementwise", "is_own_product", "is_row_wise"]


@torch.no_grad()
def is_affine(model: nn.Module, path: str, x: torch.Tensor) -> bool:
    """Whether ``f(a) + f(b) == f(a + b) + f(0)`` up to rounding, for random ``a`` and ``b``.

    They have the shape of ``x``, no zeros, and are several times as large: on a sparse or a narrow
    tensor every activation looks affine.
    """
    generator = torch.Generator().manual_seed(0)
    size = 4 * x.float().abs().amax()
    drawn = torch.randn((2, *x.shape), generator=generator).to(x.device)
    a_in, b_in = (drawn * size).to(x.dtype)
    given = (a_in, b_in, a_in + b_in, torch.zeros_like(x))
    try:
        with fetched(model, path) as module, evaluation_mode(module):
            made = [first_tensor(module(part)) for part in given]
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


@torch.no_grad()
def is_row_wise(model: nn.Module, path: str, x: torch.Tensor) -> bool:
    """Whether each row of the output depends on the same row of the input only.

    A convolution over tokens, or anything else that mixes them, is not.
    """
    rows = x.reshape(-1, x.shape[-1])
    other = rows.clone()
    other[len(rows) // 2] = rows[0]
    try:
        with fetched(model, path) as module, evaluation_mode(module):
            plain, changed = (first_tensor(module(t.reshape(x.shape))) for t in (rows, other))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    if plain is None or changed is None or plain.numel() % len(rows):
        return False
    a, b = (t.reshape(len(rows), -1).float() for t in (plain, changed))
    moved = (a - b).abs().amax(-1) > 1e-2 * a.abs().amax(-1)
    moved[len(rows) // 2] = False
    return not bool(moved.any())


@torch.no_grad()
def is_own_product(model: nn.Module, path: str, x: torch.Tensor, made: torch.Tensor) -> bool:
    """Whether what a module returned is its input times one of its own weights, up to rounding.

    This needs no further call of a module that takes more than one tensor.
    """
    with fetched(model, path) as module:
        weights = [p for p in module.parameters(recurse=False) if p.ndim == 2]
        rows, out = x.reshape(-1, x.shape[-1]).float(), made.reshape(-1, made.shape[-1]).float()
        half = torch.bfloat16 in (x.dtype, made.dtype) or torch.float16 in (x.dtype, made.dtype)
        allowed = (0.03 if half else 1e-4) * out.abs().amax()
        return any(
            weight.shape == (out.shape[-1], rows.shape[-1])
            and len(out) == len(rows)
            and bool(((rows @ weight.float().T - out).abs() <= allowed).all())
            for weight in weights
        )
