"""How well a linear probe reads something, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope.plots.style import BLUE, GREY, new_figure, paper_style, set_title, some_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from actscope.analysis.probes import ProbeCurve

__all__ = ["probe_curve_figure"]

_MOST_BARS = 40
"""Layers up to which an interval is a bar of its own; more of them are a band."""


def probe_curve_figure(curve: ProbeCurve, *, title: str = "") -> Figure:
    """AUROC by layer with its 95 % interval, over the grey region that shuffled labels reach.

    A point inside the grey is what a probe finds in nothing, in one of twenty layers.

    Args:
        curve: What to draw.
        title: What the figure shows; empty where the page says it.
    """
    with paper_style():
        figure = new_figure(6.4, 3.6)
        axes = figure.add_subplot()
        bottom = min([0.4, *(score.low - 0.05 for score in curve.scores)])
        _draw_control(axes, curve, bottom)
        _draw_probe(axes, curve)
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=(0, (4, 3)), label="chance")
        axes.set_ylim(bottom, 1.02)
        axes.set_xlim(curve.layers[0] - 0.5, curve.layers[-1] + 0.5)
        axes.set_xticks(some_of(curve.layers))
        axes.set_xlabel("block")
        axes.set_ylabel("AUROC on held-out rows (0 to 1)")
        figure.legend(loc="outside right center", handlelength=1.6)
        set_title(axes, title)
    return figure


def _draw_control(axes: Axes, curve: ProbeCurve, bottom: float) -> None:
    """Up to the 95th percentile, as wide as the axes even where there is one layer."""
    layers = [curve.layers[0] - 0.5, *curve.layers, curve.layers[-1] + 0.5]
    tops = [score.control_p95 for score in curve.scores]
    axes.fill_between(
        layers,
        [bottom] * len(layers),
        [tops[0], *tops, tops[-1]],
        color=GREY,
        alpha=0.3,
        linewidth=0,
        label="shuffled labels,\nup to 95th percentile",
    )
    axes.plot(
        curve.layers,
        [score.control_mean for score in curve.scores],
        color=GREY,
        marker="s",
        ms=3,
        linewidth=1,
        label="shuffled labels, mean",
    )


def _draw_probe(axes: Axes, curve: ProbeCurve) -> None:
    found = [score.auroc for score in curve.scores]
    low, high = [s.low for s in curve.scores], [s.high for s in curve.scores]
    axes.plot(curve.layers, found, color=BLUE, marker="o", ms=4, label="linear probe", zorder=4)
    if len(found) > _MOST_BARS:
        axes.fill_between(
            curve.layers, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval"
        )
    else:
        axes.vlines(
            curve.layers, low, high, color=BLUE, linewidth=3, alpha=0.35, label="95 % interval"
        )
