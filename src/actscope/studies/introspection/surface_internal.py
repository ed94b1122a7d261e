"""Analysis 2: do activations say more about a target than the question's surface does?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.analysis.resampling import Estimate, bootstrap
from actscope.analysis.ridge import HeldOut, group_folds, held_out, r_squared
from actscope.plots.bars import Bars, bars_figure
from actscope.plots.report import Picture, Table
from actscope.studies.introspection.analysis_inputs import Inputs
from actscope.studies.introspection.finding import Finding, rounded
from actscope.studies.introspection.params import AnalysisParams

__all__ = ["surface_versus_internal"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_KINDS = ("surface", "activations", "both")
_ZERO = (
    "An R² of 0 is what the mean of the target gives, which a ridge regression falls back to where "
    "its features say nothing; a surface fit worse than the mean counts as 0 in the gain."
)
_HARDER = (
    "This asks more than the layer-wise probes do: those compare the block that scores best on "
    "held-out questions with shuffled targets; here each fold chooses its block without its "
    "held-out questions, and activations have to add to the surface. So what is read there may "
    "have no clear gain here."
)


@dataclass(frozen=True)
class Gain:
    """One target.

    Attributes:
        r2: Held-out R² by kind of features.
        partial: What activations add to the surface: R² of both minus R² of the surface, which
            counts as 0 where it is less, since that much is had without any feature.
    """

    r2: Mapping[str, Estimate]
    partial: Estimate


def surface_versus_internal(
    inputs: Inputs, params: AnalysisParams, step: Callable[[str], None]
) -> Finding:
    """Ridge from surface features, activations and both, cross-validated by question."""
    targets: dict[str, tuple[Float64, str]] = {
        "entropy": (inputs.entropy, "mcq"),
        "correctness": (inputs.correct.astype(np.float64), "mcq"),
        "self-confidence": (inputs.own, "self_confidence"),
        "other-confidence": (inputs.others, "other_confidence"),
    }
    folds = group_folds(inputs.groups, params.folds, params.seed)
    found: dict[str, Gain] = {}
    undefined: dict[str, str] = {}
    for name, (target, which) in targets.items():
        if not target.std() > 0:
            undefined[name] = inputs.only_answer if name == "correctness" else "it does not vary"
            continue
        step(f"surface and activations for {name}")
        inside = [inputs.rows(which, layer) for layer in inputs.layers]
        found[name] = gain(inputs.surface, inside, target, folds)
    return Finding(
        name="2_surface_versus_internal",
        title=_title(found),
        paragraph=_paragraph(inputs, found, undefined),
        pictures=(_picture(found),),
        tables=(_table(found),),
        numbers=rounded(
            {
                name: {
                    "r2": {kind: one.r2[kind].to_json() for kind in _KINDS},
                    "partial_gain": one.partial.to_json(),
                }
                for name, one in found.items()
            }
        ),
    )


def gain(
    surface: Float64, inside: Sequence[Float64], target: Float64, folds: Sequence[Int64]
) -> Gain:
    """Held-out R² of three kinds of features, on the same folds and the same redrawn questions."""
    predictions = {
        "surface": held_out(surface, target, folds),
        "activations": held_out(list(inside), target, folds),
        "both": held_out([np.hstack([surface, rows]) for rows in inside], target, folds),
    }
    n = len(target)

    def score(kind: str, rows: Int64) -> float:
        one = predictions[kind]
        cut = HeldOut(one.predicted[rows], one.baseline[rows])
        return float(r_squared(target[rows], cut)[0])

    return Gain(
        {kind: bootstrap(lambda r, k=kind: score(k, r), n) for kind in _KINDS},
        bootstrap(lambda r: score("both", r) - max(score("surface", r), 0.0), n),
    )


def _title(found: Mapping[str, Gain]) -> str:
    more = [name for name, one in found.items() if one.partial.low > 0]
    none = [name for name in found if name not in more]
    if not found:
        return "No target varies, so nothing can be explained by surface or activations"
    if not more:
        return f"No clear gain of activations over the surface for {', '.join(none)}"
    said = f"Activations add to what the surface says about {', '.join(more)}"
    return f"{said}; no clear gain for {', '.join(none)}" if none else said


def _paragraph(inputs: Inputs, found: Mapping[str, Gain], undefined: Mapping[str, str]) -> str:
    parts = [
        f"{name}: {one.r2['surface']} from the surface, {one.r2['activations']} from activations, "
        f"partial gain {one.partial}"
        for name, one in found.items()
    ]
    parts += [f"{name} is not defined: {why}" for name, why in undefined.items()]
    return (
        f"Held-out R² of ridge regressions, n = {len(inputs)} questions. "
        + "; ".join(parts)
        + f". {_ZERO} Surface: {', '.join(inputs.surface_names)}. Activations are those at the "
        "answer position after the block that each training fold itself prefers; correctness is "
        f"regressed as 0 and 1. {_HARDER}"
    )


def _picture(found: Mapping[str, Gain]) -> Picture:
    def of(field: str) -> dict[str, list[float]]:
        return {k: [getattr(one.r2[k], field) for one in found.values()] for k in _KINDS}

    bars = Bars(list(found), of("value"), "R² on held-out questions", "", of("low"), of("high"))
    gains = [one.partial for one in found.values()]
    label = "both minus surface, if above 0"
    partial = Bars(
        list(found), {label: [g.value for g in gains]}, "partial gain in R²", "",
        {label: [g.low for g in gains]}, {label: [g.high for g in gains]},
    )  # fmt: skip
    return Picture(bars_figure([bars, partial]), "Bars of R² by target and features.", wide=True)


def _table(found: Mapping[str, Gain]) -> Table:
    rows = [
        (name, *(str(one.r2[k]) for k in _KINDS), str(one.partial)) for name, one in found.items()
    ]
    return Table(["target", *_KINDS, "partial gain"], rows, "Held-out R² with 95 % intervals.")
