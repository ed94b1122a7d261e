"""Constants of a model, found by value and named by its configuration where it has them.

Families multiply contributions, residuals and logits by constants. A ratio of two tensors shows
the constant up to rounding; the configuration usually holds the exact number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["exact_constants", "numbers_of", "ratio"]

MOST = 8


def numbers_of(config: object) -> tuple[float, ...]:
    """Every positive number of a configuration and its parts, each once, in order."""
    fields: Any = config.to_dict() if hasattr(config, "to_dict") else {}  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(dict.fromkeys(_numbers(fields)))


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, Mapping):
        for item in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        yield float(value)


def ratio(whole: torch.Tensor, part: torch.Tensor) -> float:
    """The factor that brings ``part`` closest to ``whole`` (least squares)."""
    # On the CPU: some accelerators have no float64.
    a, b = (x.to("cpu", torch.float64).reshape(-1) for x in (whole, part))
    size = float((b * b).sum())
    return float((a * b).sum()) / size if size > 0 else 0.0


def exact_constants(
    estimate: float, numbers: tuple[float, ...], tolerance: float
) -> list[tuple[str, float]]:
    """Names and values near an estimate that a configuration's numbers make, simplest first.

    Args:
        estimate: A factor measured on tensors.
        numbers: Of the configuration.
        tolerance: Relative.
    """
    near: dict[float, str] = {}
    for name, value in _simple(numbers):
        if len(near) < MOST and abs(value - abs(estimate)) <= tolerance * abs(estimate):
            near.setdefault(math.copysign(value, estimate), name)
    return [(name, value) for value, name in near.items()]


def _simple(numbers: tuple[float, ...]) -> Iterator[tuple[str, float]]:
    """Numbers, their inverses and roots, powers of two, then quotients of two numbers."""
    yield from ((f"{2.0**p:g}", 2.0**p) for p in range(-4, 5))
    for x in numbers:
        yield f"{x:g}", x
        yield f"1 / {x:g}", 1 / x
        yield f"sqrt({x:g})", math.sqrt(x)
        yield f"1 / sqrt({x:g})", 1 / math.sqrt(x)
    for x in numbers:
        for y in numbers:
            yield f"{x:g} / {y:g}", x / y
            yield f"{x:g} / sqrt({y:g})", x / math.sqrt(y)
