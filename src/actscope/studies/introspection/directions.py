"""Analysis 3: the direction from low to high confidence, and what it does when it is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.analysis.probes import auroc
from actscope.analysis.projection import difference_of_means, project
from actscope.analysis.resampling import Estimate, bootstrap
from actscope.core.errors import BadInputError
from actscope.interventions import Add
from actscope.plots.report import Picture, Table
from actscope.plots.series import Series, series_figure
from actscope.studies.introspection.analysis_inputs import Inputs
from actscope.studies.introspection.finding import Finding, rounded
from actscope.studies.introspection.params import AnalysisParams
from actscope.studies.introspection.replay import Replay

__all__ = ["confidence_directions", "high_and_low"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

OWN = "self_confidence"
DOSES = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
"""Strengths in units of the distance between the two means."""
RANDOM = 5
"""Random directions of the control."""


@dataclass(frozen=True)
class Steered:
    """The effect of one strength after one block, in percentage points of stated confidence.

    Attributes:
        effect: Of the confidence direction.
        control: Of random directions of the same length, averaged over them.
    """

    effect: Estimate
    control: Estimate


def high_and_low(values: Float64, places: Int64) -> tuple[Int64, Int64]:
    """Of some places, the third with the highest values and the third with the lowest.

    Raises:
        BadInputError: the values do not differ.
    """
    order = places[np.argsort(values[places], kind="stable")]
    third = len(order) // 3
    high, low = order[-third:], order[:third]
    if not third or not values[low].max() < values[high].min():
        raise BadInputError(
            "stated confidence does not vary enough to contrast high and low",
            got=f"{values[places].min():.1f} to {values[places].max():.1f} %",
            next_step="collect more questions, or others",
        )
    return high, low


def confidence_directions(
    inputs: Inputs, replay: Replay, params: AnalysisParams, step: Callable[[str], None]
) -> Finding:
    """Contrast one half of the questions, read and steer the other."""
    rng = np.random.default_rng([params.seed, 3])
    order = rng.permutation(len(inputs))
    training, testing = order[: len(order) // 2], order[len(order) // 2 :]
    high, low = high_and_low(inputs.own, training)
    means = {a: difference_of_means(inputs.rows(OWN, a)[high], inputs.rows(OWN, a)[low])
             for a in inputs.layers}  # fmt: skip
    known = {a: _separation(inputs, a, means[a], testing) for a in inputs.layers}
    steered = np.sort(testing[: params.steered])
    before = replay.check(OWN, steered.tolist())
    rows = replay.rows(OWN, steered.tolist())

    def stated(layer: int, direction: Float64, strength: float) -> Float64:
        with replay.model.intervene(Add(direction, layer=layer, strength=strength, tokens=[-1])):
            return replay.stated(OWN, rows)

    def effect(layer: int, dose: float) -> Steered:
        size = float(np.linalg.norm(means[layer])) * dose
        moved = stated(layer, means[layer], size) - before
        random = np.mean(
            [stated(layer, rng.normal(size=len(means[layer])), size) - before
             for _ in range(RANDOM)], axis=0,
        )  # fmt: skip
        return Steered(_mean(moved), _mean(random))

    both_ways: dict[int, dict[float, Steered]] = {}
    for layer in inputs.layers:
        step(f"steering after block {layer}")
        both_ways[layer] = {dose: effect(layer, dose) for dose in (-1.0, 1.0)}
    # What is added after the last block is unembedded at once: nothing is left to act on.
    inner = [a for a in inputs.layers if a != replay.model.n_layers - 1] or list(inputs.layers)
    best = max(inner, key=lambda a: _swing(both_ways[a]))
    step(f"doses after block {best}")
    doses = {d: both_ways[best].get(d) or effect(best, d) for d in DOSES}
    sizes = {a: float(np.linalg.norm(means[a])) for a in inputs.layers}
    return Finding(
        name="3_confidence_directions",
        title=_title(best, doses),
        paragraph=_paragraph(len(training), len(steered), best, doses, known, before),
        pictures=_pictures(both_ways, best, doses),
        tables=(_table(known, both_ways, sizes),),
        numbers=rounded(
            {
                "separation_auroc": {a: e.to_json() for a, e in known.items()},
                "distance_of_means": sizes,
                "steering": {a: _as_json(found) for a, found in both_ways.items()},
                "best_block": best,
                "doses": _as_json(doses),
                "mean_before": float(before.mean()),
            }
        ),
    )


def _separation(inputs: Inputs, layer: int, direction: Float64, testing: Int64) -> Estimate:
    """AUROC of the projection on questions that the direction was not made from."""
    along = project(inputs.rows(OWN, layer)[testing], direction)
    sure = inputs.own[testing] > np.median(inputs.own[testing])

    def measure(rows: Int64) -> float:
        both = sure[rows].any() and not sure[rows].all()
        return auroc(along[rows], sure[rows]) if both else float("nan")

    return bootstrap(measure, len(testing))


def _mean(values: Float64) -> Estimate:
    return bootstrap(lambda rows: float(values[rows].mean()), len(values))


def _swing(found: Mapping[float, Steered]) -> float:
    return found[1.0].effect.value - found[-1.0].effect.value


def _as_json(found: Mapping[float, Steered]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        f"{dose:+g}": {"effect": one.effect.to_json(), "random": one.control.to_json()}
        for dose, one in found.items()
    }


def _works(one: Steered) -> bool:
    return one.effect.low > max(one.control.high, 0) or one.effect.high < min(one.control.low, 0)


def _title(best: int, doses: Mapping[float, Steered]) -> str:
    up, down = doses[1.0].effect.value, doses[-1.0].effect.value
    if _works(doses[1.0]) and _works(doses[-1.0]) and up > 0 > down:
        return (
            f"One direction after block {best} moves stated confidence: adding it changes it by "
            f"{up:+.0f} points, subtracting it by {down:+.0f}"
        )
    return (
        f"The direction from low to high confidence moves what is stated by {up:+.0f} points when "
        f"added after block {best} and {down:+.0f} when subtracted"
    )


def _paragraph(
    n_made: int, n: int, best: int, doses: Mapping[float, Steered], known: Mapping[int, Estimate],
    before: Float64,
) -> str:  # fmt: skip
    return (
        f"The direction is the mean activation of the third of {n_made} questions with the highest "
        "stated self-confidence minus that of the lowest third, at the answer position of the "
        f"self-confidence pass. On other questions its projection orders high above low confidence "
        f"with AUROC {known[best]} after block {best}. Added there at the answer position of {n} "
        f"of those, at the distance between the two means, it moves expected confidence from "
        f"{before.mean():.1f} % by {doses[1.0].effect} points; subtracted, by "
        f"{doses[-1.0].effect}. Random directions of the same length: {doses[1.0].control} and "
        f"{doses[-1.0].control} (mean of {RANDOM}). Block {best} is where the two differ most "
        "before the last block, chosen on the same questions."
    )


def _pictures(
    both_ways: Mapping[int, Mapping[float, Steered]], best: int, doses: Mapping[float, Steered]
) -> tuple[Picture, ...]:
    layers = list(both_ways)
    by_layer = [
        _line(word, layers, [both_ways[a][dose].effect for a in layers])
        for word, dose in (("added", 1.0), ("subtracted", -1.0))
    ] + [
        _line(f"random, {word}", layers, [both_ways[a][dose].control for a in layers], control=True)
        for word, dose in (("added", 1.0), ("subtracted", -1.0))
    ]
    x = list(doses)
    by_dose = [
        _line("confidence direction", x, [one.effect for one in doses.values()]),
        _line("random directions", x, [one.control for one in doses.values()], control=True),
    ]
    ylabel = "change of stated confidence (points)"
    return (
        Picture(
            series_figure(by_layer, xlabel="block", ylabel=ylabel, level=0.0, level_label="none"),
            "Change of stated confidence by block.",
            "By block, at the distance of the means",
        ),
        Picture(
            series_figure(
                by_dose, xlabel="strength (distances between the means)", ylabel=ylabel, level=0.0,
                level_label="none",
            ),
            f"Change of stated confidence by strength after block {best}.",
            f"By strength, after block {best}",
        ),
    )  # fmt: skip


def _line(
    label: str, x: Sequence[float], found: Sequence[Estimate], *, control: bool = False
) -> Series:
    return Series(
        label, x, [e.value for e in found], [e.low for e in found], [e.high for e in found], control
    )


def _table(
    known: Mapping[int, Estimate],
    both_ways: Mapping[int, Mapping[float, Steered]],
    sizes: Mapping[int, float],
) -> Table:
    rows = [
        (a, str(known[a]), f"{sizes[a]:.3g}", str(both_ways[a][1.0].effect),
         str(both_ways[a][-1.0].effect), str(both_ways[a][1.0].control))
        for a in known
    ]  # fmt: skip
    columns = ["block#", "AUROC of the projection", "distance of means#", "added", "subtracted",
               "random, added"]  # fmt: skip
    caption = "Confidence directions by block; effects in percentage points, 95 % intervals."
    return Table(columns, rows, caption)
