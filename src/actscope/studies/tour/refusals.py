"""Requests to refuse and their harmless twins, read at the last token before the answer."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actscope.analysis.probes import ProbeCurve, ProbeScore, probe_curve
from actscope.analysis.projection import difference_of_means, project
from actscope.studies.tour.result import SITE

if TYPE_CHECKING:
    from actscope.stores import Run

__all__ = [
    "RefusalDirection",
    "Requests",
    "probe_of",
    "probe_of_words",
    "refusal_direction",
    "requests_of",
]

REFUSAL = "refusal"
_FOLDS = 5
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Requests:
    """Requests to refuse and their twins, one row each.

    Attributes:
        questions: ``[n]`` as they were asked.
        refused: ``[n]``, true where the data set says that the request is to be refused.
        groups: ``[n]``; a request, its twin and all that is made from the same deed have one name.
        features: ``[n, d_model]`` per layer, at the last token of the prompt; a layer with a value
            that is not finite is left out.
    """

    questions: tuple[str, ...]
    refused: npt.NDArray[np.bool_]
    groups: tuple[str, ...]
    features: dict[int, npt.NDArray[np.float32]]

    @property
    def n_groups(self) -> int:
        """Groups of requests and twins."""
        return len(set(self.groups))


def requests_of(run: Run) -> Requests:
    """The requests of the category ``refusal`` and their twins; a request without one is left out.

    Args:
        run: Rows pooled to one token, with the fields of a ``censorship`` source as metadata.
    """
    records = list(run.examples)
    place_of = {record.id: place for place, record in enumerate(records)}
    rows: list[int] = []
    groups: list[str] = []
    for place, record in enumerate(records):
        twin = place_of.get(str(record.metadata.get("twin")))
        if record.metadata.get("censorship_category") == REFUSAL and twin is not None:
            rows += [place, twin]
            groups += [str(record.metadata.get("group", record.id))] * 2
    features = {layer: run.numpy(SITE, layer)[rows] for layer in run.layers}
    return Requests(
        questions=tuple(str(records[row].metadata.get("question")) for row in rows),
        refused=np.arange(len(rows)) % 2 == 0,
        groups=tuple(groups),
        features={layer: x for layer, x in features.items() if np.isfinite(x).all()},
    )


def probe_of(requests: Requests) -> ProbeCurve | None:
    """Probes of every layer; None where there are too few requests, or no layer is finite."""
    if requests.n_groups < _FOLDS or not requests.features:
        return None
    return probe_curve(requests.features, requests.refused, requests.groups, n_folds=_FOLDS)


def probe_of_words(requests: Requests) -> ProbeScore:
    """The same probe on how often each word occurs: what can be told without any model."""
    questions = [re.findall(r"\w+", question.lower()) for question in requests.questions]
    words = sorted({word for question in questions for word in question})
    counts = np.array([[question.count(word) for word in words] for question in questions])
    return probe_curve({0: counts}, requests.refused, requests.groups, n_folds=_FOLDS).best


@dataclass(frozen=True)
class RefusalDirection:
    """From the mean of requests that are answered to that of requests to refuse.

    Attributes:
        layer: Where.
        vector: ``[d_model]``, not normalised.
        middle: Halfway between the two means, as a projection.
        distance: From one mean to the other, in activation units.
        n_groups: Groups it was computed from.
        n_left_out: Groups left out because one of their questions is shown, or one that differs
            from it in a name alone.
    """

    layer: int
    vector: Float64
    middle: float
    distance: float
    n_groups: int
    n_left_out: int

    def along(self, activations: npt.ArrayLike) -> Float64:
        """How far each row of ``[L, d_model]`` lies along it, 0 halfway between the means.

        NaN where a row is not finite.
        """
        rows = np.asarray(activations).astype(np.float64)
        finite = np.isfinite(rows).all(axis=1)
        found = np.full(len(rows), np.nan)
        found[finite] = project(rows[finite], self.vector) - self.middle
        return found


def refusal_direction(
    requests: Requests, layer: int, shown: Collection[str]
) -> RefusalDirection | None:
    """The difference of means at a layer, from groups none of whose questions are shown.

    Args:
        requests: Requests and their twins.
        layer: One of their layers.
        shown: Questions that will be coloured with the result.

    Returns:
        None where no group is left.
    """
    asked = set(shown)
    seen = {g for g, q in zip(requests.groups, requests.questions, strict=True) if q in asked}
    kept = np.array([group not in seen for group in requests.groups], np.bool_)
    if not kept.any():
        return None
    rows = requests.features[layer]
    refused, answered = rows[kept & requests.refused], rows[kept & ~requests.refused]
    vector = difference_of_means(refused, answered)
    ends = float(project(refused, vector).mean()), float(project(answered, vector).mean())
    return RefusalDirection(
        layer=layer,
        vector=vector,
        middle=sum(ends) / 2,
        distance=ends[0] - ends[1],
        n_groups=requests.n_groups - len(seen),
        n_left_out=len(seen),
    )
