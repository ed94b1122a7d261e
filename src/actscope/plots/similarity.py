"""Cosine similarities as a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.plots.style import draw_cells, literal, new_figure, paper_style, set_title
from actscope.plots.token_text import plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["similarity_figure"]

_LONGEST_LABEL = 34


def similarity_figure(
    cosine: npt.NDArray[np.float64],
    labels: Sequence[str],
    *,
    title: str = "",
    groups: Sequence[int] = (),
    values: bool | None = None,
) -> Figure:
    """A matrix of cosines, viridis from -1 to 1; what has no cosine is a white gap with a cross.

    Args:
        cosine: ``[n, n]``.
        labels: One an item.
        title: What the figure shows; empty where the page says it.
        groups: Places of items before which a line separates groups.
        values: Whether cells show their numbers; by default where there are at most 12 items.

    Raises:
        BadInputError: the matrix is not square or has another size than the labels.
    """
    n = len(labels)
    if cosine.shape != (n, n):
        raise BadInputError(
            "a similarity heatmap needs one label a row and column",
            got=f"{n} labels, matrix {list(cosine.shape)}",
        )
    with paper_style():
        from matplotlib.colors import Normalize

        side = max(2.4, min(0.19 * n, 9.0))
        figure = new_figure(side + 2.9, side + 2.1)
        axes = figure.add_subplot()
        image = draw_cells(axes, cosine, "viridis", Normalize(-1, 1), edge="face")
        axes.set_aspect("equal")
        _label(axes, labels)
        for row, column in np.argwhere(~np.isfinite(cosine)):
            axes.plot(column, row, marker="x", color="black", markersize=3, markeredgewidth=0.5)
        for place in groups:
            axes.axhline(place - 0.5, color="white", linewidth=2)
            axes.axvline(place - 0.5, color="white", linewidth=2)
        if values or (values is None and n <= 12):
            _write_values(axes, cosine)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=28, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label("cosine similarity")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        set_title(axes, title)
    return figure


def _label(axes: Axes, labels: Sequence[str]) -> None:
    short = [shortened(plain(label), _LONGEST_LABEL) for label in labels]
    places = range(len(labels))
    size: dict[str, Any] = {"fontsize": 8 if len(labels) <= 25 else 6}
    axes.set_yticks(places, short, **size)
    axes.set_xticks(places, short, rotation=90, ha="right", va="center", rotation_mode="anchor")
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        literal(text).set_fontsize(size["fontsize"])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write_values(axes: Axes, cosine: npt.NDArray[np.float64]) -> None:
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    # Black with a white rim is readable on every colour of viridis.
    rim: list[AbstractPathEffect] = [withStroke(linewidth=1.5, foreground="white")]
    for (row, column), value in np.ndenumerate(cosine):
        if np.isfinite(value):
            text = axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
            text.set_path_effects(rim)
