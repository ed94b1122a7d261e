"""How the size of the residual stream changes with depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actscope.plots.style import BLUE, ORANGE, new_figure, paper_style, set_title, some_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from actscope.analysis.norms import LayerNorms, NormSummary

__all__ = ["norms_figure"]

_LOG_FROM = 20.0
"""Largest over smallest figure from which a linear axis would hide the small ones."""


def norms_figure(norms: LayerNorms, *, site: str = "resid_post", title: str = "") -> Figure:
    """Median norm by layer with the band between its quartiles.

    Where first tokens dominate they are a line of their own; elsewhere they are left out, and
    either way the band is of all other tokens.

    Args:
        norms: What to draw.
        site: Its name, for the axis.
        title: What the figure shows; empty where the page says it.
    """
    with paper_style():
        figure = new_figure(6.4, 3.4)
        axes = figure.add_subplot()
        apart = norms.first_dominates
        _draw(axes, norms.layers, norms.later, "later tokens, " if apart else "", BLUE)
        shown = list(norms.later)
        if apart:
            _draw(axes, norms.layers, norms.first, "first token, ", ORANGE)
            shown += norms.first
        _scale(axes, shown)
        axes.set_xlabel("block")
        axes.set_ylabel(f"L2 norm of {site}")
        axes.set_xticks(some_of(norms.layers))
        axes.legend(loc="best")
        set_title(axes, title)
    return figure


def _draw(
    axes: Axes, layers: Sequence[int], rows: Sequence[NormSummary], whose: str, colour: str
) -> None:
    def figures(name: str) -> list[float]:
        return [getattr(row, name) for row in rows]

    marker = "o" if colour == BLUE else "s"
    axes.plot(layers, figures("median"), color=colour, marker=marker, ms=4, label=f"{whose}median")
    axes.fill_between(
        layers,
        figures("q25"),
        figures("q75"),
        color=colour,
        alpha=0.2,
        linewidth=0,
        label=f"{whose}quartiles",
    )


def _scale(axes: Axes, rows: Sequence[NormSummary]) -> None:
    values = np.array([[row.q25, row.q75] for row in rows])
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() / positive.min() > _LOG_FROM:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
