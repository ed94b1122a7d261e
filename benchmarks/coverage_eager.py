"""The type's own eager attention: what it was given, which weights it made, in each own layer.

The copy that runs here is switched to ``attn_implementation="eager"``; every layer gets the input
that it got in the plain pass, so that nothing adds up from layer to layer. Which layers attend at
all is seen by what runs in them: a softmax over keys.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from coverage_subject import Flow, Hooks, Subject, Tensor, arguments
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from actscope import Batch

__all__ = ["Eager", "Operation", "eager_pass"]

SOFTMAXES = {F.softmax, torch.softmax, torch.Tensor.softmax}


@dataclass(frozen=True)
class Operation:
    """One call of the type's ``eager_attention_forward``."""

    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    output: Tensor
    mask: Tensor | None


@dataclass
class Eager:
    """One pass under eager attention.

    Attributes:
        attentions: Own layer -> Hugging Face's attentions, ``[n, head, query, key]``.
        operations: Own layer -> what its eager attention function was given and returned.
        softmaxes: Own layer -> softmaxes over keys, in order.
        length: Padded length of the batch.
    """

    length: int
    attentions: dict[int, Tensor] = field(default_factory=dict)
    operations: dict[int, list[Operation]] = field(default_factory=dict)
    softmaxes: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def attending(self) -> list[int]:
        """The layers in which a softmax over keys runs."""
        return sorted({*self.softmaxes, *self.operations, *self.attentions})

    def pattern(self, layer: int, n: int) -> Tensor | None:
        """``[n, head, query, key]``, or None where the layer has not one pattern."""
        if layer in self.attentions:
            return self.attentions[layer]
        if len(self.operations.get(layer, ())) == 1:
            return self.operations[layer][0].weights
        found = self.softmaxes.get(layer, [])
        if len(found) != 1:
            return None
        return found[0].reshape(n, -1, *found[0].shape[-2:])


class _SoftmaxWatch(TorchFunctionMode):
    """Files every softmax over keys with the layer that runs."""

    def __init__(self, found: Eager, running: list[int]) -> None:
        super().__init__()
        self.found, self.running = found, running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in SOFTMAXES and self.running and isinstance(output, Tensor):
            length = self.found.length
            columns = (length, length + 1)  # a sink is one column more
            if output.ndim >= 3 and output.shape[-2] == length and output.shape[-1] in columns:
                kept = output[..., :length].clone()
                self.found.softmaxes.setdefault(self.running[-1], []).append(kept)
        return output


def eager_pass(subject: Subject, batch: Batch, plain: Flow | None) -> Eager:
    """Run the copy under eager attention, each layer fed as in the plain pass.

    Where the type's layers are no modules of their own, only Hugging Face's attentions are kept.
    """
    twin = copy.deepcopy(subject.hf)
    twin.set_attn_implementation("eager")
    for module in twin.modules():  # older code of some types refuses that without a word
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = "eager"
    found = Eager(batch.padded(0)[0].shape[1])
    running: list[int] = []
    with Hooks() as hooks, torch.no_grad():
        for i, layer in enumerate(subject.layers):
            module = twin.get_submodule(subject.paths[id(layer)])

            def feed(place: int, tensor: Tensor, i: int = i) -> Tensor | None:
                assert plain is not None
                return plain.entered[i] if place == plain.places[i] else None

            def enter(m: nn.Module, a: Any, i: int = i) -> None:
                running.append(i)

            def leave(m: nn.Module, a: Any, o: Any) -> None:
                running.pop()

            hooks.input(module, feed)
            hooks.handles.append(module.register_forward_pre_hook(enter))
            hooks.handles.append(module.register_forward_hook(leave))
        with _recording(twin, found, running), _SoftmaxWatch(found, running):
            result = _attentive(twin, batch)
    own = [t for t in getattr(result, "attentions", None) or () if isinstance(t, Tensor)]
    own = [t for t in own if t.ndim == 4]
    attending = found.attending if subject.layers else list(range(subject.model.n_layers))
    if len(own) == len(attending):
        for layer, tensor in zip(attending, own, strict=True):
            found.attentions[layer] = tensor[..., : found.length]
    return found


def _attentive(twin: Any, batch: Batch) -> Any:
    try:
        return twin(**arguments(twin, batch), output_attentions=True)
    except (TypeError, ValueError, AttributeError):
        return twin(**arguments(twin, batch))


@contextmanager
def _recording(twin: nn.Module, found: Eager, running: list[int]) -> Generator[None]:
    """Exchange the type's own ``eager_attention_forward`` for one that files what it did."""
    code = {sys.modules[type(m).__module__] for m in twin.modules()}
    originals = {
        c: c.eager_attention_forward for c in code if hasattr(c, "eager_attention_forward")
    }

    def recorded(original: Any) -> Any:
        def eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *a: Any, **k: Any):
            seen = tuple(t.clone() for t in (query, key, value))
            output, weights = original(module, query, key, value, *a, **k)
            if running and isinstance(weights, Tensor):
                given = (k.get("attention_mask", a[0] if a else None), k.get("position_bias"))
                added = [t for t in given if isinstance(t, Tensor) and t.ndim == 4]
                added = [t.double() for t in added if t.is_floating_point()]
                mask = sum(added[1:], added[0]) if added else None
                own = weights[..., : found.length].clone()
                operation = Operation(*seen, own, output.clone(), mask)
                found.operations.setdefault(running[-1], []).append(operation)
            return output, weights

        return eager

    for c, original in originals.items():
        c.eager_attention_forward = recorded(original)
    try:
        yield
    finally:
        for c, original in originals.items():
            c.eager_attention_forward = original
