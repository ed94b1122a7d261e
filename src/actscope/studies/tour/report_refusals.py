"""Sections on refusal: where it can be read before the answer, and where the answer shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actscope.analysis.probes import ProbeCurve, ProbeScore
from actscope.plots.probe_curve import probe_curve_figure
from actscope.plots.report import Picture, Section
from actscope.plots.token_strip import StripText, token_strip_figure
from actscope.studies.tour.refusals import (
    RefusalDirection,
    Requests,
    probe_of,
    probe_of_words,
    refusal_direction,
)
from actscope.studies.tour.report_lens import word
from actscope.studies.tour.result import SITE, Answer

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.stores import Run

__all__ = ["refusal_sections"]

Float64 = npt.NDArray[np.float64]

_OTHERS = 2
"""Answers beside the twins'."""
_APART = 0.25
"""Share of the distance between the classes from which two texts lie apart."""


def refusal_sections(
    model: HFModel,
    requests: Requests,
    run: Run,
    answers: Sequence[Answer],
    twins: Sequence[Answer],
) -> list[Section]:
    """The probe of every block, and answers coloured along the direction of the best.

    Args:
        model: For the words of its tokens.
        requests: What the probe reads.
        run: The run of the answers.
        answers: All answers.
        twins: Those to a request to refuse and to its twin, or nothing.
    """
    curve = probe_of(requests)
    if curve is None:
        return []
    sections = [_probe_section(curve, probe_of_words(requests))]
    if twins:
        others = [a for a in answers if a.place not in {t.place for t in twins}][:_OTHERS]
        shown = [*twins, *others]
        questions = {answer.question for answer in shown}
        direction = refusal_direction(requests, curve.best_layer, questions)
        if direction is not None:
            sections.append(_strip_section(model, run, shown, direction, curve))
    return sections


def _probe_section(curve: ProbeCurve, words: ProbeScore) -> Section:
    title = _probe_title(curve)
    caption = (
        f"Logistic regression on resid_post at the last token of the prompt, {curve.n_folds}-fold "
        "cross-validated with a request, its twin and all that differ from them in names alone "
        "always in the same fold, after each block: AUROC within held-out folds and its 95 % "
        f"interval over {curve.n_groups} kinds of request. n = {curve.best.n} questions. Shuffled "
        f"labels: {curve.n_shuffles} refits with labels exchanged within each kind; the title’s "
        f"figure is of the best block of each refit. {_first_block(curve)} The same probe on word "
        f"counts, without any model, has {_interval(words)}. The data set says which requests are "
        "to be refused, and twins differ in their words: a probe may read those as well as a "
        "decision."
    )
    return Section(title, [Picture(probe_curve_figure(curve), f"Line plot. {title}.")], caption)


def _probe_title(curve: ProbeCurve) -> str:
    """Which block tells best, and whether that is more than chance."""
    control = f"{curve.best_control_p95:.2f}, the 95th percentile with shuffled labels"
    if curve.best_is_above_control:
        return (
            f"Before the answer begins, block {curve.best_layer} tells requests to refuse from "
            f"their harmless twins with an AUROC of {_interval(curve.best)}, above {control}"
        )
    return (
        "Before the answer begins, no block is seen to tell requests to refuse from their harmless "
        f"twins: the best, block {curve.best_layer}, has an AUROC of {_interval(curve.best)}, not "
        f"above {control}"
    )


def _interval(score: ProbeScore) -> str:
    return f"{score.auroc:.2f} (95 % interval {score.low:.2f} to {score.high:.2f})"


def _first_block(curve: ProbeCurve) -> str:
    first = curve.scores[0]
    return f"After block {curve.layers[0]} the AUROC is {_interval(first)}."


def _strip_section(
    model: HFModel,
    run: Run,
    shown: Sequence[Answer],
    direction: RefusalDirection,
    curve: ProbeCurve,
) -> Section:
    along = [direction.along(run.array(SITE, direction.layer, example=a.place)) for a in shown]
    roles = ["A request to refuse", "Its harmless twin", *["Another question"] * len(shown)]
    texts = [
        StripText(
            tokens=[word(model, token) for token in answer.token_ids],
            values=values,
            answer_from=answer.answer_from + 1,
            heading=role,
        )
        for role, answer, values in zip(roles, shown, along, strict=False)
    ]
    title = _strip_title(direction, *map(_before_and_through, shown[:2], along[:2]))
    figure = token_strip_figure(texts, unit=f"{SITE} along refused − answered (activation units)")
    return Section(
        title,
        [Picture(figure, f"Tokens of {len(shown)} texts in colour. {title}.")],
        _strip_caption(shown, direction, curve),
    )


def _before_and_through(answer: Answer, along: Float64) -> tuple[float, float]:
    """At the last token of the prompt, and the mean over the tokens of the answer."""
    start = answer.answer_from + 1
    return float(along[start - 1]), float(along[start:].mean())


def _strip_title(
    direction: RefusalDirection, refused: tuple[float, float], twin: tuple[float, float]
) -> str:
    """Whether the two lie apart before the answer, and on average over it."""
    before, through = (
        one - other >= _APART * direction.distance > 0
        for one, other in zip(refused, twin, strict=True)
    )
    values = [f"({_amount(a)} against {_amount(b)})" for a, b in zip(refused, twin, strict=True)]
    begin = f"The refusal direction of block {direction.layer}"
    if before and through:
        return (
            f"{begin} sets a request apart from its twin before the answer {values[0]} and "
            f"through it {values[1]}"
        )
    if before:
        return (
            f"{begin} sets a request apart from its twin before the answer {values[0]}, but not "
            f"through it {values[1]}"
        )
    if through:
        return (
            f"{begin} does not set a request apart from its twin before the answer {values[0]}, "
            f"but through it {values[1]}"
        )
    return (
        f"{begin} sets a request apart from its twin neither before the answer {values[0]} nor "
        f"through it {values[1]}"
    )


def _amount(value: float) -> str:
    """Three digits."""
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def _strip_caption(shown: Sequence[Answer], direction: RefusalDirection, curve: ProbeCurve) -> str:
    tokens = sum(len(answer.token_ids) for answer in shown)
    caption = (
        f"n = {tokens} tokens of {len(shown)} prompts with their greedy answers; the bar marks "
        "where an answer begins. Colour: "
        f"projection of {SITE} after block {direction.layer}, the probe’s best, on the mean of "
        f"requests to refuse minus that of their twins, at the last token of the prompt; 0 lies "
        f"halfway between the two means, which are {_amount(direction.distance)} apart. The "
        f"direction is of {direction.n_groups} kinds of request, none of which is shown here"
    )
    if direction.n_left_out:
        caption += f" ({direction.n_left_out} left out)"
    caption += (
        f". The title compares the first two at the last token of the prompt, then the means over "
        f"their answers; apart is at least {_APART:.0%} of that distance. A first token may be off "
        "the scale."
    )
    if not curve.best_is_above_control:
        caption += " The probe was not above its control, so the colours may mean nothing."
    return caption
