"""See attention operations while a model runs, without changing which kernel runs them.

Two ways in. Models of transformers 5 fetch their attention function from ``AttentionInterface``;
while someone watches, what they fetch is that very function with a listener behind it. Models that
compute attention in their own code are watched one level lower, at the torch functions they call
inside one module: ``scaled_dot_product_attention``, or a softmax between two matrix products.

Either way the model's own function runs with the model's own arguments, so its numbers do not
change; and what was put in place is gone when the last watch ends, whatever ended it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from actscope.backends.hf.attention_call import AttentionCall, Rules

__all__ = ["Event", "FunctionWatch", "sdpa_call", "watching_interface"]

Listener = Callable[[nn.Module, AttentionCall], None]

_lock = threading.Lock()
_listeners: list[Listener] = []
_installed: list[tuple[Any, Any]] = []
"""(original, ours) while a watch is open, else empty."""


@contextmanager
def watching_interface(listener: Listener) -> Generator[None]:
    """Tell ``listener`` about every call of a transformers attention function, on any thread.

    Watches may nest and overlap; the library is as it was when the last one ends.

    Args:
        listener: Gets the module that called and what it called with. It must not keep the tensors:
            they are the model's own.
    """
    with _lock:
        _listeners.append(listener)
        if not _installed:
            _install()
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
            if not _listeners:
                _uninstall()


def _install() -> None:
    from transformers.modeling_utils import AttentionInterface

    original: Any = AttentionInterface.get_interface

    def get_interface(self: Any, attn_implementation: Any, default: Any) -> Any:
        return _heard(original(self, attn_implementation, default))

    AttentionInterface.get_interface = get_interface
    _installed.append((original, get_interface))


def _uninstall() -> None:
    from transformers.modeling_utils import AttentionInterface

    original, ours = _installed.pop()
    if AttentionInterface.get_interface is ours:  # else someone else has wrapped it since
        AttentionInterface.get_interface = original


def _heard(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, its listeners told after it ran."""

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = function(module, *args, **kwargs)
        call = _interface_call(module, args, kwargs, result)
        if call is not None:
            for listener in tuple(_listeners):
                listener(module, call)
        return result

    return attention


_POSITIONAL = ("query", "key", "value", "attention_mask")


def _interface_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> AttentionCall | None:
    """What the function was given, or None where that is not the usual set of tensors."""
    given = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
    output = result[0] if isinstance(result, (tuple, list)) else result
    query, key, value = (given.get(name) for name in _POSITIONAL[:3])
    if any(not isinstance(x, torch.Tensor) or x.ndim != 4 for x in (query, key, value, output)):
        return None
    mask = given.get("attention_mask")
    causal = given.get("is_causal")
    weights = result[1] if isinstance(result, (tuple, list)) and len(result) > 1 else None
    rules = Rules(
        scaling=given.get("scaling"),
        mask=mask if isinstance(mask, torch.Tensor) else None,
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        window=given.get("sliding_window"),
        softcap=given.get("softcap"),
        bias=given.get("position_bias"),
        sinks=given.get("s_aux"),
    )
    own = weights if isinstance(weights, torch.Tensor) and weights.ndim == 4 else None
    return AttentionCall(query, key, value, output, own, rules)  # pyright: ignore[reportArgumentType]


_PRODUCTS = {
    torch.matmul, torch.bmm, torch.baddbmm,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.Tensor.baddbmm,
}  # fmt: skip
_SOFTMAXES = {F.softmax, torch.softmax, torch.Tensor.softmax}
_ADDED_FIRST = {torch.baddbmm, torch.Tensor.baddbmm}


@dataclass(frozen=True)
class Event:
    """One torch function that a watched module called.

    Attributes:
        kind: ``product``, ``softmax`` or ``sdpa``.
        inputs: Left and right of a product, the scores of a softmax, query, key and value.
        output: What it returned.
        rules: Of an ``sdpa``.
    """

    kind: str
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    rules: Rules | None = None


@dataclass
class _Running:
    path: str
    count: int = 0


class FunctionWatch(TorchFunctionMode):
    """Tells a listener what the watched modules call; a context that must enclose the forward pass.

    Args:
        listener: Gets the module's path, how many events of it came before in this call, and the
            event.
    """

    def __init__(self, listener: Callable[[str, int, Event], None]) -> None:
        super().__init__()
        self._listener = listener
        self._running: list[_Running] = []

    def __exit__(self, *error: Any) -> None:
        self._running.clear()
        super().__exit__(*error)

    def hooks(self, path: str, module: nn.Module) -> list[Any]:
        """Handles of the hooks that say when the module runs; remove them in the end."""

        def enter(*_: Any) -> None:
            self._running.append(_Running(path))

        def leave(*_: Any) -> None:
            if self._running and self._running[-1].path == path:
                self._running.pop()

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        ]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the function and, inside a watched module, tell what it did."""
        output = func(*args, **(kwargs or {}))
        if self._running and isinstance(output, torch.Tensor):
            event = _event(func, args, kwargs or {}, output)
            if event is not None:
                for running in self._running:
                    self._listener(running.path, running.count, event)
                    running.count += 1
        return output


def _event(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
) -> Event | None:
    if func is F.scaled_dot_product_attention:
        return _sdpa_event(args, kwargs, output)
    if func in _SOFTMAXES:
        scores = args[0] if args else kwargs.get("input")
        return Event("softmax", (scores,), output) if isinstance(scores, torch.Tensor) else None
    if func in _PRODUCTS:
        named = [kwargs[k] for k in ("input", "batch1", "batch2", "other", "mat2") if k in kwargs]
        tensors = [x for x in (*args, *named) if isinstance(x, torch.Tensor)]
        sides = tensors[1:] if func in _ADDED_FIRST else tensors
        return Event("product", (sides[0], sides[1]), output) if len(sides) == 2 else None
    return None


_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


def _sdpa_event(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
) -> Event | None:
    given = {**dict(zip(_SDPA, args, strict=False)), **kwargs}
    tensors = tuple(given[name] for name in ("query", "key", "value"))
    if any(x.ndim != 4 for x in tensors):
        return None
    mask = given.get("attn_mask")
    if isinstance(mask, torch.Tensor):
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    rules = Rules(
        scaling=given.get("scale"),
        mask=mask,
        causal=bool(given.get("is_causal", False)),
    )
    return Event("sdpa", tensors, output, rules)


def sdpa_call(event: Event) -> AttentionCall:
    """The attention operation of an ``sdpa`` event."""
    query, key, value = event.inputs
    assert event.rules is not None
    return AttentionCall(query, key, value, event.output.transpose(1, 2), None, event.rules)
