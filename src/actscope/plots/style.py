"""One look for all figures: sizes, colours, and how a figure becomes part of a page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.plots.token_text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "draw_cells",
    "literal",
    "new_figure",
    "no_glyph_warnings",
    "paper_style",
    "require_matplotlib",
    "set_title",
    "some_of",
    "text_colours",
    "to_png",
    "to_svg",
]

# Okabe & Ito's palette: told apart with any colour vision, and in grey.
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREY = "#9a9a9a"
_MOST_TICKS = 16
_DARK = 0.5
"""Luminance below which black text on a colour is hard to read."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": "black",
    "axes.labelcolor": "black",
    "axes.titlecolor": "black",
    "xtick.color": "black",
    "ytick.color": "black",
    "axes.edgecolor": "black",
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "text.parse_math": False,  # a "$" in a token is a dollar sign
    "axes.unicode_minus": True,
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "actscope",  # the same figure is the same file
}
_PAGE_FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"


@contextmanager
def paper_style() -> Generator[None]:
    """Draw inside this context; the caller's own matplotlib settings are as before afterwards.

    Raises:
        BadInputError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; it belongs to nobody's list of open windows."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def literal(text: Text) -> Text:
    """Show a text as it is, whatever mathematics it looks like."""
    text.set_parse_math(False)
    return text


def draw_cells(
    axes: Axes, values: npt.NDArray[np.float64], colours: str, norm: Normalize, *, edge: str
) -> QuadMesh:
    """A heatmap ``[rows, columns]`` of shapes, row 0 at the top; what is not finite stays empty.

    An image of so few pixels would be blurred by whatever shows it larger; edges in the colour of
    their cell close the seams that smoothing leaves between neighbours.

    Args:
        axes: Where.
        values: What.
        colours: Name of a colour map.
        norm: From values to 0..1.
        edge: Colour of the lines between cells, or ``face`` for none.
    """
    rows, columns = values.shape
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=colours,
        norm=norm,
        edgecolors=edge,
        linewidth=0.8 if edge == "face" else 1.0,
    )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    return mesh


def set_title(axes: Axes, title: str) -> None:
    """Put a title over the axes, in several lines where it is long; none where it is empty."""
    if title:
        literal(axes.set_title(plain(title), wrap=True))


def some_of(layers: Sequence[int]) -> list[int]:
    """At most so many layers that their numbers do not touch on an axis."""
    return list(layers[:: -(-len(layers) // _MOST_TICKS)])


def text_colours(colours: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """``white`` or ``black``: the text that is legible on each colour, ``[..., 4]`` in 0..1."""
    red, green, blue, _ = np.moveaxis(np.asarray(colours, np.float64), -1, 0)
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < _DARK
    return np.where(dark, "white", "black")


def to_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an ``<svg>`` element for a page.

    Its ids begin with ``name``, so that several fit one page; it holds no style sheet, comment or
    address. A reader's browser chooses the fonts, so a rare glyph shows wherever one has it.

    Args:
        figure: What to draw.
        name: A word unique within the page.
        description: What a screen reader says.
    """
    buffer = io.BytesIO()
    with paper_style(), no_glyph_warnings():
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root, name)
    root.set("role", "img")
    root.set("aria-label", description)
    root.set("style", f"max-width: {figure.get_figwidth():.2f}in")
    root.set("stroke-linejoin", "round")
    for size in ("width", "height"):  # the view box scales, fixed sizes do not
        root.attrib.pop(size, None)
    return ElementTree.tostring(root, encoding="unicode")


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, 200 dots an inch."""
    buffer = io.BytesIO()
    with paper_style(), no_glyph_warnings():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _clean(root: ElementTree.Element, name: str) -> None:
    """Make ids and references unique to the page, and drop what would leak into it."""
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _XLINK[1:-1])
    for element in root.iter():
        for child in list(element):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                element.remove(child)
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key in ("href", f"{_XLINK}href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style" and "'DejaVu Sans'" in value:
                element.set(key, value.replace("'DejaVu Sans'", _PAGE_FONTS))


@contextmanager
def no_glyph_warnings() -> Generator[None]:
    """A glyph that matplotlib's font lacks is the browser's to draw, or a box in a PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def require_matplotlib() -> Any:
    """The library, or an error that says how to get it.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BadInputError(
            "figures need matplotlib", next_step="pip install 'actscope[plots]'"
        ) from error
    return matplotlib
