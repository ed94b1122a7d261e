"""Watch one forward pass: which module received and returned which tensors.

The resolver compares these tensors with each other; names play no part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.exclusive import OneThread, alone, on_entering

__all__ = [
    "Call",
    "Trace",
    "evaluation_mode",
    "first_tensor",
    "float_inputs",
    "trace_forward",
    "with_first_tensor",
    "with_float_input",
]


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        order: When it returned, counted over the pass.
        inputs: The floating-point tensors it received, positional ones first.
        output: The first floating-point tensor it returned, or None.
        indices: The tensors of whole numbers it received.
    """

    order: int
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor | None
    indices: tuple[torch.Tensor, ...] = ()


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

    def turn(self, path: str, turn: int, of: int = 1) -> Call | None:
        """The module's call number ``turn`` if it was called exactly ``of`` times."""
        calls = self.calls.get(path, [])
        return calls[turn] if len(calls) == of else None


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


def with_first_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """The same output with another tensor where ``first_tensor`` found one."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[next(k for k, v in output.items() if isinstance(v, torch.Tensor))] = tensor
        return changed
    items: list[Any] = list(output)
    items[next(i for i, x in enumerate(items) if isinstance(x, torch.Tensor))] = tensor
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def float_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The floating-point tensors among a call's arguments, positional ones first."""
    return [x for x in (*args, *kwargs.values()) if _is_float_tensor(x)]


def with_float_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: int, tensor: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another tensor at ``float_inputs(args, kwargs)[index]``."""
    places: list[int | str] = [i for i, x in enumerate(args) if _is_float_tensor(x)]
    places += [name for name, x in kwargs.items() if _is_float_tensor(x)]
    place = places[index]
    if isinstance(place, str):
        return args, {**kwargs, place: tensor}
    return (*args[:place], tensor, *args[place + 1 :]), kwargs


@contextmanager
def evaluation_mode(
    module: nn.Module, modules: Sequence[nn.Module] | None = None
) -> Generator[None]:
    """Dropout off inside, and every submodule's training flag as before afterwards.

    Args:
        module: The model.
        modules: All its modules, where somebody has gone through them already.
    """
    training = [m for m in (module.modules() if modules is None else modules) if m.training]
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
            handles.append(on_entering(module, enter))
            handles.append(module.register_forward_hook(leave))
        with alone(model), torch.no_grad(), evaluation_mode(model):
            trace.result = forward()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _recorder(
    path: str, trace: Trace, returned: Iterator[int]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two hooks of one module: copy what enters, then file it with what leaves."""
    inside: list[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = []
    thread = OneThread()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not thread.here:
            return
        floats = tuple(x.detach().clone() for x in float_inputs(args, kwargs))
        whole = [x for x in (*args, *kwargs.values()) if _is_index_tensor(x)]
        inside.append((floats, tuple(x.detach().clone() for x in whole)))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not thread.here:
            return
        tensor = first_tensor(output)
        copy = None if tensor is None else tensor.detach().clone()
        inputs, indices = inside.pop()
        trace.calls.setdefault(path, []).append(Call(next(returned), inputs, copy, indices))

    return enter, leave


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_index_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32)
