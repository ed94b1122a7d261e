"""See every attention operation of a probe, as copies."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn

from actscope.backends.hf.attention_call import AttentionCall
from actscope.backends.hf.attention_watch import Event, FunctionWatch, watching_interface

__all__ = ["AttentionProbe", "probing_attention"]


@dataclass
class AttentionProbe:
    """What was seen of attention in one probe.

    Attributes:
        calls: Module path -> its calls of a transformers attention function.
        events: Module path -> the torch functions it and its submodules called.
    """

    calls: dict[str, list[AttentionCall]] = field(default_factory=dict[str, "list[AttentionCall]"])
    events: dict[str, list[Event]] = field(default_factory=dict[str, "list[Event]"])

    def turn(self, turn: int, times: int) -> AttentionProbe:
        """What one of several runs did, where a module runs ``times`` times in one pass.

        Modules that did not do the same in every run are left out.
        """
        if times == 1:
            return self
        return AttentionProbe(_part(self.calls, turn, times), _part(self.events, turn, times))


_Seen = TypeVar("_Seen", AttentionCall, Event)


def _part(seen: dict[str, list[_Seen]], turn: int, times: int) -> dict[str, list[_Seen]]:
    parts: dict[str, list[_Seen]] = {}
    for path, found in seen.items():
        size, left = divmod(len(found), times)
        if not left:
            parts[path] = found[turn * size : (turn + 1) * size]
    return parts


@contextmanager
def probing_attention(model: nn.Module) -> Generator[AttentionProbe]:
    """Record every attention operation of the forward pass inside, as copies."""
    probe = AttentionProbe()
    paths = {module: path for path, module in model.named_modules()}
    last: list[tuple[Event, Event]] = []  # one event is told to every module that is running

    def on_call(module: nn.Module, call: AttentionCall) -> None:
        if module in paths:
            probe.calls.setdefault(paths[module], []).append(_copied(call))

    def on_event(path: str, place: int, event: Event) -> None:
        if not last or last[0][0] is not event:
            last[:] = [(event, _copied_event(event))]
        probe.events.setdefault(path, []).append(last[0][1])

    watch = FunctionWatch(on_event)
    handles: list[Any] = []
    try:
        for path, module in model.named_modules():
            if path:
                handles += watch.hooks(path, module)
        with watching_interface(on_call), watch:
            yield probe
    finally:
        for handle in handles:
            handle.remove()


def _copied(call: AttentionCall) -> AttentionCall:
    weights = None if call.weights is None else call.weights.detach().clone()
    query, key, value, output = (
        x.detach().clone() for x in (call.query, call.key, call.value, call.output)
    )
    return replace(call, query=query, key=key, value=value, output=output, weights=weights)


def _copied_event(event: Event) -> Event:
    inputs = tuple(x.detach().clone() for x in event.inputs)
    return replace(event, inputs=inputs, output=event.output.detach().clone())
