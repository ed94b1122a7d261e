"""Sections on activations as they are: how large, and how alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actscope.analysis.norms import LayerNorms
from actscope.analysis.similarity import closest_pair, pairs_of
from actscope.plots.norms import norms_figure
from actscope.plots.report import Picture, Section
from actscope.plots.similarity import similarity_figure
from actscope.studies.tour.result import Similarity, signed

if TYPE_CHECKING:
    from actscope.stores import Run

__all__ = ["norms_section", "similarity_section"]


def norms_section(norms: LayerNorms, texts: Run, prompts: Run) -> Section:
    """How the size of the residual stream changes with depth."""
    first, last = norms.layers[0], norms.layers[-1]
    title = f"The residual norm {_growth(norms.growth)} from block {first} to block {last}"
    place = _largest_excess(norms)
    if place is not None:
        ratio = norms.first[place].median / norms.later[place].median
        title += f"; the first token’s is {ratio:.0f}× that of the others at block"
        title += f" {norms.layers[place]}"
    caption = (
        "L2 norm of resid_post (activation units) after each block: median over tokens and the "
        f"range between the quartiles. n = {norms.later[0].count:,} later tokens"
    )
    if norms.first_dominates:
        caption += f" and {norms.first[0].count:,} first tokens, drawn apart,"
    caption += f" of {len(texts):,} texts and {len(prompts):,} prompts."
    if norms.non_finite:
        caption += f" {norms.non_finite:,} rows were left out: not finite."
    figure = norms_figure(norms)
    return Section(title, [Picture(figure, f"Line plot. {title}.")], caption)


def _growth(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "changes"
    if ratio >= 1.15:
        return f"grows {ratio:.1f}×" if ratio < 10 else f"grows {ratio:.0f}×"
    if ratio <= 0.87:
        return f"shrinks to {ratio:.0%}"
    return f"stays about the same ({ratio:.2f}×)"


def _largest_excess(norms: LayerNorms) -> int | None:
    """The place of the layer where first tokens stand out most, if they do."""
    if not norms.first_dominates:
        return None
    pairs = zip(norms.first, norms.later, strict=True)
    return int(np.nanargmax([f.median / o.median if o.median else np.nan for f, o in pairs]))


def similarity_section(found: Similarity) -> Section:
    """How alike texts are, before and after their mean is subtracted."""
    labels = [_label(identity) for identity in found.ids]
    raw, centred = pairs_of(found.raw), pairs_of(found.centred)
    title = _similarity_title(found, labels)
    starts = _group_starts(found.ids)
    pictures = [
        Picture(
            similarity_figure(matrix, labels, groups=starts),
            f"Heatmap of cosine similarities, {heading.lower()}. {title}.",
            heading,
        )
        for heading, matrix in (("Raw", found.raw), ("Mean-centred", found.centred))
    ]
    layers = f"{found.layers[0]} to {found.layers[-1]}"
    caption = (
        f"Cosine similarity of {len(labels)} texts. Each text is the mean of resid_post over its "
        f"tokens (the first left out) and over blocks {layers}; mean-centred: their mean was "
        f"subtracted first. n = {raw.count:,} pairs; the median cosine is {raw.median:.2f} raw "
        f"and {signed(centred.median)} centred. White lines separate folders."
    )
    if raw.missing:
        caption += f" {raw.missing:,} pairs have no cosine and are crossed gaps."
    return Section(title, pictures, caption)


def _similarity_title(found: Similarity, labels: Sequence[str]) -> str:
    raw, centred = pairs_of(found.raw), pairs_of(found.centred)
    pair = closest_pair(found.centred)
    if pair is None:
        return "No two texts can be compared"
    return (
        f"Raw cosines of the texts lie within {signed(raw.minimum)} to {signed(raw.maximum)}, "
        f"without their mean within {signed(centred.minimum)} to {signed(centred.maximum)}; "
        f"“{labels[pair[0]]}” is then closest to “{labels[pair[1]]}”"
    )


def _label(identity: str) -> str:
    """``long/03_why_tides_rise`` is ``why tides rise``."""
    name = identity.rpartition("/")[2]
    number, underscore, rest = name.partition("_")
    return (rest if underscore and number.isdigit() else name).replace("_", " ")


def _group_starts(ids: Sequence[str]) -> list[int]:
    folders = [identity.rpartition("/")[0] for identity in ids]
    return [i for i in range(1, len(ids)) if folders[i] != folders[i - 1]]
