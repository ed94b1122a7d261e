"""Explain the difference of two tensors as a sum of parts, each times one constant.

``end = start + a * scale`` or ``end = start + a * s + b * t``: checked in the model's own dtype,
bitwise where the model adds this way, else within 4 units in the last place of the row's largest
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import torch

from actscope.backends.hf.blocks import same
from actscope.backends.hf.constants import exact_constants, ratio

__all__ = ["ULPS", "Part", "Sum", "is_multiple", "one_part", "two_parts"]

ULPS = 4  # of the row's largest |resid|, where the sum is not bitwise
MATTERS = 0.25  # of the values have to change with a part, where a sum closes bitwise
SHOWS = 20  # times the tolerance: a smaller part could be left out unnoticed and proves nothing


@dataclass(frozen=True)
class Part:
    """A tensor that a module inside a block returned.

    Attributes:
        path: The module.
        order: When it returned.
        tensor: What it returned, in the stream's shape.
    """

    path: str
    order: int
    tensor: torch.Tensor


@dataclass(frozen=True)
class Sum:
    """One or two parts, each times a constant, then all times another.

    Attributes:
        parts: The parts.
        scales: One constant for each.
        scale: Multiplies the sum.
        exact: Whether it closes bitwise.
    """

    parts: tuple[Part, ...]
    scales: tuple[float, ...]
    scale: float
    exact: bool

    def value(self) -> torch.Tensor:
        """What is added, in the model's own dtype."""
        terms = [_times(p.tensor, s) for p, s in zip(self.parts, self.scales, strict=True)]
        return _times(terms[0] if len(terms) == 1 else terms[0] + terms[1], self.scale)

    def __str__(self) -> str:
        terms = [
            p.path if s == 1.0 else f"{p.path} * {s:.6g}"
            for p, s in zip(self.parts, self.scales, strict=True)
        ]
        whole = " + ".join(terms)
        if self.scale == 1.0:
            return whole
        return f"({whole}) * {self.scale:.6g}" if len(terms) > 1 else f"{whole} * {self.scale:.6g}"


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_multiple(tensor: torch.Tensor, of: torch.Tensor) -> bool:
    """Whether a tensor is a constant times another, up to rounding.

    In half precision only equal ones count: a large contribution to a small stream is nearly what
    leaves the block.
    """
    if _half(tensor.dtype):
        return same(tensor, of)
    a, b = _wide(tensor), _wide(of.to(tensor.dtype))
    off = (a - b * ratio(a, b)).abs().amax()
    size = a.abs().amax()
    return bool((size > 0) & (off <= ULPS * torch.finfo(tensor.dtype).eps * size))


def _times(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return tensor if scale == 1.0 else tensor * scale


def one_part(
    start: torch.Tensor, end: torch.Tensor, parts: Sequence[Part], numbers: tuple[float, ...]
) -> Sum | None:
    """The part with ``end = start + part * scale``; a bitwise one first."""
    start = start.to(end.dtype)  # some models keep the stream in float32 and its parts in half
    for part in parts:
        if same(start + part.tensor, end) and _matters(start, end):
            return Sum((part,), (1.0,), 1.0, True)
    return _best(
        Sum((part,), (1.0,), scale, same(start + part.tensor * scale, end))
        for part in parts
        for scale in _scales(start, end, part, numbers)
        if _shown(start, end, (part,), (scale,))
    )


def two_parts(
    start: torch.Tensor, end: torch.Tensor, parts: Sequence[Part], numbers: tuple[float, ...]
) -> Sum | None:
    """Two parts with ``end = start + a * s + b * t``, in any order of addition; bitwise first."""
    start = start.to(end.dtype)
    pairs = list(combinations(parts, 2))
    exact = [
        (a, b)
        for a, b in pairs
        if _any_order(start, (a, b), end)
        and _matters(start + a.tensor, end)
        and _matters(start + b.tensor, end)
    ]
    if exact:  # equal sums of different tensors: the outermost pair
        pair = min(exact, key=lambda pair: sum(p.path.count(".") for p in pair))
        return Sum(pair, (1.0, 1.0), 1.0, True)
    found: list[Sum] = []
    for pair in pairs:
        for scales in _scale_pairs(start, end, pair, numbers):
            if _shown(start, end, pair, scales):
                forms = [Sum(pair, scales, 1.0, False)]
                if scales[0] == scales[1]:  # a * s + b * s or (a + b) * s
                    forms.append(Sum(pair, (1.0, 1.0), scales[0], False))
                found += [replace(f, exact=same(start + f.value(), end)) for f in forms]
    best = _best(iter(found))
    rivals = {tuple(p.path for p in f.parts) for f in found if best and f.exact == best.exact}
    return best if len(rivals) == 1 else None  # two ways to explain it explain nothing


def _best(found: Iterator[Sum]) -> Sum | None:
    return min(found, key=lambda s: not s.exact, default=None)


def _any_order(start: torch.Tensor, pair: tuple[Part, Part], end: torch.Tensor) -> bool:
    return any(same(total, end) for total in _orders(start, pair[0].tensor, pair[1].tensor))


def _orders(start: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    return [(start + a) + b, (start + b) + a, (a + b) + start]


def _matters(without: torch.Tensor, end: torch.Tensor) -> bool:
    """Whether a sum without one of its parts is another: rounding may hide a small one."""
    return float((without != end).float().mean()) >= MATTERS


def _half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def _scales(
    start: torch.Tensor, end: torch.Tensor, part: Part, numbers: tuple[float, ...]
) -> Iterator[float]:
    """Constants that may turn a part into ``end - start``."""
    gap = _wide(end) - _wide(start)
    estimate = ratio(gap, part.tensor)
    if estimate == 0 or not _near(_wide(part.tensor) * estimate, gap, start, end):
        return
    near = exact_constants(estimate, numbers, _tolerance(start.dtype))
    yield from (value for _, value in near)
    if not near and not _half(start.dtype):
        yield estimate


def _scale_pairs(
    start: torch.Tensor, end: torch.Tensor, pair: tuple[Part, Part], numbers: tuple[float, ...]
) -> Iterator[tuple[float, float]]:
    """Constants that may turn two parts into ``end - start``, by least squares."""
    gap = _wide(end) - _wide(start)
    columns = torch.stack([p.tensor.to("cpu", torch.float64).reshape(-1) for p in pair], dim=1)
    gram = columns.T @ columns
    if float(torch.linalg.det(gram)) <= 1e-9 * float(gram.diagonal().prod()):
        return  # one is a multiple of the other
    solution = torch.linalg.solve(gram, columns.T @ gap.to("cpu", torch.float64).reshape(-1))
    if not _near(
        (columns @ solution).reshape(gap.shape).to(gap.device, gap.dtype), gap, start, end
    ):
        return
    s, t = (float(x) for x in solution)
    tolerance = _tolerance(start.dtype)
    choices = [
        [value for _, value in exact_constants(x, numbers, tolerance)] if x else [] for x in (s, t)
    ]
    if all(choices):
        yield from product(*choices)  # pyright: ignore[reportReturnType]
    elif not _half(start.dtype):
        yield (s, t)


def _near(
    explained: torch.Tensor, gap: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> bool:
    """Whether a gap is explained but for the rounding of the stream and of its parts."""
    of_parts = 4 * torch.finfo(start.dtype).eps * gap.abs().amax()
    return bool(((explained - gap).abs() <= _allowed(start, end) + of_parts).all())


def _tolerance(dtype: torch.dtype) -> float:
    return 2e-2 if _half(dtype) else 1e-4


def _shown(
    start: torch.Tensor, end: torch.Tensor, parts: Sequence[Part], scales: Sequence[float]
) -> bool:
    """Whether the sum closes, with all that is added large enough to prove it.

    In half precision a wrong constant, or a stream that was normalised, can hide in the rounding:
    there only bitwise sums count.
    """
    terms = [_times(p.tensor, s) for p, s in zip(parts, scales, strict=True)]
    if _half(end.dtype):
        totals = [start + terms[0]] if len(terms) == 1 else _orders(start, terms[0], terms[1])
        if len(terms) == 2 and scales[0] == scales[1]:
            totals.append(start + _times(parts[0].tensor + parts[1].tensor, scales[0]))
        others = [start] if len(terms) == 1 else [start + term for term in terms]
        return any(same(total, end) for total in totals) and all(_matters(x, end) for x in others)
    allowed = _allowed(start, end)
    if any(float(_wide(x).abs().amax()) < SHOWS * float(allowed.max()) for x in (start, *terms)):
        return False
    total = sum((_wide(x) for x in terms), _wide(start))
    return bool(((total - _wide(end)).abs() <= allowed).all())


def _allowed(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    size = torch.maximum(_wide(start).abs(), _wide(end).abs()).amax(-1, keepdim=True)
    return ULPS * torch.finfo(start.dtype).eps * size
