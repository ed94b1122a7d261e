"""What an analysis hands to the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.plots.report import Picture, Table

__all__ = ["Finding", "above_from", "rounded"]


@dataclass(frozen=True)
class Finding:
    """One analysis.

    Attributes:
        name: Of its JSON file and figures.
        title: What was found, as a statement.
        paragraph: The finding with its numbers, and how they came about.
        pictures: Its figures.
        tables: Its tables.
        numbers: Everything, for JSON.
    """

    name: str
    title: str
    paragraph: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def rounded(value: Any) -> Any:
    """The same with numbers to six decimals, for JSON; NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    number = float(value)
    return None if isnan(number) else round(number, 6)


def above_from(layers: tuple[int, ...], values: list[float], bound: float) -> int | None:
    """The layer from which on every value is above a bound; None where the last one is not."""
    found = None
    for layer, value in zip(reversed(layers), reversed(values), strict=True):
        if not value > bound:
            break
        found = layer
    return found
