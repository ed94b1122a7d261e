"""Where in a block attention happens, and how to read it there while a capture runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.attention_call import AttentionCall, Rules
from actscope.backends.hf.attention_watch import (
    Event,
    FunctionWatch,
    sdpa_call,
    watching_interface,
)

__all__ = ["Route", "softmax_call", "watching"]


@dataclass(frozen=True)
class Route:
    """How one attention operation is seen.

    Attributes:
        path: The module that computes attention.
        kind: ``interface`` (it calls a transformers attention function), ``sdpa`` (it calls torch's
            scaled_dot_product_attention) or ``softmax`` (two matrix products around a softmax).
        events: For ``sdpa`` the place of that call among the module's events; for ``softmax`` the
            places of the scores' product, the softmax and the product with the values.
        turn: Which of the module's operations it is, where the module runs several times.
        times: How many those are in one pass.
    """

    path: str
    kind: str
    events: tuple[int, ...] = ()
    turn: int = 0
    times: int = 1


def softmax_call(scores: Event, softmax: Event, mixed: Event, n: int) -> AttentionCall:
    """The attention operation of a softmax between two products, over ``n`` examples."""
    query, key = scores.inputs[0], scores.inputs[1].transpose(-1, -2)
    value, output, weights = mixed.inputs[1], mixed.output, softmax.output
    return AttentionCall(
        _by_head(query, n),
        _by_head(key, n),
        _by_head(value, n),
        _by_head(output, n).transpose(1, 2),
        _by_head(weights, n),
        Rules(),
    )


def _by_head(tensor: torch.Tensor, n: int) -> torch.Tensor:
    """``[n, head, pos, d]`` of a tensor that may have examples and heads on one axis."""
    return tensor.reshape(n, -1, *tensor.shape[-2:])


Listener = Callable[[Route, AttentionCall], None]


@contextmanager
def watching(
    model: nn.Module, routes: Iterable[Route], n: int, listener: Listener
) -> Generator[None]:
    """Tell ``listener`` about the attention operations of some routes in a forward pass.

    Args:
        model: The model.
        routes: Which operations.
        n: Examples in the batch.
        listener: Gets a route and the operation, while the model runs.
    """
    by_path: dict[str, list[Route]] = {}
    for route in dict.fromkeys(routes):
        by_path.setdefault(route.path, []).append(route)
    modules = {model.get_submodule(path): path for path in by_path}
    told = _Turns(by_path, listener)
    with ExitStack() as stack:
        if any(of_path[0].kind == "interface" for of_path in by_path.values()):

            def heard(module: nn.Module, call: AttentionCall) -> None:
                path = modules.get(module)
                if path is not None and by_path[path][0].kind == "interface":
                    told(path, call)

            stack.enter_context(watching_interface(heard))
        inside = {p: of_path[0] for p, of_path in by_path.items() if of_path[0].kind != "interface"}
        if inside:
            stack.enter_context(_watching_functions(model, inside, n, told))
        yield


class _Turns:
    """Counts the operations of each module and tells those that are a route's turn."""

    def __init__(self, by_path: Mapping[str, Sequence[Route]], listener: Listener) -> None:
        self._by_path = by_path
        self._listener = listener
        self._seen = dict.fromkeys(by_path, 0)

    def __call__(self, path: str, call: AttentionCall) -> None:
        seen = self._seen[path]
        self._seen[path] = seen + 1
        for route in self._by_path[path]:
            if seen % route.times == route.turn:
                self._listener(route, call)


@contextmanager
def _watching_functions(
    model: nn.Module,
    routes: Mapping[str, Route],
    n: int,
    told: Callable[[str, AttentionCall], None],
) -> Generator[None]:
    held: dict[str, dict[int, Event]] = {}

    def heard(path: str, place: int, event: Event) -> None:
        route = routes[path]
        if place not in route.events:
            return
        held.setdefault(path, {})[place] = event
        if place == route.events[-1]:
            seen = held.pop(path)
            events = [seen[i] for i in route.events if i in seen]
            if len(events) != len(route.events):
                return  # another path through the module's code: the site counts as not reached
            call = sdpa_call(events[0]) if route.kind == "sdpa" else _softmax_of(events, n)
            if call is not None:
                told(path, call)

    watch = FunctionWatch(heard)
    handles: list[Any] = []
    try:
        for path in routes:
            handles += watch.hooks(path, model.get_submodule(path))
        with watch:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _softmax_of(events: list[Event], n: int) -> AttentionCall | None:
    if [event.kind for event in events] != ["product", "softmax", "product"]:
        return None
    return softmax_call(events[0], events[1], events[2], n)
