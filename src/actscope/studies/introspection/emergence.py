"""Analysis 1: where entropy, correctness and confidence can be read, and which comes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.analysis.probes import ProbeCurve, probe_curve
from actscope.analysis.resampling import Estimate
from actscope.analysis.ridge import RidgeCurve, ridge_curve
from actscope.plots.report import Picture, Table
from actscope.plots.series import Series, series_figure
from actscope.studies.introspection.analysis_inputs import Inputs
from actscope.studies.introspection.finding import Finding, above_from, rounded
from actscope.studies.introspection.params import AnalysisParams

__all__ = ["half_depth", "probe_emergence"]

Float64 = npt.NDArray[np.float64]
Curve = RidgeCurve | ProbeCurve


def probe_emergence(inputs: Inputs, params: AnalysisParams, step: Callable[[str], None]) -> Finding:
    """Probes of every block with controls, and the temporal-lag test."""
    shared: dict[str, Any] = {
        "n_folds": params.folds, "n_shuffles": params.shuffles, "seed": params.seed,
    }  # fmt: skip
    at = {name: inputs.by_layer(name) for name in inputs.collection.passes}
    step("probes for entropy")
    entropy = ridge_curve(at["mcq"], inputs.entropy, inputs.groups, **shared)
    step("probes for correctness")
    only = inputs.only_answer  # nothing tells right from wrong where there is one of them alone
    correct = None if only else probe_curve(at["mcq"], inputs.correct, inputs.groups, **shared)
    high = inputs.own > np.median(inputs.own)
    step("probes for confidence")
    sure = probe_curve(at["self_confidence"], high, inputs.groups, **shared)
    step("the temporal-lag test")
    answer = ridge_curve(at["mcq"], inputs.letters, inputs.groups, **shared)
    confidence = ridge_curve(at["mcq"], inputs.own, inputs.groups, **shared)
    stating = ridge_curve(at["self_confidence"], inputs.own, inputs.groups, **shared)
    lags = {
        "before it is asked": lag(answer, confidence),
        "when it is stated": lag(answer, stating),
    }
    curves = {"entropy": entropy, "correctness": correct, "confidence": sure}
    return Finding(
        name="1_emergence",
        title=_title(entropy, correct, sure, only),
        paragraph=f"{_probed(len(inputs), entropy, correct, sure, only)} {_lagged(lags)}",
        pictures=_pictures(entropy, correct, sure, answer, confidence, stating),
        tables=(_table(curves, only),),
        numbers=rounded(
            {
                **{
                    name: None if curve is None else curve.to_json()
                    for name, curve in curves.items()
                },
                "answer_letters": answer.to_json(),
                "confidence_before_asked": confidence.to_json(),
                "confidence_when_stated": stating.to_json(),
                "emerges_after_block": {
                    name: None if curve is None else _emergence(curve)
                    for name, curve in curves.items()
                },
                "lag_in_blocks": {
                    name: None if one is None else one.to_json() for name, one in lags.items()
                },
            }
        ),
    )


def half_depth(layers: tuple[int, ...], values: npt.ArrayLike) -> float:
    """The depth at which a curve first reaches half of its maximum, between blocks.

    Before block 0 there is nothing, at depth -1. A curve that is nowhere above 0 has no depth: NaN.
    """
    curve = np.maximum(np.asarray(values, np.float64), 0.0)
    half = curve.max() / 2
    if not half > 0:
        return float("nan")
    place = int(np.argmax(curve >= half))
    before = curve[place - 1] if place else 0.0
    start = layers[place - 1] if place else layers[0] - 1
    return float(start + (layers[place] - start) * (half - before) / (curve[place] - before))


def lag(first: RidgeCurve, second: RidgeCurve) -> Estimate | None:
    """By how many blocks the second curve's half depth lies behind the first's.

    None where a curve does not exceed its control: half of nothing has no depth.
    """
    if not (first.best_is_above_control and second.best_is_above_control):
        return None
    depths = [[half_depth(c.layers, draw) for draw in c.draws] for c in (first, second)]
    drawn = np.array(depths[1]) - np.array(depths[0])
    low, high = np.nanquantile(drawn, [0.025, 0.975]).tolist()
    whole = [half_depth(c.layers, [score.r2 for score in c.scores]) for c in (first, second)]
    return Estimate(whole[1] - whole[0], low, high, first.scores[0].n)


def _emergence(curve: Curve) -> int | None:
    """The block from which on all are above what the best of a shuffle reaches 1 time in 20."""
    return above_from(curve.layers, _values(curve), curve.best_control_p95)


def _where(curve: Curve) -> str:
    emerges = _emergence(curve)
    if emerges is not None:
        return f"from block {emerges} on"
    pairs = zip(curve.layers, _values(curve), strict=True)
    above = [str(layer) for layer, value in pairs if value > curve.best_control_p95]
    return f"after block {', '.join(above)} alone" if above else "nowhere above its control"


def _title(
    entropy: RidgeCurve, correct: ProbeCurve | None, sure: ProbeCurve, only: str = ""
) -> str:
    read = f"Entropy can be read {_where(entropy)} (R² up to {entropy.best.r2:.2f})"
    stated = f"stated confidence {_where(sure)}"
    if correct is None:
        return f"{read}, {stated}; correctness is not defined: {only}"
    return f"{read}, correctness {_where(correct)}, {stated}"


def _probed(
    n: int, entropy: RidgeCurve, correct: ProbeCurve | None, sure: ProbeCurve, only: str
) -> str:
    e, s = entropy.best, sure.best
    return (
        f"n = {n} questions, {entropy.n_folds} folds by question, activations at the "
        f"answer position. Entropy of the answer letters (ridge): R² {e.r2:.3f} "
        f"({e.low:.3f} to {e.high:.3f}) after block {entropy.best_layer}; shuffled targets reach "
        f"{entropy.best_control_p95:.3f} at their best block. {_correctness(correct, only)} "
        f"Self-confidence above its median (logistic, in its own pass): AUROC {s.auroc:.3f} "
        f"({s.low:.3f} to {s.high:.3f}) after block {sure.best_layer}, control "
        f"{sure.best_control_p95:.3f}. Controls are 95th percentiles of {entropy.n_shuffles} "
        "refits; the chosen block is compared with the best block of each refit."
    )


def _correctness(correct: ProbeCurve | None, only: str) -> str:
    if correct is None:
        return f"Correctness is not defined: {only}."
    c = correct.best
    return (
        f"Correctness (logistic): AUROC {c.auroc:.3f} ({c.low:.3f} to {c.high:.3f}) after block "
        f"{correct.best_layer}, control {correct.best_control_p95:.3f}."
    )


def _lagged(lags: dict[str, Estimate | None]) -> str:
    lines: list[str] = []
    for name, found in lags.items():
        if found is None:
            lines.append(
                f"Read {name}, confidence cannot be placed before or after the answer’s letters: "
                "one of the two is read no better than shuffled targets."
            )
            continue
        verb = "lags behind" if found.low > 0 else "is ahead of" if found.high < 0 else ""
        said = verb or "neither lags behind nor leads"
        lines.append(
            f"Read {name}, confidence {said} the answer’s letters: its curve reaches half of its "
            f"maximum {_by_how_much(found)}."
        )
    if any(lags.values()):
        lines.append("Between blocks curves are taken as straight, from nothing before block 0.")
    return " ".join(lines)


def _by_how_much(found: Estimate) -> str:
    """Blocks without a sign; where the ends of the interval differ in theirs, each says which."""
    ends = found.low, found.high
    said = f"{_side(found.value)} by {abs(found.value):.2f} blocks"
    if {_side(x) for x in ends} == {_side(found.value)}:
        near, far = sorted(map(abs, ends))
        return f"{said} ({near:.2f} to {far:.2f})"
    low, high = (f"{abs(x):.2f} {_side(x)}" for x in ends)
    return f"{said} ({low} to {high})"


def _side(blocks: float) -> str:
    return "earlier" if blocks < 0 else "later"


def _pictures(
    entropy: RidgeCurve,
    correct: ProbeCurve | None,
    sure: ProbeCurve,
    answer: RidgeCurve,
    confidence: RidgeCurve,
    stating: RidgeCurve,
) -> tuple[Picture, ...]:
    r2 = [_series("entropy", entropy), _control("shuffled, 95th percentile", entropy)]
    auroc = [] if correct is None else [_series("answer is right", correct)]
    auroc += [
        _series("confidence above median", sure),
        _control("shuffled, 95th percentile", sure if correct is None else correct),
    ]
    lag = [
        _series("answer’s letters", answer),
        _series("confidence, before it is asked", confidence),
        _series("confidence, when it is stated", stating),
        _control("shuffled, 95th percentile", confidence),
    ]
    shown = (
        (r2, "R² on held-out questions", 0.0, "mean of the targets", "What entropy probes read"),
        (auroc, "AUROC on held-out questions", 0.5, "chance", "What the answer and confidence are"),
        (lag, "R² on held-out questions", 0.0, "mean of the targets", "Which comes first"),
    )
    return tuple(
        Picture(
            series_figure(series, xlabel="block", ylabel=ylabel, level=level, level_label=label),
            f"Line plot by block. {heading}.",
            heading,
        )
        for series, ylabel, level, label, heading in shown
    )


def _values(curve: Curve) -> list[float]:
    if isinstance(curve, RidgeCurve):
        return [score.r2 for score in curve.scores]
    return [score.auroc for score in curve.scores]


def _series(label: str, curve: Curve) -> Series:
    low, high = [s.low for s in curve.scores], [s.high for s in curve.scores]
    return Series(label, curve.layers, _values(curve), low, high)


def _control(label: str, curve: Curve) -> Series:
    tops = [s.control_p95 for s in curve.scores]
    return Series(label, curve.layers, tops, control=True)


def _table(curves: Mapping[str, Curve | None], only: str) -> Table:
    rows = [
        (name, "AUROC", *"----", f"not defined: {only}")
        if curve is None
        else (
            name,
            "R²" if isinstance(curve, RidgeCurve) else "AUROC",
            curve.best_layer,
            f"{max(_values(curve)):.3f}",
            f"{curve.best.low:.3f} to {curve.best.high:.3f}",
            f"{curve.best_control_p95:.3f}",
            _where(curve),
        )
        for name, curve in curves.items()
    ]
    columns = [
        "probe of",
        "score",
        "best block#",
        "value#",
        "95 % interval",
        "control#",
        "above its control",
    ]
    caption = (
        "Best block of each probe, and the blocks whose score is above that control. “From block k "
        "on” is said where all later blocks are above it too."
    )
    return Table(columns, rows, caption)
