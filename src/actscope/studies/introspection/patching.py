"""Analysis 5: is confidence where we read it? Residuals of one question are put into another.

Activation patching (Vig et al., 2020; Meng et al., 2022) at the answer position, one block at a
time: between questions of high and low stated confidence, and, as the control, from a question
drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.analysis.resampling import Estimate, bootstrap
from actscope.interventions import Patch
from actscope.plots.report import Picture, Table
from actscope.plots.series import Series, series_figure
from actscope.studies.introspection.analysis_inputs import Inputs
from actscope.studies.introspection.directions import high_and_low
from actscope.studies.introspection.finding import Finding, above_from, rounded
from actscope.studies.introspection.params import AnalysisParams
from actscope.studies.introspection.passes import MIDPOINTS
from actscope.studies.introspection.replay import Replay, renamed

__all__ = ["causal_patching", "pairs_of"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

OWN = "self_confidence"
_BY_CONSTRUCTION = (
    " After the last block the patch replaces what is unembedded, so all of the distance is "
    "covered there by construction."
)


@dataclass(frozen=True)
class Patched:
    """Patches after one block.

    Attributes:
        restored: Share of the distance to the source's stated confidence that the patch covers: 0
            is no effect, 1 is all of it. Over both ways together.
        control: The same with a random question's residual, towards the same end.
        difference: The first minus the second, over the same pairs.
        raised: Change in points where high is put into low.
        lowered: Change in points where low is put into high.
        contrast: Change of the logit difference between the upper and lower four letters, signed
            towards the source.
        control_contrast: The same of the control.
    """

    restored: Estimate
    control: Estimate
    difference: Estimate
    raised: Estimate
    lowered: Estimate
    contrast: Estimate
    control_contrast: Estimate


@dataclass(frozen=True)
class _Answers:
    """Expected confidence and letter contrast of some prompts."""

    sure: Float64
    contrast: Float64


def causal_patching(
    inputs: Inputs, replay: Replay, params: AnalysisParams, step: Callable[[str], None]
) -> Finding:
    """Patch between high and low confidence, block by block, with a random-question control."""
    target, source, random = pairs_of(inputs, params)
    n = len(target) // 2
    replay.check(OWN, target.tolist())
    rows = replay.rows(OWN, target.tolist())
    ids = [f"pair{i}" for i in range(len(rows))]
    rows = renamed(rows, ids)
    before = _answers(replay, rows)
    ends = {
        name: replay.ends(renamed(replay.rows(OWN, places.tolist()), ids), inputs.layers)
        for name, places in (("source", source), ("random", random))
    }
    wanted = np.concatenate([before.sure[n:], before.sure[:n]])
    toward = np.concatenate([np.ones(n), -np.ones(n)])

    def patched(layer: int, name: str) -> _Answers:
        patch = Patch(ends[name], layer=layer, tokens=[-1], source_tokens=[-1])
        with replay.model.intervene(patch):
            return _answers(replay, rows)

    found: dict[int, Patched] = {}
    for layer in inputs.layers:
        step(f"patching after block {layer}")
        after, control = patched(layer, "source"), patched(layer, "random")
        found[layer] = _measured(before, after, control, wanted, toward)
    return Finding(
        name="5_causal_patching",
        title=_title(found, replay.model.n_layers - 1),
        paragraph=_paragraph(n, before, found, replay.model.n_layers - 1),
        pictures=_pictures(found),
        tables=(_table(found),),
        numbers=rounded(
            {
                "pairs": n,
                "mean_high": float(before.sure[n:].mean()),
                "mean_low": float(before.sure[:n].mean()),
                "by_block": {
                    a: {k: getattr(one, k).to_json() for k in one.__dataclass_fields__}
                    for a, one in found.items()
                },
            }
        ),
    )


def pairs_of(inputs: Inputs, params: AnalysisParams) -> tuple[Int64, Int64, Int64]:
    """Places of targets, of their sources, and of the control's sources.

    The first half of the targets are questions of low confidence whose sources are of high
    confidence; the second half are the same pairs the other way.
    """
    rng = np.random.default_rng([params.seed, 5])
    high, low = high_and_low(inputs.own, np.arange(len(inputs)))
    n = min(params.pairs, len(high))
    high, low = rng.permutation(high)[:n], rng.permutation(low)[:n]
    target = np.concatenate([low, high])
    return target, np.concatenate([high, low]), _others(rng, target, len(inputs))


def _others(rng: np.random.Generator, target: Int64, n: int) -> Int64:
    """A random question for each target, never itself."""
    drawn = rng.integers(0, n - 1, len(target))
    return drawn + (drawn >= target)


def _answers(replay: Replay, rows: Sequence[object]) -> _Answers:
    probs = replay.probabilities(OWN, rows)  # type: ignore[arg-type]
    logs = np.log(np.maximum(probs, 1e-300))
    half = probs.shape[1] // 2
    contrast = _logsumexp(logs[:, half:]) - _logsumexp(logs[:, :half])
    return _Answers(probs @ np.asarray(MIDPOINTS), contrast)


def _logsumexp(rows: Float64) -> Float64:
    top = rows.max(axis=1)
    return top + np.log(np.exp(rows - top[:, None]).sum(axis=1))


def _measured(
    before: _Answers, after: _Answers, control: _Answers, wanted: Float64, toward: Float64
) -> Patched:
    """Both ways of a pair are redrawn together."""
    n = len(wanted) // 2
    distance = wanted - before.sure
    moved, by_chance = after.sure - before.sure, control.sure - before.sure

    def both(pairs: Int64) -> Int64:
        return np.concatenate([pairs, pairs + n])

    def share(change: Float64, pairs: Int64) -> float:
        rows = both(pairs)
        return float((change[rows] * toward[rows]).sum() / np.abs(distance[rows]).sum())

    def logits(answers: _Answers) -> Estimate:
        change = (answers.contrast - before.contrast) * toward
        return bootstrap(lambda pairs: float(change[both(pairs)].mean()), n)

    return Patched(
        restored=bootstrap(lambda p: share(moved, p), n),
        control=bootstrap(lambda p: share(by_chance, p), n),
        difference=bootstrap(lambda p: share(moved, p) - share(by_chance, p), n),
        raised=bootstrap(lambda p: float(moved[p].mean()), n),
        lowered=bootstrap(lambda p: float(moved[p + n].mean()), n),
        contrast=logits(after),
        control_contrast=logits(control),
    )


def _title(found: Mapping[int, Patched], last: int) -> str:
    """What blocks before the last show: after that one all is covered by construction."""
    inner = [layer for layer in found if layer != last]
    if not inner:
        return "Patched after the last block alone, where all of the distance is covered anyway"
    clear = [layer for layer in inner if found[layer].difference.low > 0]
    if not clear:
        return (
            "No patch at the answer position before the last block moves stated confidence "
            "clearly further than a random question’s"
        )
    blocks = tuple(inner)
    start = above_from(blocks, [found[a].difference.low for a in inner], 0.0)
    half = above_from(blocks, [found[a].restored.value for a in inner], 0.5)
    named = (
        f"after block {', '.join(map(str, clear))}" if start is None else f"from block {start} on"
    )
    far = f", and more than half of the way from block {half} on" if half is not None else ""
    return (
        f"Residuals at the answer position carry confidence: {named} patches move it further than "
        f"a random question’s{far}"
    )


def _paragraph(n: int, before: _Answers, found: Mapping[int, Patched], last: int) -> str:
    inner = [layer for layer in found if layer != last] or list(found)
    best = max(inner, key=lambda a: found[a].difference.value)
    one = found[best]
    return (
        f"{n} pairs of a question from the third with the highest stated confidence "
        f"(mean {before.sure[n:].mean():.1f} %) and one from the lowest "
        f"({before.sure[:n].mean():.1f} %). The residual at the answer position of one is replaced "
        "by that of the other after a single block, both ways. After block "
        f"{best} this covers {one.restored} of the distance between the two; a random question’s "
        f"residual {one.control}; the difference is {one.difference}. High into low changes "
        f"confidence by {one.raised} points, low into high by {one.lowered}. The log odds of the "
        f"letters E to H against A to D move by {one.contrast} towards the source, by "
        f"{one.control_contrast} with the control."
    ) + (_BY_CONSTRUCTION if last in found else "")


def _pictures(found: Mapping[int, Patched]) -> tuple[Picture, ...]:
    layers = list(found)

    def line(label: str, field: str, *, control: bool = False) -> Series:
        values = [getattr(found[a], field) for a in layers]
        return Series(
            label, layers, [v.value for v in values], [v.low for v in values],
            [v.high for v in values], control,
        )  # fmt: skip

    shares = [
        line("high and low exchanged", "restored"),
        line("random question", "control", control=True),
    ]
    logits = [line("high and low exchanged", "contrast"),
              line("random question", "control_contrast", control=True)]  # fmt: skip
    shown = (
        (shares, "share of the distance covered", "Stated confidence"),
        (logits, "change of log odds, E–H against A–D", "Letter logits"),
    )
    return tuple(
        Picture(
            series_figure(lines, xlabel="block", ylabel=ylabel, level=0.0, level_label="none"),
            f"Line plot by block. {heading} after a patch.",
            heading,
        )
        for lines, ylabel, heading in shown
    )


def _table(found: Mapping[int, Patched]) -> Table:
    rows = [
        (a, str(p.restored), str(p.control), str(p.difference), str(p.raised), str(p.lowered))
        for a, p in found.items()
    ]
    columns = ["block#", "covered", "random", "difference", "high into low", "low into high"]
    return Table(columns, rows, "Patches by block; the last two in points, 95 % intervals.")
