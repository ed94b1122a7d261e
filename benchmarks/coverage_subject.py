"""A model under test as Hugging Face runs it: passes over it, hooks on it, its own layers.

A type's own blocks are found by its own class of decoder layer (``_can_record_outputs``, which
transformers fills in by hand) or as the list as long as its ``num_hidden_layers``. Nothing here
knows the resolver.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from actscope import Batch

LENGTHS = (11, 6, 3)
Tensor = torch.Tensor

VERIFIED, ABSENT, UNAVAILABLE = "verified", "not applicable", "unavailable"
WRONG, UNJUDGED = "WRONG", "unjudged"


@dataclass(frozen=True)
class Verdict:
    """What is said of one kind of site on one type."""

    status: str
    reason: str = ""


@dataclass
class Subject:
    """One model under test: as Hugging Face runs it, and as actscope does."""

    name: str
    model: Any
    layers: list[nn.Module] = field(default_factory=list)

    @cached_property
    def hf(self) -> Any:
        """A copy that actscope has never touched."""
        return copy.deepcopy(self.model.hf)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    @cached_property
    def paths(self) -> dict[int, str]:
        return {id(m): p for p, m in self.hf.named_modules()}


def batch_of(lengths: tuple[int, ...], side: str = "right") -> Batch:
    rng = np.random.default_rng(5)
    return Batch.from_ids([rng.integers(8, 96, size=n).tolist() for n in lengths], side)


def batch_for(subject: Subject) -> Batch:
    """Texts of three lengths; of one length for a model whose rows move with padding."""
    together = subject.model.pads_alike("right")
    return batch_of(LENGTHS if together else (LENGTHS[0],) * len(LENGTHS))


def arguments(hf: nn.Module, batch: Batch) -> dict[str, Any]:
    """As a careful user would call the model."""
    ids, mask = (torch.from_numpy(np.asarray(x)).long() for x in batch.padded(0))
    accepted = inspect.signature(type(hf).forward).parameters
    given: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in accepted:
        given["attention_mask"] = mask
    if "use_cache" in accepted:
        given["use_cache"] = False
    if batch.padding_side == "left" and not bool(mask.all()) and "position_ids" in accepted:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return given


def run(hf: nn.Module, batch: Batch, **more: Any) -> Any:
    with torch.no_grad():
        return hf(**arguments(hf, batch), **more)


def own_layers(hf: nn.Module, batch: Batch) -> list[nn.Module]:
    """The type's own decoder layers that run on text, in order."""
    seen: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda m, a, o: seen.append(m)) for m in hf.modules()]
    run(hf, batch)
    for handle in handles:
        handle.remove()
    called = list(dict.fromkeys(seen))
    for part in hf.modules():
        recorded = getattr(part, "_can_record_outputs", None) or {}
        kinds = recorded.get("hidden_states") if isinstance(part, PreTrainedModel) else None
        kinds = kinds if isinstance(kinds, (list, tuple)) else [kinds]
        classes = tuple(getattr(k, "target_class", k) for k in kinds if k is not None)
        classes = tuple(c for c in classes if inspect.isclass(c))
        found = [m for m in called if classes and isinstance(m, classes)]
        if len(found) > 1:
            order = {m: i for i, m in enumerate(hf.modules())}
            return whole_items(hf, sorted(found, key=lambda m: order[m]))
    depth = getattr(hf.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        list(m)
        for part in hf.modules()
        if len(
            beside := [
                m for m in part.children() if isinstance(m, nn.ModuleList) and len(m) == depth
            ]
        )
        == 1
        for m in beside
        if all(item in called for item in m)
    ]  # several lists side by side: a layer is no module
    size = lambda items: sum(p.numel() for m in items for p in m.parameters())  # noqa: E731
    return max(lists, key=size, default=[])


def layer_numbers(subject: Subject) -> list[int]:
    """The number of each of the type's own layers that ran: its place in its list."""
    numbers = []
    for layer in subject.layers:
        last = subject.paths[id(layer)].rsplit(".", 1)[-1]
        numbers.append(int(last) if last.isdigit() else len(numbers))
    return numbers if numbers == sorted(set(numbers)) else list(range(len(numbers)))


def whole_items(hf: nn.Module, found: list[nn.Module]) -> list[nn.Module]:
    """The items of a list that hold one of these each: a recorded layer may be a part of one."""
    for part in hf.modules():
        if isinstance(part, nn.ModuleList) and len(part) == len(found):
            held = zip(part, found, strict=True)
            if all(any(m is inner for inner in item.modules()) for item, m in held):
                return list(part)
    return found


def floats(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    values = (*args, *kwargs.values())
    return [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]


def first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(x for x in (output.values() if hasattr(output, "values") else output)
                      if x is not None)  # fmt: skip
    return output


def with_first(output: Any, tensor: Tensor) -> Any:
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return (tensor, *output[1:])
    if isinstance(output, list):
        return [tensor, *output[1:]]
    changed = copy.copy(output)
    changed[next(iter(output))] = tensor
    return changed


class Hooks:
    """Hooks on a model, gone at the end of the ``with`` block."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def output(
        self, module: nn.Module, change: Callable[[Tensor], Tensor | None], turn: int = -1
    ) -> None:
        count = [-1]

        def hook(m: Any, args: Any, output: Any) -> Any:
            count[0] += 1
            if turn not in (-1, count[0]) or not has_tensor(output):
                return None
            new = change(first(output))
            return None if new is None else with_first(output, new)

        self.handles.append(module.register_forward_hook(hook))

    def input(self, module: nn.Module, change: Callable[[int, Tensor], Tensor | None]) -> None:
        """``change(which floating-point input, tensor)``."""

        def hook(m: Any, args: Any, kwargs: Any) -> Any:
            place, new_args, new_kwargs = 0, list(args), dict(kwargs)
            for holder, keys in ((new_args, range(len(args))), (new_kwargs, list(kwargs))):
                for key in keys:
                    if isinstance(holder[key], Tensor) and holder[key].is_floating_point():
                        new = change(place, holder[key])
                        holder[key] = holder[key] if new is None else new
                        place += 1
            return tuple(new_args), new_kwargs

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def has_tensor(output: Any) -> bool:
    try:
        return first(output).is_floating_point()
    except (StopIteration, TypeError):
        return False


@dataclass
class Flow:
    """What entered and left each of the type's own layers in one pass."""

    entered: list[Tensor]
    places: list[int]
    left: list[Tensor]
    result: Any


def flow(subject: Subject, batch: Batch, hooks: Hooks | None = None) -> Flow:
    n = len(subject.layers)
    inputs: dict[int, list[Tensor]] = {}
    left: dict[int, Tensor] = {}
    with Hooks() as watch:
        for i, layer in enumerate(subject.layers):

            def enter(place: int, tensor: Tensor, i: int = i) -> None:
                inputs.setdefault(i, []).append(tensor.clone())

            def leave(tensor: Tensor, i: int = i) -> None:
                left[i] = tensor.clone()

            watch.input(layer, enter)
            watch.output(layer, leave)
        result = run(subject.hf, batch)
    places = [
        next((p for p, t in enumerate(inputs[i]) if t.shape == left[i].shape), 0) for i in range(n)
    ]
    return Flow(
        [inputs[i][p] for i, p in enumerate(places)], places, [left[i] for i in range(n)], result
    )


def fed(
    subject: Subject, batch: Batch, plain: Flow, prepare: Callable[[Hooks], None], step: float = 0.0
) -> list[Tensor]:
    """What leaves each layer when it gets its plain input (plus ``step``) under some hooks."""
    left: dict[int, Tensor] = {}
    with Hooks() as hooks:
        prepare(hooks)
        for i, layer in enumerate(subject.layers):

            def feed(place: int, tensor: Tensor, i: int = i) -> Tensor | None:
                if place != plain.places[i]:
                    return None
                return plain.entered[i] + (signs(tensor) * step if step else 0)

            def leave(tensor: Tensor, i: int = i) -> None:
                left[i] = tensor.clone()

            hooks.input(layer, feed)
            hooks.output(layer, leave)
        run(subject.hf, batch)
    return [left[i] for i in range(len(subject.layers))]


def signs(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.dtype)


def as_rows(tensor: Tensor, n: int, pos: int) -> Tensor | None:
    """``[n, pos, d]`` of a tensor as a model lays it out."""
    shape = tuple(tensor.shape)
    if shape[:2] == (n, pos):
        return tensor.flatten(2)
    if len(shape) == 4 and shape[1:3] == (n, pos):
        return tensor.permute(1, 2, 0, 3).flatten(2)
    if shape[:2] == (pos, n):
        return tensor.transpose(0, 1)
    if shape[0] == n and len(shape) == 3 and shape[1] > pos:
        return tensor[:, -pos:]  # a learnt prompt in front
    if len(shape) == 2 and shape[0] == n * pos:
        return tensor.reshape(n, pos, -1)
    return None


def unpadded(tensor: Tensor, batch: Batch) -> list[Tensor] | None:
    _, mask = batch.padded(0)
    rows = as_rows(tensor, *mask.shape)
    if rows is None:
        return None
    return [rows[i][torch.from_numpy(np.asarray(mask[i])).bool()] for i in range(len(mask))]


def equal(ours: Any, theirs: list[Tensor] | None) -> bool:
    if theirs is None or len(ours) != len(theirs):
        return False
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(a: Tensor, b: Tensor, size: Tensor | None = None, ulps: float = 16) -> bool:
    """Equal up to rounding of numbers as large as the row's largest."""
    if a.shape != b.shape:
        return False
    scale = torch.maximum(a.abs(), b.abs()) if size is None else size.abs()
    return bool(
        ((a - b).abs() <= ulps * torch.finfo(a.dtype).eps * scale.amax(-1, keepdim=True)).all()
    )
