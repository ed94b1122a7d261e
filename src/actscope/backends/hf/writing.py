"""Change a site's tensor where the model makes it, so that everything downstream sees the change.

A residual stream has several names: ``resid_post`` of a block is ``resid_pre`` of the next. It is
changed once, at the output of the module that made it, and every reader gets the changed tensor.
``resid_mid`` is made by no module: it is changed where the MLP reads it, and the same difference is
added to the block's output, because the sum that continues the stream was taken before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.exclusive import OneThread, on_entering
from actscope.backends.hf.resolve import ModelMap, Tap
from actscope.backends.hf.trace import (
    first_tensor,
    float_inputs,
    with_first_tensor,
    with_float_input,
)
from actscope.core.errors import SiteUnavailableError
from actscope.core.sites import Site

__all__ = ["Change", "WritePoint", "install", "working", "write_point"]

Change = Callable[[torch.Tensor], "torch.Tensor | None"]
"""From a site's tensor to the one that takes its place; None leaves it as it is."""


@dataclass(frozen=True)
class WritePoint:
    """Where a site's tensor is changed.

    Attributes:
        path: Module path.
        side: ``input`` or ``output``.
        index: Which floating-point input.
        scale: The site is the module's tensor times this.
        carry: A block whose output has to move by the same difference; empty for most sites.
    """

    path: str
    side: str
    index: int = 0
    scale: float = 1.0
    carry: str = ""


def write_point(found: ModelMap, site: Site, tap: Tap) -> WritePoint:
    """Where to change a site that is read at ``tap``.

    Raises:
        SiteUnavailableError: it can be read and not changed, with the reason.
    """
    layer = site.layer
    if site.parts:
        raise SiteUnavailableError(
            f"site {site} is changed as a whole",
            got="chosen heads or neurons in the site's name",
            next_step=f"take the site {site.whole}; interventions choose with heads= or neurons=",
        )
    if reason := _unwritable(found, tap):
        raise SiteUnavailableError(
            f"site {site} can be read but not changed",
            got=reason,
            next_step="run the change as a hook of your own on model.hf",
        )
    blocks = found.blocks
    made_by = [i for i in blocks.ran if layer is not None and i < layer]
    if site.kind == "resid_pre" and made_by:
        return WritePoint(blocks.exits[made_by[-1]], "output", scale=blocks.links[made_by[-1]])
    if tap.side == "result":
        raise SiteUnavailableError(
            f"site {site} can be read but not changed",
            got="it is the model's answer: nothing in the model reads it",
            next_step="change the stream before it, such as resid_post of the last layer",
        )
    if tap.side not in ("input", "output"):
        raise SiteUnavailableError(
            f"site {site} can be read but not changed",
            got="it is read where attention runs, and a changed value would not be used there",
            next_step="change what enters attention (resid_pre) or what its heads return (z)",
        )
    carry = ""
    if site.kind == "resid_mid" and tap.side == "input" and layer is not None:
        carry = blocks.exits[layer]  # the sum that a module reads here goes past it too
    return WritePoint(tap.path, tap.side, tap.index, tap.scale, carry)


def _unwritable(found: ModelMap, tap: Tap) -> str:
    """Why a tensor that can be read cannot be exchanged; empty where it can."""
    if tap.side == "sum":
        return "it is the sum of what several modules return"
    if found.calls_of(tap.path) > 1:
        return f"the module {tap.path} runs {found.calls_of(tap.path)} times in one pass"
    return f"the model keeps it in another shape ({tap.layout})" if str(tap.layout) else ""


def working(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where it is that: a change is rounded to the model's dtype once."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def install(
    hf: nn.Module,
    changes: Sequence[tuple[WritePoint, Change]],
    handles: list[Any],
    *,
    first: bool = True,
) -> None:
    """Put changes in place, in their order.

    Args:
        hf: The model.
        changes: What to do where.
        handles: Hooks are added here as soon as they are in place; the caller removes them.
        first: Before hooks that are there already, so that a capture reads what was changed.
    """
    carried: dict[str, torch.Tensor] = {}
    groups: dict[tuple[str, str, int], list[tuple[WritePoint, Change]]] = {}
    for point, change in changes:
        groups.setdefault((point.path, point.side, point.index), []).append((point, change))
    for path in {point.carry for point, _ in changes if point.carry}:
        groups.setdefault((path, "output", 0), [])
    for (path, side, index), members in groups.items():
        module = hf.get_submodule(path)
        steps = _Steps(members, path, carried)
        if side == "input":
            hook = steps.on_input(index)
            handle = on_entering(module, hook, prepend=first)
        else:
            handle = module.register_forward_hook(steps.on_output, prepend=first)
        handles.append(handle)


class _Steps:
    """All changes of one tensor, one after the other."""

    def __init__(
        self,
        members: Sequence[tuple[WritePoint, Change]],
        path: str,
        carried: dict[str, torch.Tensor],
    ) -> None:
        self._members = members
        self._path = path
        self._carried = carried
        self._thread = OneThread()
        self._carry = next((point.carry for point, _ in members if point.carry), "")

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The output with its tensor changed, or None."""
        tensor = first_tensor(output)
        if tensor is None or not self._thread.here:
            return None
        moved = tensor
        difference = self._carried.pop(self._path, None)
        if difference is not None:
            moved = working(tensor) + difference.reshape(tensor.shape)
            moved = moved.to(tensor.dtype)
        moved = self._changed(moved)
        return None if moved is tensor else with_first_tensor(output, moved)

    def on_input(self, index: int) -> Callable[..., Any]:
        """A pre-hook that changes one floating-point input."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._thread.here:
                return None
            tensor = float_inputs(args, kwargs)[index]
            self._carried.pop(self._carry, None)  # of a pass that was stopped early
            moved = self._changed(tensor)
            if moved is tensor:
                return None
            if self._carry:
                self._carried[self._carry] = working(moved) - working(tensor)
            return with_float_input(args, kwargs, index, moved)

        return hook

    def _changed(self, tensor: torch.Tensor) -> torch.Tensor:
        for point, change in self._members:
            value = tensor if point.scale == 1.0 else tensor * point.scale
            moved = change(value)
            if moved is None:
                continue
            tensor = moved if point.scale == 1.0 else _unscaled(tensor, value, moved, point.scale)
        return tensor


def _unscaled(
    tensor: torch.Tensor, value: torch.Tensor, moved: torch.Tensor, scale: float
) -> torch.Tensor:
    """The module's tensor for a site that is ``tensor * scale``; rows that did not move, bitwise.

    These keep a derivative too: the step that is added is zero, not absent.
    """
    still = working(tensor) + (working(moved) - working(value)) / scale
    unmoved = (moved == value).all(-1, keepdim=True)
    return torch.where(unmoved, still, working(moved) / scale).to(tensor.dtype)
