"""Watch one forward pass: which module received and returned which tensors.

The resolver compares these tensors with each other; names play no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import nn

__all__ = ["Call", "Trace", "evaluation_mode", "first_tensor", "trace_forward"]


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        order: When it returned, counted over the pass.
        inputs: The floating-point tensors it received, positional ones first.
        output: The first floating-point tensor it returned, or None.
    """

    order: int
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor | None


@dataclass
class Trace:
    """Everything seen in one forward pass.

    Attributes:
        calls: Module path -> its calls. The tensors are copies made when the call happened, so
            that later in-place operations do not change them.
        result: What the model returned.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict[str, list[Call]])
    result: Any = None

    def single(self, path: str) -> Call | None:
        """The module's call if it was called exactly once."""
        calls = self.calls.get(path, [])
        return calls[0] if len(calls) == 1 else None


def first_tensor(output: object) -> torch.Tensor | None:
    """The tensor a module returned, alone or first in a tuple, list or model output."""
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:  # pyright: ignore[reportUnknownVariableType]
            if isinstance(item, torch.Tensor):
                return item if item.is_floating_point() else None
    return None


@contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Dropout off inside, and every submodule's training flag as before afterwards."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def trace_forward(model: nn.Module, forward: Callable[[], Any]) -> Trace:
    """Run ``forward`` once and record every module's calls."""
    trace = Trace()
    handles: list[Any] = []
    returned = count()
    try:
        for path, module in model.named_modules():
            enter, leave = _recorder(path, trace, returned)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        with torch.no_grad(), evaluation_mode(model):
            trace.result = forward()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _recorder(
    path: str, trace: Trace, returned: Iterator[int]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two hooks of one module: copy what enters, then file it with what leaves."""
    inside: list[tuple[torch.Tensor, ...]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
        inside.append(tuple(x.detach().clone() for x in values if _is_float_tensor(x)))

    def leave(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        tensor = first_tensor(output)
        copy = None if tensor is None else tensor.detach().clone()
        trace.calls.setdefault(path, []).append(Call(next(returned), inside.pop(), copy))

    return enter, leave


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
