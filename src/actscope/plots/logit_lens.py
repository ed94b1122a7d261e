"""What each layer would say next, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.plots.style import (
    draw_cells,
    literal,
    new_figure,
    paper_style,
    set_title,
    text_colours,
)
from actscope.plots.token_text import shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from actscope.analysis.logit_lens import LogitLens

__all__ = ["LensTokens", "logit_lens_figure", "longest_of"]

_LONGEST_TOKEN = 13
_LETTER, _ROW = 0.072, 0.21
"""Inches of a letter, and from one line of text to the next."""
_NARROWEST = 0.6
"""Inches of a cell, so that the name of its block fits."""


@dataclass(frozen=True)
class LensTokens:
    """The words of a logit lens; the plot makes them visible and harmless itself.

    Attributes:
        inputs: ``[pos]`` the token each row stands at.
        actual: ``[pos]`` the token that came next.
        top: ``[layer][pos]`` the most probable next token.
    """

    inputs: Sequence[str]
    actual: Sequence[str]
    top: Sequence[Sequence[str]]


def logit_lens_figure(
    lens: LogitLens,
    tokens: LensTokens,
    *,
    answer_from: int | None = None,
    colour: str = "probability",
    letters: int = 0,
    title: str = "",
) -> Figure:
    """One row a token, one column a layer; a cell names the layer's best guess at the next token.

    A guess that is right is bold. Rows read downwards, as text does.

    Args:
        lens: What to draw.
        tokens: Its words.
        answer_from: The first row whose next token was generated; a line is drawn above it.
        colour: ``probability`` or ``rank`` of the token that did come next.
        letters: Room in a cell at least, so that figures beside each other have one scale.
        title: What the figure shows; empty where the page says it.

    Raises:
        BadInputError: another colour, or another number of words than rows.
    """
    if colour not in ("probability", "rank"):
        raise BadInputError("a logit lens is coloured by probability or rank", got=repr(colour))
    n_layers, n_rows = lens.actual_prob.shape
    words = (len(tokens.inputs), len(tokens.actual), *map(len, tokens.top))
    if set(words) != {n_rows} or len(tokens.top) != n_layers:
        raise BadInputError(
            "a logit lens needs a word for every cell",
            got=f"{len(tokens.top)} layers of {sorted(set(words))} words",
            expected=f"{n_layers} layers of {n_rows}",
        )
    with paper_style():
        letters = max(letters, *map(longest_of, tokens.top))
        cell = max(_NARROWEST, _LETTER * (1 + letters))
        margins = sum(
            max(_NARROWEST, _LETTER * (1 + longest_of(words)))
            for words in (tokens.inputs, tokens.actual)
        )
        figure = new_figure(cell * n_layers + margins + 0.3, _ROW * n_rows + 1.2)
        axes = figure.add_subplot()
        image, ink = _cells(axes, lens, colour)
        _write_guesses(axes, lens, tokens.top, ink)
        _label(axes, lens.layers, tokens)
        if answer_from is not None and 0 < answer_from < n_rows:
            axes.axhline(answer_from - 0.5, color="black", linewidth=1.2)
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.01)
        bar.set_label(f"{colour} of the actual next token")
        if colour == "rank":
            _rank_ticks(bar)
        set_title(axes, title)
    return figure


def longest_of(words: Iterable[str]) -> int:
    """Letters of the longest of some words as a figure shows them."""
    return max(len(shortened(visible(word), _LONGEST_TOKEN)) for word in words)


def _cells(axes: Axes, lens: LogitLens, colour: str) -> tuple[Any, npt.NDArray[np.str_]]:
    """Draw the colours; returns the image, and the colour of legible text in each cell."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    if colour == "probability":
        values, norm, name = lens.actual_prob.T, Normalize(0, 1), "Blues"
    else:
        ranks = np.where(lens.actual_rank > 0, lens.actual_rank, np.nan).T
        most = max(10.0, float(np.nanmax(ranks, initial=1.0)))
        values, norm, name = ranks, LogNorm(1, most), "Blues_r"
    image = draw_cells(axes, values, name, norm, edge="white")
    shown = np.ma.masked_invalid(values)
    return image, text_colours(colormaps[name](norm(shown)))


def _write_guesses(
    axes: Axes,
    lens: LogitLens,
    top: Sequence[Sequence[str]],
    ink: npt.NDArray[np.str_],
) -> None:
    for column, guesses in enumerate(top):
        for row, guess in enumerate(guesses):
            if lens.actual_rank[column, row] == 0:
                continue  # no prediction can be read from a row that is not finite
            right = lens.top_ids[column, row, 0] == lens.actual_ids[row]
            literal(
                axes.text(
                    column,
                    row,
                    shortened(visible(guess), _LONGEST_TOKEN),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=str(ink[row, column]),
                    fontweight="bold" if right else "normal",
                )
            )


def _label(axes: Axes, layers: Sequence[int], tokens: LensTokens) -> None:
    rows = range(len(tokens.inputs))
    axes.set_xticks(range(len(layers)), [f"block {layer}" for layer in layers])
    axes.set_yticks(rows, [shortened(visible(t), _LONGEST_TOKEN) for t in tokens.inputs])
    axes.xaxis.set_ticks_position("top")
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows, [shortened(visible(t), _LONGEST_TOKEN) for t in tokens.actual])
    _head(axes, "at token", 0, "right")
    _head(axes, "actual next", 1, "left")
    for side in (axes, right):
        side.tick_params(length=0)
        for spine in side.spines.values():
            spine.set_visible(False)
        for text in side.get_yticklabels():
            literal(text)


def _head(axes: Axes, text: str, side: int, align: str) -> None:
    """Name a column of tick labels, in line with the names of the blocks."""
    axes.annotate(
        text,
        (side, 1),
        (-6 + 12 * side, 3.5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha=align,
        va="bottom",
        fontsize=8,
        fontstyle="italic",
    )


def _rank_ticks(bar: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    bar.ax.xaxis.set_major_locator(LogLocator())
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
