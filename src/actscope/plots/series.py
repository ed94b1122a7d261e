"""Figures along an axis, such as layers or strengths: lines with intervals over a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actscope.plots.style import BLUE, GREY, ORANGE, new_figure, paper_style, set_title, some_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Series", "series_figure"]

COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe & Ito's palette, beginning with the house's two."""
_MARKERS = "os^Dvp"
_MOST_BARS = 40


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: For the legend.
        x: Places, ascending.
        y: Values.
        low: Lower ends of intervals; empty for none.
        high: Upper ends.
        control: Whether it is what nothing gives: grey, below the others.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    control: bool = False


def series_figure(
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    level: float | None = None,
    level_label: str = "",
    title: str = "",
) -> Figure:
    """Lines with 95 % intervals; a control is grey, its interval an area.

    Args:
        series: What to draw.
        xlabel: What the places are; ``block`` gets whole numbers.
        ylabel: What the values are, with their unit.
        level: Where a dashed line says what chance, or no effect, is.
        level_label: Its name.
        title: What the figure shows; empty where the page says it.
    """
    with paper_style():
        figure = new_figure(6.4, 3.6)
        axes = figure.add_subplot()
        if level is not None:
            axes.axhline(
                level, color="black", linewidth=0.8, linestyle=(0, (4, 3)), label=level_label
            )
        drawn = 0
        for one in series:
            if one.control:
                _draw_control(axes, one)
            else:
                _draw(axes, one, drawn)
                drawn += 1
        if xlabel == "block":
            axes.set_xticks(some_of([int(x) for x in series[0].x]))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        figure.legend(loc="outside right center", handlelength=1.6)
        set_title(axes, title)
    return figure


def _draw_control(axes: Axes, one: Series) -> None:
    axes.plot(one.x, one.y, color=GREY, marker="x", ms=4, linewidth=1, label=one.label)
    if one.low:
        axes.fill_between(one.x, one.low, one.high, color=GREY, alpha=0.25, linewidth=0)


def _draw(axes: Axes, one: Series, place: int) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)]
    axes.plot(one.x, one.y, color=colour, marker=marker, ms=4, label=one.label, zorder=4)
    if not one.low:
        return
    if len(one.x) > _MOST_BARS:
        axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
    else:
        axes.vlines(one.x, one.low, one.high, color=colour, linewidth=3, alpha=0.35)
