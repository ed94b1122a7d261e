"""Find a model's blocks, final norm and unembedding by verification.

The blocks are the ``ModuleList`` whose item i + 1 receives bitwise what item i returned. The final
norm is the module outside the blocks whose input is bitwise the last block's output, which keeps
the shape, and whose output does not grow when its input does. No name plays a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from actscope.backends.hf.placement import offloaded_value
from actscope.backends.hf.trace import Call, Trace
from actscope.core.errors import ModelLoadError

__all__ = ["Blocks", "differ", "find_blocks", "find_embedding", "find_final_norm", "same"]


@dataclass(frozen=True)
class Blocks:
    """The chain of blocks.

    Attributes:
        paths: Module path of each block.
        calls: What each received and returned in the probe.
        inputs: Which of the floating-point inputs is the residual stream, for each block.
    """

    paths: tuple[str, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]

    def pre(self, layer: int) -> torch.Tensor:
        """The residual stream entering a block, ``[n, pos, d_model]``."""
        return self.calls[layer].inputs[self.inputs[layer]]

    def post(self, layer: int) -> torch.Tensor:
        """The residual stream leaving a block, ``[n, pos, d_model]``."""
        output = self.calls[layer].output
        assert output is not None  # find_blocks keeps only blocks that returned a tensor
        return output

    def contains(self, path: str) -> bool:
        """Whether a module lies inside a block, or is one."""
        return any(path == p or path.startswith(p + ".") for p in self.paths)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bitwise equal values of one dtype, a flattened token axis allowed."""
    if a.dtype != b.dtype or a.numel() != b.numel() or a.shape[-1] != b.shape[-1]:
        return False
    return torch.equal(a.reshape(-1), b.reshape(-1).to(a.device))


def differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which rows of ``[..., d]`` differ by more than rounding, ``[...]`` bool.

    Altering one token can change the rounding of others without their seeing it: a mixture of
    experts then multiplies matrices of other shapes.
    """
    half = a.dtype in (torch.bfloat16, torch.float16)
    tolerance = (2 if half else 64) * torch.finfo(a.dtype).eps
    x, y = a.float(), b.float()
    return (x - y).abs().amax(-1) > tolerance * torch.maximum(x.abs(), y.abs()).amax(-1)


def find_blocks(model: nn.Module, trace: Trace) -> Blocks:
    """The longest verified chain; of equals, the one with the most parameters.

    Raises:
        ModelLoadError: no module list passes a residual stream from item to item.
    """
    chains: list[tuple[int, int, Blocks]] = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            blocks = _chain(path, module, trace)
            if blocks is not None:
                size = sum(p.numel() for p in module.parameters())
                chains.append((len(blocks.paths), size, blocks))
    if not chains:
        raise ModelLoadError(
            "no chain of blocks was found: in no module list is every item's input bitwise the "
            "output of the item before it",
            next_step="capture by module path instead, or report the model type",
        )
    return max(chains, key=lambda c: c[:2])[2]


def _chain(path: str, items: nn.ModuleList | nn.Sequential, trace: Trace) -> Blocks | None:
    paths = tuple(f"{path}.{i}" if path else str(i) for i in range(len(items)))
    calls = [trace.single(p) for p in paths]
    if not calls or any(c is None or c.output is None or not c.inputs for c in calls):
        return None
    chain = [c for c in calls if c is not None]
    first = _residual_input(chain[0], None)
    inputs = [first]
    for before, call in pairwise(chain):
        inputs.append(_residual_input(call, before.output))
    if any(i is None for i in inputs):
        return None
    return Blocks(paths, tuple(chain), tuple(i for i in inputs if i is not None))


def _residual_input(call: Call, before: torch.Tensor | None) -> int | None:
    """Which input continues the stream: shaped like the output, equal to what came before."""
    assert call.output is not None
    if call.output.ndim != 3:
        return None
    for index, tensor in enumerate(call.inputs):
        if tensor.shape == call.output.shape and (before is None or same(tensor, before)):
            return index
    return None


def find_final_norm(model: nn.Module, trace: Trace, blocks: Blocks) -> str | None:
    """The path of the final norm, or None where nothing normalises the last block's output."""
    last = blocks.calls[-1]
    for path, call in _called_after(trace, last.order):
        if blocks.contains(path) or call.output is None or not call.inputs:
            continue
        if call.output.shape != last.output.shape or not same(call.inputs[0], blocks.post(-1)):  # pyright: ignore[reportOptionalMemberAccess]
            continue
        if _ignores_scale(model.get_submodule(path), call.inputs[0]):
            return path
    return None


def _called_after(trace: Trace, order: int) -> Iterator[tuple[str, Call]]:
    calls = [(p, c[0]) for p, c in trace.calls.items() if len(c) == 1 and c[0].order > order]
    return iter(sorted(calls, key=lambda item: item[1].order))


@torch.no_grad()
def _ignores_scale(module: nn.Module, hidden: torch.Tensor) -> bool:
    """Whether a tenfold input leaves the output's size as it is: a norm, and nothing else, does."""
    unit = hidden / hidden.float().pow(2).mean().sqrt().clamp_min(1e-12).to(hidden.dtype)
    small = _size(module, unit * 100)
    large = _size(module, unit * 1000)
    return small > 0 and large / small < 1.5


def _size(module: nn.Module, hidden: torch.Tensor) -> float:
    output = module(hidden)
    tensor = output if isinstance(output, torch.Tensor) else output[0]
    return float(tensor.float().norm())


def find_embedding(model: nn.Module, trace: Trace, ids: torch.Tensor) -> tuple[str, str] | None:
    """Path of the token embedding and how it was checked, or None.

    The module's output must be its weight's rows for the token ids, times one constant at most.
    """
    for path, module in model.named_modules():
        call = trace.single(path)
        if not isinstance(module, nn.Embedding) or call is None or call.output is None:
            continue
        if call.output.shape[:-1] != ids.shape:
            continue
        weight = module.weight.detach()
        if weight.device.type == "meta":
            weight = offloaded_value(model, f"{path}.weight" if path else "weight")
        rows = torch.nn.functional.embedding(ids, weight.to(ids.device))
        if same(call.output, rows):
            return path, "rows of the embedding matrix, bitwise"
        scale = call.output.float().norm() / rows.float().norm().clamp_min(1e-12)
        scaled = rows.float() * scale
        if torch.allclose(call.output.float(), scaled, rtol=2e-2, atol=1e-6):
            return path, f"rows of the embedding matrix times {float(scale):.4g}"
    return None
