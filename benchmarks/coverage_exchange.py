"""Exchange a few columns inside a block of the untouched copy, and see what must follow.

No path of the resolver is used: the module that a captured tensor enters or leaves is found by its
values in a plain pass, and what its change must cause is written down from the module's own weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from coverage_subject import Flow, Hooks, Subject, Tensor, as_rows, first, has_tensor, run
from torch import nn

from actscope import Batch

__all__ = ["Exchange", "Reading", "Readings", "close_to"]

MASKS_OF_VALUES = {"doge"}
"""Types whose mask is made of the values, by reading their code: every head sees all of them."""


@dataclass(frozen=True)
class Reading:
    """One module of a block in one pass.

    Attributes:
        path: Below the block.
        module: It.
        received: Its first floating-point input as ``[n, pos, d]``, or None.
        returned: Its output likewise.
        turn: Which of its calls it is.
    """

    path: str
    module: nn.Module
    received: Tensor | None
    returned: Tensor | None
    turn: int

    @property
    def key(self) -> tuple[str, int]:
        """Names the call in another pass too."""
        return self.path, self.turn


Readings = dict[tuple[str, int], Reading]


@dataclass
class Exchange:
    """One block, fed with its plain input.

    Attributes:
        subject: The model.
        batch: Texts of one length.
        plain: Their plain pass.
        layer: Which of the own layers.
    """

    subject: Subject
    batch: Batch
    plain: Flow
    layer: int

    @property
    def block(self) -> nn.Module:
        return self.subject.layers[self.layer]

    @cached_property
    def readings(self) -> list[Reading]:
        return list(self.run(lambda hooks: None)[0].values())

    def run(self, prepare: Callable[[Hooks], None]) -> tuple[Readings, Tensor]:
        """Every module of the block in one pass, in order of their return, and what it returns."""
        n, pos = self.batch.padded(0)[0].shape
        found: list[Reading] = []
        left: list[Tensor] = []
        received: dict[nn.Module, list[Tensor | None]] = {}
        running = [False]

        def shaped(value: Any) -> Tensor | None:
            rows = as_rows(value, n, pos) if value.ndim > 1 else None
            return None if rows is None else rows.clone()

        with Hooks() as hooks:
            prepare(hooks)
            self._feed(hooks, running, left)
            for path, module in self.block.named_modules():
                if not path:
                    continue

                def enter(m: Any, args: Any, kwargs: Any) -> None:
                    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
                    floats = [x for x in given if x.is_floating_point()]
                    received.setdefault(m, []).append(shaped(floats[0]) if floats else None)

                def leave(m: Any, args: Any, output: Any, path: str = path) -> None:
                    turn = len(received[m]) - 1
                    out = shaped(first(output)) if has_tensor(output) else None
                    if running[0]:
                        found.append(Reading(path, m, received[m][-1], out, turn))

                hooks.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.handles.append(module.register_forward_hook(leave))
            run(self.subject.hf, self.batch)
        return {r.key: r for r in found}, left[0]

    def _feed(self, hooks: Hooks, running: list[bool], left: list[Tensor]) -> None:
        place = self.plain.places[self.layer]

        def feed(at: int, tensor: Tensor) -> Tensor | None:
            running[0] = True
            return self.plain.entered[self.layer] if at == place else None

        def leave(tensor: Tensor) -> None:
            running[0] = False
            rows = as_rows(tensor, *self.batch.padded(0)[0].shape)
            assert rows is not None
            left.append(rows.clone())

        hooks.input(self.block, feed)
        hooks.output(self.block, leave)

    def linear_reading(self, rows: Tensor) -> Reading | None:
        """The linear module that receives exactly these rows; the innermost of several."""
        found = [
            r
            for r in self.readings
            if r.received is not None
            and r.received.shape == rows.shape
            and torch.equal(r.received, rows)
            and weight_of(r.module, rows.shape[-1]) is not None
        ]
        return max(found, key=lambda r: r.path.count("."), default=None)

    def maker(
        self, rows: Tensor, before: Reading | None = None
    ) -> tuple[Reading, list[int], float] | None:
        """A linear module that returns these rows' columns among its own, and times what."""
        for reading in self.readings:
            if reading.returned is None or reading is before:
                continue
            if weight_of(reading.module) is None:
                continue
            found = columns(reading.returned, rows)
            if found is not None:
                return reading, *found
        return None

    def with_input(
        self, reading: Reading, change: Callable[[Tensor], Tensor]
    ) -> tuple[Readings, Tensor]:
        """The block with the first input of one module changed."""

        def prepare(hooks: Hooks) -> None:
            count = [-1]

            def hook(m: Any, args: Any) -> Any:
                count[0] += 1
                return (change(args[0]), *args[1:]) if count[0] == reading.turn else None

            hooks.handles.append(reading.module.register_forward_pre_hook(hook))

        return self.run(prepare)

    def with_output(self, reading: Reading, change: Callable[[Tensor], Tensor]) -> Readings:
        """The block with the output of one module changed."""
        return self.run(lambda hooks: hooks.output(reading.module, change, reading.turn))[0]

    def removed(self, reading: Reading, chosen: list[int]) -> str:
        """Zeros in some columns of a linear module's input take its own columns out of the block.

        Returns:
            Why not; empty where they do.
        """
        assert reading.received is not None and reading.returned is not None
        weight = weight_of(reading.module)
        assert weight is not None
        part = reading.received[..., chosen].double() @ weight[:, chosen].double().T

        def zero(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            changed[..., chosen] = 0
            return changed

        after, left = self.with_input(reading, zero)
        if 0 < float(part.abs().max()) <= Moved.between(self.left, left).noise:
            return ""  # so little that rounding hides it
        if not float(part.abs().max()):  # dead neurons
            return "" if torch.equal(left, self.left) else "zeros instead of zeros change the block"
        without = alone(reading.module, zero(reading.received))
        off = without.double() - (reading.returned.double() - part) if without is not None else None
        size = max(float(reading.returned.abs().max()), float(part.abs().max()))
        allowed = 16 * torch.finfo(reading.returned.dtype).eps * size
        if without is None or off is None or float(off.abs().max()) > allowed:
            return "its weight does not say what it returns without some of it"
        expected = [-part]
        for r in self.readings:  # a norm on what is added
            same = r.received is not None and r.received.shape == reading.returned.shape
            if same and torch.equal(r.received, reading.returned) and r.returned is not None:
                made = alone(r.module, without)
                if made is not None and made.shape == r.returned.shape:
                    expected.append(made.double() - r.returned.double())
        moved = [Moved.between(self.left, left), *self._moved(reading, after)]
        if any(m.follows(want) for m in moved for want in expected):
            return ""
        return "without some of it no sum in the block changes by what the projection says"

    def _moved(self, reading: Reading, after: Readings) -> list[Moved]:
        """How the inputs of later modules moved, but for those that only receive the same thing."""
        moved: list[Moved] = []
        for a in self.readings:
            x, y = a.received, after[a.key].received if a.key in after else None
            if x is None or y is None or reading.returned is None:
                continue
            if x.shape != reading.returned.shape or torch.equal(x, y):
                continue
            if not proportional(x.double(), reading.returned.double(), 1e-3):
                moved.append(Moved.between(x, y))
        return moved

    @cached_property
    def left(self) -> Tensor:
        return self.run(lambda hooks: None)[1]

    def heads(self, z: Tensor) -> str:
        """Without one head the sum in the block changes by that head's part of the projection."""
        flat = z.flatten(2)
        reading = self.linear_reading(flat)
        if reading is None:
            return ""  # a gate or a norm lies between; the pattern times v has shown it
        size = z.shape[-1]
        for head in range(z.shape[2]):
            problem = self.removed(reading, list(range(head * size, (head + 1) * size)))
            if problem:
                return f"head {head}: {problem}"
        return ""

    def values(self, v: Tensor, z: Tensor) -> str:
        """Without one head of v the heads of z that read it are zero, and no others change."""
        alone = self.subject.name not in MASKS_OF_VALUES
        reading = self.linear_reading(z.flatten(2))
        made = self.maker(v.flatten(2), reading)
        if reading is None or made is None:
            return ""  # v is no plain projection: a norm or a latent lies between
        group, size = z.shape[2] // v.shape[2], v.shape[-1]
        for head in range(v.shape[2]):
            chosen = made[1][head * size : (head + 1) * size]

            def zero(tensor: Tensor, chosen: list[int] = chosen) -> Tensor:
                changed = tensor.clone()
                changed[..., chosen] = 0
                return changed

            after = self.with_output(made[0], zero)
            received = after[reading.key].received
            assert received is not None
            now = received.unflatten(-1, (z.shape[2], -1)).double()
            own = range(head * group, (head + 1) * group)
            others = [h for h in range(z.shape[2]) if h not in own]
            if float(now[:, :, list(own)].abs().max()) > 1e-6 * float(z.abs().max()):
                return f"without head {head} its z is not zero"
            if alone and others and not close_to(now[:, :, others], z[:, :, others]):
                return f"without head {head} other heads of z change"
        return ""


@dataclass(frozen=True)
class Moved:
    """How a tensor changed, and how much of that rounding can be.

    Attributes:
        by: The difference.
        allowed: What a difference may miss, as a share of the largest.
        noise: What rounding to the model's dtype may add, anywhere.
    """

    by: Tensor
    allowed: float
    noise: float

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> Moved:
        half = before.dtype != torch.float32
        # A sum is rounded at every step to where it comes out.
        noise = 4 * torch.finfo(before.dtype).eps * float(before.abs().max()) if half else 0.0
        return cls(after.double() - before.double(), 0.1 if half else 2e-3, noise)

    def follows(self, want: Tensor) -> bool:
        """Whether it is ``want`` times one constant, one a channel, or one a token and stream."""
        if not float(self.by.abs().max()) or not float(want.abs().max()):
            return False
        if self.by.shape == want.shape:
            x, y = self.by.flatten(0, 1), want.flatten(0, 1)
            return self.fits(x, y, (0, 1)) or self.fits(x, y, (0,))
        if self.by.shape[-1] % want.shape[-1]:
            return False
        split = self.by.unflatten(-1, (-1, want.shape[-1]))
        return self.fits(split, want[..., None, :].expand_as(split), (-1,))

    def fits(self, x: Tensor, y: Tensor, shared: tuple[int, ...]) -> bool:
        """Whether one constant along these axes makes ``x`` of ``y``."""
        size = y.pow(2).sum(shared, keepdim=True).clamp_min(1e-30)
        slope = (x * y).sum(shared, keepdim=True) / size
        if len(shared) == 2 and float(slope) <= 0:
            return False
        return bool((x - slope * y).abs().max() <= self.allowed * x.abs().max() + self.noise)


def alone(module: nn.Module, given: Tensor) -> Tensor | None:
    """What a module that takes one tensor returns."""
    try:
        with torch.no_grad():
            made = module(given)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return None
    return made if isinstance(made, Tensor) else None


def weight_of(module: nn.Module, width: int | None = None) -> Tensor | None:
    """``[out, in]`` of a module that is one linear map, else None."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return None
    if type(module).__name__ == "Conv1D":
        weight = weight.T
    plain = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    fits = width is None or weight.shape[1] == width
    return weight.detach() if plain and fits else None


def columns(made: Tensor, wanted: Tensor) -> tuple[list[int], float] | None:
    """Which columns of ``made`` times one constant are the columns of ``wanted``, or None."""
    a, b = made.flatten(0, 1).double(), wanted.flatten(0, 1).double()
    if a.shape[0] != b.shape[0] or a.shape[1] < b.shape[1]:
        return None
    plain = (a.T[:, None, :] == b.T[None, :, :]).all(-1)
    if bool(plain.any(0).all()):
        return plain.int().argmax(0).tolist(), 1.0
    ua, ub = (x / x.norm(dim=0).clamp_min(1e-30) for x in (a, b))
    cosine = ua.T @ ub
    best = cosine.argmax(0)
    if float(cosine.amax(0).min()) < 1 - 1e-6:
        return None
    ratio = b.norm(dim=0) / a[:, best].norm(dim=0)
    if float(ratio.max() - ratio.min()) > 1e-3 * float(ratio.mean()):
        return None
    return best.tolist(), float(ratio.mean())


def proportional(a: Tensor, b: Tensor, allowed: float) -> bool:
    """Whether ``a`` is a positive constant times ``b``, neither being nothing."""
    if a.shape != b.shape or not float(a.abs().max()) or not float(b.abs().max()):
        return False
    slope = float((a * b).sum() / b.pow(2).sum())
    return slope > 0 and float((a - slope * b).abs().max()) <= allowed * float(a.abs().max())


def close_to(a: Tensor, b: Tensor) -> bool:
    half = b.dtype != torch.float32
    return bool((a.double() - b.double()).abs().max() <= (0.02 if half else 1e-5) * b.abs().max())
