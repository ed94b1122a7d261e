"""Reliability diagrams: accuracy against stated confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from actscope.plots.series import COLOURS
from actscope.plots.style import new_figure, paper_style, set_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from actscope.analysis.calibration import Reliability

__all__ = ["reliability_figure"]

_LARGEST = 260.0
"""Area in points of the bin with all answers."""


def reliability_figure(found: Mapping[str, Reliability], *, title: str = "") -> Figure:
    """Accuracy of each bin against its mean confidence; on the dashed line they agree.

    A dot's area is the share of answers in its bin; empty bins have none.

    Args:
        found: By name.
        title: What the figure shows; empty where the page says it.
    """
    with paper_style():
        figure = new_figure(4.6, 3.6)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=(0, (4, 3)))
        for place, (name, one) in enumerate(found.items()):
            full = one.counts > 0
            colour = COLOURS[place % len(COLOURS)]
            sizes = np.maximum(_LARGEST * one.counts[full] / one.counts.sum(), 6)
            x, y = one.confidence[full], one.accuracy[full]
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
            axes.scatter(
                x, y, sizes, color=colour, alpha=0.8, label=f"{name}, ECE {one.error:.3f}", zorder=4
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_aspect("equal")
        axes.set_xlabel("stated confidence")
        axes.set_ylabel("share of right answers")
        figure.legend(loc="outside right center", markerscale=0.6, handlelength=1.2)
        set_title(axes, title)
    return figure
