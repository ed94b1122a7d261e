"""Analysis 4: is "how sure am I" computed as "how sure would others be"?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from actscope.analysis.cka import debiased_cka, rsa
from actscope.analysis.resampling import Estimate, bootstrap
from actscope.analysis.ridge import group_folds, held_out
from actscope.plots.report import Picture, Table
from actscope.plots.series import Series, series_figure
from actscope.studies.introspection.analysis_inputs import Inputs
from actscope.studies.introspection.directions import high_and_low
from actscope.studies.introspection.finding import Finding, rounded
from actscope.studies.introspection.params import AnalysisParams

__all__ = ["self_versus_other"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

OWN, OTHERS = "self_confidence", "other_confidence"
_SHORT = {"mcq": "answer", OWN: "self", OTHERS: "other"}
_FEW = 500
"""Redrawings of what is computed from activations anew each time."""
_SHIFT = (
    "The gap also contains the shift between the two prompts: a probe that is used in the other "
    "pass loses by whatever else differs there, so the gap alone does not prove two kinds of "
    "confidence."
)


@dataclass(frozen=True)
class Decoding:
    """How well one stated confidence is read after one block, as Pearson's r on held-out questions.

    Attributes:
        own: Self-confidence, by the probe made for it in the self pass.
        others: Other-confidence, by the probe made for it in the other pass.
        own_by_others: Self-confidence in the self pass, by the probe made for others.
        others_by_own: Other-confidence in the other pass, by the probe made for self.
        gap: The mean of the first two minus that of the last two.
    """

    own: Estimate
    others: Estimate
    own_by_others: Estimate
    others_by_own: Estimate
    gap: Estimate


def self_versus_other(
    inputs: Inputs, params: AnalysisParams, step: Callable[[str], None]
) -> Finding:
    """Directions, geometry and probes of the two kinds of confidence, by block."""
    folds = group_folds(inputs.groups, params.folds, params.seed)
    cosine: dict[int, Estimate] = {}
    likeness: dict[str, dict[int, tuple[float, float]]] = {
        f"{_SHORT[a]} and {_SHORT[b]}": {} for a, b in combinations(_SHORT, 2)
    }
    decoding: dict[int, Decoding] = {}
    for layer in inputs.layers:
        step(f"self and other after block {layer}")
        rows = {name: inputs.rows(name, layer) for name in _SHORT}
        cosine[layer] = _cosine(rows[OWN], inputs.own, rows[OTHERS], inputs.others)
        for a, b in combinations(_SHORT, 2):
            pair = debiased_cka(rows[a], rows[b]), rsa(rows[a], rows[b])
            likeness[f"{_SHORT[a]} and {_SHORT[b]}"][layer] = pair
        decoding[layer] = decode(rows[OWN], inputs.own, rows[OTHERS], inputs.others, folds)
    n = len(inputs)
    stated = bootstrap(lambda r: _correlation(inputs.own[r], inputs.others[r]), n)
    best = max(inputs.layers, key=lambda a: decoding[a].own.value + decoding[a].others.value)
    return Finding(
        name="4_self_versus_other",
        title=_title(decoding, stated),
        paragraph=_paragraph(n, best, decoding[best], cosine, likeness, stated),
        pictures=_pictures(cosine, likeness, decoding),
        tables=(_table(cosine, likeness, decoding),),
        numbers=rounded(
            {
                "r_of_stated_confidences": stated.to_json(),
                "best_block": best,
                "cosine_of_directions": {a: e.to_json() for a, e in cosine.items()},
                "likeness": {
                    pair: {a: {"debiased_cka": c, "rsa": r} for a, (c, r) in found.items()}
                    for pair, found in likeness.items()
                },
                "decoding_r": {
                    a: {name: getattr(d, name).to_json() for name in d.__dataclass_fields__}
                    for a, d in decoding.items()
                },
            }
        ),
    )


def decode(
    own_rows: Float64, own: Float64, other_rows: Float64, others: Float64, folds: Sequence[Int64]
) -> Decoding:
    """Read each confidence by its own probe and by the other's, both on held-out questions."""
    read = {
        "own": (held_out(own_rows, own, folds), own),
        "others": (held_out(other_rows, others, folds), others),
        "own_by_others": (held_out(other_rows, others, folds, read=own_rows), own),
        "others_by_own": (held_out(own_rows, own, folds, read=other_rows), others),
    }

    def r(name: str, rows: Int64) -> float:
        found, target = read[name]
        return _correlation(found.predicted[rows, 0], target[rows])

    n = len(own)

    def gap(rows: Int64) -> float:
        within = r("own", rows) + r("others", rows)
        return (within - r("own_by_others", rows) - r("others_by_own", rows)) / 2

    return Decoding(
        **{name: bootstrap(lambda rows, k=name: r(k, rows), n) for name in read},
        gap=bootstrap(gap, n),
    )


def _cosine(one: Float64, own: Float64, two: Float64, others: Float64) -> Estimate:
    """Cosine of the directions from low to high confidence, over redrawn questions."""

    def measure(rows: Int64) -> float:
        ends: list[Float64] = []
        for values, target in ((one, own), (two, others)):
            high, low = high_and_low(target + 1e-9 * np.arange(len(target)), np.unique(rows))
            weight = np.bincount(rows, minlength=len(target)).astype(np.float64)
            ends.append(
                np.average(values[high], axis=0, weights=weight[high])
                - np.average(values[low], axis=0, weights=weight[low])
            )
        size = np.linalg.norm(ends[0]) * np.linalg.norm(ends[1])
        return float(ends[0] @ ends[1] / size) if size > 0 else float("nan")

    return bootstrap(measure, len(own), resamples=_FEW)


def _correlation(x: Float64, y: Float64) -> float:
    a, b = x - x.mean(), y - y.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def _title(decoding: Mapping[int, Decoding], stated: Estimate) -> str:
    apart = [
        layer
        for layer, found in decoding.items()
        if min(found.gap.low, found.own.low, found.others.low) > 0  # what is not read has no kind
    ]
    if not apart:
        return (
            "No block where both are read clearly tells self and other confidence apart "
            f"(the stated ones correlate with r {stated.value:.2f})"
        )
    most = max(apart, key=lambda layer: decoding[layer].gap.value)
    found = decoding[most]
    named = f"block{'s' if len(apart) > 1 else ''} {_listed(apart)}"
    where = "every block" if len(apart) == len(decoding) else named
    return (
        f"Self and other confidence are told apart after {where}: most after block {most}, where "
        f"their own probes read them with r {found.own.value:.2f} and {found.others.value:.2f}, "
        f"each other’s with {found.own_by_others.value:.2f} and {found.others_by_own.value:.2f}"
    )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _paragraph(
    n: int,
    best: int,
    found: Decoding,
    cosine: Mapping[int, Estimate],
    likeness: Mapping[str, Mapping[int, tuple[float, float]]],
    stated: Estimate,
) -> str:
    cka, likely = likeness["self and other"][best]
    return (
        f"n = {n} questions asked both ways. The two stated confidences correlate with r {stated}. "
        f"After block {best}, where both are read best, ridge probes made for one read it with r "
        f"{found.own} (self) and {found.others} (other) on held-out questions, and the opposite "
        f"kind with {found.own_by_others} (self by the probe for other) and {found.others_by_own} "
        f"(other by the probe for self); the gap is {found.gap}. {_SHIFT} The directions from low "
        f"to high have a cosine of {cosine[best]}. Between the two passes debiased CKA is "
        f"{cka:.3f} and RSA (Spearman) {likely:.3f} there."
    )


def _pictures(
    cosine: Mapping[int, Estimate],
    likeness: Mapping[str, Mapping[int, tuple[float, float]]],
    decoding: Mapping[int, Decoding],
) -> tuple[Picture, ...]:
    layers = list(cosine)
    names = {
        "self by self": "own", "other by other": "others",
        "self by other": "own_by_others", "other by self": "others_by_own",
    }  # fmt: skip
    read = [
        _line(label, layers, [getattr(decoding[a], f) for a in layers])
        for label, f in names.items()
    ]
    geometry = [
        Series(f"{word}, {pair}", layers, [found[a][place] for a in layers])
        for place, word in ((0, "CKA"), (1, "RSA"))
        for pair, found in likeness.items()
    ]
    turned = [_line("cosine of directions", layers, [cosine[a] for a in layers])]
    shown = (
        (read, "Pearson’s r on held-out questions", "Each probe on each confidence"),
        (geometry, "likeness of the passes", "Geometry of the passes"),
        (turned, "cosine", "Directions of self and other confidence"),
    )
    return tuple(
        Picture(
            series_figure(lines, xlabel="block", ylabel=ylabel, level=0.0, level_label="none"),
            f"Line plot by block. {heading}.",
            heading,
        )
        for lines, ylabel, heading in shown
    )


def _line(label: str, x: Sequence[int], found: Sequence[Estimate]) -> Series:
    return Series(
        label, x, [e.value for e in found], [e.low for e in found], [e.high for e in found]
    )


def _table(
    cosine: Mapping[int, Estimate],
    likeness: Mapping[str, Mapping[int, tuple[float, float]]],
    decoding: Mapping[int, Decoding],
) -> Table:
    rows = [
        (
            a,
            str(cosine[a]),
            *(f"{value:.3f}" for value in likeness["self and other"][a]),
            str(d.own),
            str(d.others),
            str(d.own_by_others),
            str(d.others_by_own),
            str(d.gap),
        )
        for a, d in decoding.items()
    ]
    columns = ["block#", "cosine", "CKA#", "RSA#", "self by self", "other by other",
               "self by other", "other by self", "gap"]  # fmt: skip
    return Table(columns, rows, "Self and other by block, with 95 % intervals.")
