"""Texts as rows of tokens, each token's box coloured by a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.plots.style import (
    literal,
    new_figure,
    no_glyph_warnings,
    paper_style,
    set_title,
    text_colours,
)
from actscope.plots.token_text import plain, shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = ["StripText", "token_strip_figure"]

_WIDTH = 9.4
_LINE = 0.24
_HEADING = 0.3
"""Inches: of a row of tokens, from one row to the next, and of a heading with the space above."""
_PAD = 0.05
_FONT_SIZE = 8
_LONGEST_TOKEN = 24
_COLOURS = "RdBu_r"
_CLIPPED = 0.02
"""Share of tokens whose colour may be off the scale."""


@dataclass(frozen=True)
class StripText:
    """A text to colour.

    Attributes:
        tokens: Its tokens; the plot makes them visible and harmless itself.
        values: One number a token; a token whose number is not finite is white.
        answer_from: Place of the answer's first token; None where there is no answer.
        heading: A line above it.
    """

    tokens: Sequence[str]
    values: Sequence[float] | npt.NDArray[np.float64]
    answer_from: int | None = None
    heading: str = ""


@dataclass(frozen=True)
class _Box:
    """A token's place: left edge, width and middle, in inches from the top left."""

    left: float
    width: float
    middle: float


def token_strip_figure(
    texts: Sequence[StripText], *, unit: str, centre: float = 0.0, title: str = ""
) -> Figure:
    """Texts one under the other, wrapped at the page's width, on one diverging scale.

    Red is above the centre and blue below. A black bar stands where the answer begins.

    Args:
        texts: What to draw.
        unit: What a number is, for the colour bar.
        centre: The number that is white.
        title: What the figure shows; empty where the page says it.

    Raises:
        BadInputError: no text, a text without tokens, or another number of values than tokens.
    """
    _check(texts)
    with paper_style(), no_glyph_warnings():
        from matplotlib import colormaps

        words = [[shortened(visible(t), _LONGEST_TOKEN) for t in text.tokens] for text in texts]
        headings, boxes, height = _layout(texts, words)
        figure = new_figure(_WIDTH + 0.2, height + 0.75)
        axes = figure.add_subplot()
        axes.set_xlim(-0.05, _WIDTH)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        norm = _scale(texts, centre)
        for text, own_words, places, at in zip(texts, words, boxes, headings, strict=True):
            literal(axes.text(0, at, plain(text.heading), va="center", fontweight="bold"))
            values = np.ma.masked_invalid(np.asarray(text.values, np.float64))
            colours = colormaps[_COLOURS](norm(values))
            colours[np.ma.getmaskarray(values)] = (1, 1, 1, 1)
            _draw_boxes(axes, places, own_words, colours)
            if text.answer_from is not None and text.answer_from < len(places):
                _mark_answer(axes, places[text.answer_from])
        _colour_bar(figure, axes, norm, unit)
        set_title(axes, title)
    return figure


def _layout(
    texts: Sequence[StripText], words: Sequence[Sequence[str]]
) -> tuple[list[float], list[list[_Box]], float]:
    """Heights of the headings, boxes of the tokens, and the height of it all, in inches."""
    top = 0.0
    headings: list[float] = []
    boxes: list[list[_Box]] = []
    for text, own_words in zip(texts, words, strict=True):
        top += _HEADING if text.heading else _LINE / 2
        headings.append(top - _HEADING / 3)
        left = 0.0
        places: list[_Box] = []
        for word in own_words:
            width = _width_of(word)
            if left and left + width > _WIDTH:
                left, top = 0.0, top + _LINE
            places.append(_Box(left, width, top + _LINE / 2))
            left += width
        top += _LINE
        boxes.append(places)
    return headings, boxes, top


def _width_of(word: str) -> float:
    """Inches of a box for a word, in the widest of the fonts a page may use."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=_FONT_SIZE)
    points, _, _ = text_to_path.get_text_width_height_descent(word, font, ismath=False)
    return points / 72 + 2 * _PAD


def _scale(texts: Sequence[StripText], centre: float) -> Normalize:
    """As far above the centre as below it.

    First tokens do not count, nor the few numbers farthest away: a first token's activation is
    often tens of times larger than all others, and would leave no colour to them.
    """
    from matplotlib.colors import Normalize

    away = np.concatenate([_distances(text, centre)[1:] for text in texts])
    away = away[np.isfinite(away)]
    # "lower" is a distance that occurs, so that one huge number cannot pull it up.
    reach = float(np.quantile(away, 1 - _CLIPPED, method="lower")) if away.size else 0.0
    reach = reach or float(away.max(initial=0.0)) or 1.0
    return Normalize(centre - reach, centre + reach)


def _distances(text: StripText, centre: float) -> npt.NDArray[np.float64]:
    return np.abs(np.asarray(text.values, np.float64) - centre)


def _draw_boxes(
    axes: Axes, places: Sequence[_Box], words: Sequence[str], colours: npt.NDArray[np.float64]
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    tall = _LINE * 0.88
    shapes = [Rectangle((b.left, b.middle - tall / 2), b.width, tall) for b in places]
    cells = PatchCollection(shapes, facecolors=colours, edgecolors="white", linewidths=0.8)
    axes.add_collection(cells)
    for box, word, ink in zip(places, words, text_colours(colours), strict=True):
        literal(
            axes.text(
                box.left + box.width / 2,
                box.middle,
                word,
                ha="center",
                va="center",
                fontsize=_FONT_SIZE,
                color=str(ink),
            )
        )


def _mark_answer(axes: Axes, first: _Box) -> None:
    axes.vlines(
        first.left,
        first.middle - _LINE / 2,
        first.middle + _LINE / 2,
        color="black",
        linewidth=2.5,
        zorder=5,
    )


def _colour_bar(figure: Figure, axes: Axes, norm: Normalize, unit: str) -> None:
    from matplotlib.cm import ScalarMappable

    colours = ScalarMappable(norm, _COLOURS)
    bar = figure.colorbar(
        colours, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02, extend="both"
    )
    bar.set_label(unit)
    bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def _check(texts: Sequence[StripText]) -> None:
    if not texts:
        raise BadInputError("a token strip needs at least one text")
    for place, text in enumerate(texts):
        if not len(text.tokens) or len(text.tokens) != len(text.values):
            raise BadInputError(
                "a token strip needs one value a token",
                got=f"text {place}: {len(text.tokens)} tokens, {len(text.values)} values",
            )
