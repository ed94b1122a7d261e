"""Pictures of one pass and of two collections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actscope.core.errors import OutputFolderError
from actscope.plots.bars import Bars, bars_figure
from actscope.plots.reliability import reliability_figure
from actscope.plots.series import Series, series_figure
from actscope.plots.style import to_png
from actscope.studies.introspection.inspection import known_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from actscope.studies.introspection.comparison import Comparison
    from actscope.studies.introspection.data import PassData
    from actscope.studies.introspection.inspection import Inspection

__all__ = ["comparison_figures", "inspection_figure", "save_png"]


def inspection_figure(found: Inspection, collected: PassData) -> Figure:
    """Letters, entropy and expected confidence of one pass."""
    shares = {"answered": [found.letters.get(x, 0.0) for x in _letters(found)]}
    if found.right_letters:
        shares["right"] = [found.right_letters[x] for x in _letters(found)]
    panels = [Bars(_letters(found), shares, "share of questions", "letter")]
    entropy = known_numbers(collected.rows, "entropy")
    panels.append(_histogram(entropy, 8, found.most, "entropy (nats), from"))
    if found.confidence:
        stated = known_numbers(collected.rows, collected.which.name)
        panels.append(_histogram(stated, 10, 100.0, "expected confidence (%), from"))
    return bars_figure(panels)


def _histogram(values: npt.NDArray[np.float64], bins: int, top: float, xlabel: str) -> Bars:
    counts, edges = np.histogram(values, bins=bins, range=(0.0, top))
    names = [f"{x:.0f}" if top >= 10 else f"{x:.1f}" for x in edges[:-1]]
    return Bars(names, {"questions": counts.tolist()}, "questions", xlabel)


def _letters(found: Inspection) -> list[str]:
    return [letter for letter in found.letters if letter]


def comparison_figures(found: Comparison) -> dict[str, Figure]:
    """Reliability diagram and likeness by layer, by name."""
    figures: dict[str, Figure] = {}
    if found.reliability is not None:
        figures["reliability"] = reliability_figure(
            dict(zip(found.names, found.reliability, strict=True))
        )
    if found.likeness:
        series = [
            Series(f"{word}, {one.folder}", one.layers, values)
            for one in found.likeness
            for word, values in (("cosine", one.cosine), ("debiased CKA", one.cka))
        ]
        figures["likeness"] = series_figure(
            series,
            xlabel="block",
            ylabel="likeness of the two models",
            level=1.0,
            level_label="same",
        )
    return figures


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure.

    Raises:
        OutputFolderError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure))
    except OSError as error:
        raise OutputFolderError(f"{path} cannot be written", got=error.strerror) from error
    return path
