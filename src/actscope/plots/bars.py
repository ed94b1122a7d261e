"""Groups of bars: shares of letters, histograms, scores of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actscope.core.errors import BadInputError
from actscope.plots.series import COLOURS
from actscope.plots.style import new_figure, paper_style, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bars", "bars_figure"]

_LETTERS_THAT_FIT = 44
"""Of all names under a panel side by side."""


@dataclass(frozen=True)
class Bars:
    """One group of bars beside each other at every name.

    Attributes:
        names: Under the bars.
        values: By label: one a name.
        ylabel: What they are.
        xlabel: What the names are.
        low: By label, lower ends of intervals; empty for none.
        high: By label, upper ends.
    """

    names: Sequence[str]
    values: Mapping[str, Sequence[float]]
    ylabel: str
    xlabel: str = ""
    low: Mapping[str, Sequence[float]] | None = None
    high: Mapping[str, Sequence[float]] | None = None


def bars_figure(panels: Sequence[Bars], *, title: str = "") -> Figure:
    """Panels of bars side by side.

    Args:
        panels: What to draw.
        title: What the figure shows; empty where the page says it.

    Raises:
        BadInputError: no panel, or bars that do not fit their names.
    """
    if not panels or not all(
        len(v) == len(panel.names) for panel in panels for v in panel.values.values()
    ):
        raise BadInputError("a bar chart needs one value a name", got=f"{len(panels)} panels")
    with paper_style():
        figure = new_figure(3.2 * max(len(panels), 2), 3.0)
        for place, panel in enumerate(panels, start=1):
            _draw(figure.add_subplot(1, len(panels), place), panel)
        named = max(panels, key=lambda panel: len(panel.values))
        if len(named.values) > 1:
            axes = figure.axes[list(panels).index(named)]
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside upper left", ncols=len(labels), handlelength=1.2
            )
        if title:
            set_title(figure.axes[0], title)
    return figure


def _draw(axes: Axes, panel: Bars) -> None:
    at = np.arange(len(panel.names))
    width = 0.8 / len(panel.values)
    for place, (label, values) in enumerate(panel.values.items()):
        middle = at + (place - (len(panel.values) - 1) / 2) * width
        colour = COLOURS[place % len(COLOURS)]
        axes.bar(middle, values, width * 0.95, color=colour, label=label)
        if panel.low and panel.high and label in panel.low:
            axes.vlines(middle, panel.low[label], panel.high[label], color="black", linewidth=1.0)
    axes.axhline(0, color="black", linewidth=0.6)
    turned = sum(len(name) + 2 for name in panel.names) > _LETTERS_THAT_FIT
    axes.set_xticks(
        at,
        list(panel.names),
        rotation=35 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.set_ylabel(panel.ylabel)
    axes.set_xlabel(panel.xlabel)
