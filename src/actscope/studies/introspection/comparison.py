"""Two collections of the same questions: what differs, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.analysis.calibration import Reliability, brier_score, calibration_error, reliability
from actscope.analysis.cka import debiased_cka
from actscope.analysis.resampling import Estimate, bootstrap
from actscope.core.errors import BadInputError
from actscope.studies.introspection.data import Collection, paired

__all__ = ["Comparison", "LayerLikeness", "Measured", "compare"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """A figure of both collections.

    Attributes:
        name: What it is.
        one: Of the first.
        other: Of the second.
        difference: The second minus the first, over the same redrawn questions.
    """

    name: str
    one: Estimate
    other: Estimate
    difference: Estimate


@dataclass(frozen=True)
class LayerLikeness:
    """How alike two models' activations at the answer position are.

    Attributes:
        folder: Of the pass.
        layers: Block indices.
        cosine: Mean cosine over questions, by layer.
        cosine_low: 2.5th percentile of the questions' cosines, by layer.
        cka: Debiased CKA, by layer.
    """

    folder: str
    layers: tuple[int, ...]
    cosine: tuple[float, ...]
    cosine_low: tuple[float, ...]
    cka: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """What two collections of the same questions show.

    Attributes:
        names: Of the two.
        models: Each model with its adapter.
        n: Questions in both.
        measures: Figures, in the order shown.
        reliability: Of both, where both passes are there.
        likeness: By pass.
        caveats: In words, what else than the model differs between the two.
    """

    names: tuple[str, str]
    models: tuple[str, str]
    n: int
    measures: tuple[Measured, ...]
    reliability: tuple[Reliability, Reliability] | None
    likeness: tuple[LayerLikeness, ...]
    caveats: tuple[str, ...] = ()

    def measure(self, name: str) -> Measured:
        """One of the figures.

        Raises:
            BadInputError: the collections lack its pass.
        """
        for found in self.measures:
            if found.name == name:
                return found
        raise BadInputError(f"nothing was measured called {name}")

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {
            "names": list(self.names),
            "n": self.n,
            "caveats": list(self.caveats),
            "measures": {
                m.name: {
                    "one": m.one.to_json(),
                    "other": m.other.to_json(),
                    "difference": m.difference.to_json(),
                }
                for m in self.measures
            },
            "likeness": {
                one.folder: {
                    "layers": list(one.layers),
                    "cosine": [round(x, 6) for x in one.cosine],
                    "debiased_cka": [round(x, 6) for x in one.cka],
                }
                for one in self.likeness
            },
        }


def compare(one: Collection, other: Collection) -> Comparison:
    """Join two collections by question id and compare what both have.

    Raises:
        BadInputError: they share no pass, no question, or their questions differ in their text.
    """
    shared = [name for name in one.passes if name in other.passes]
    if not shared:
        raise BadInputError(
            "the two collections share no pass",
            got=f"{', '.join(one.passes)} and {', '.join(other.passes)}",
        )
    joined = {name: paired(one[name], other[name]) for name in shared}
    places = next(iter(joined.values()))
    _refuse_other_questions(one, other, shared[0], places)
    n = len(places[0])
    a, b = (_Side(c, {name: both[i] for name, both in joined.items()})
             for i, c in enumerate((one, other)))  # fmt: skip
    layers = tuple(layer for layer in one.layers if layer in other.layers)
    width = {c.config["d_model"] for c in (one, other)}
    return Comparison(
        names=_names(one, other),
        models=(one.model, other.model),
        n=n,
        measures=tuple(_measures(a, b, n)),
        reliability=_reliability(a, b),
        likeness=tuple(_likeness(a, b, name, layers) for name in shared if len(width) == 1),
        caveats=tuple(_caveats(one, other)),
    )


@dataclass(frozen=True)
class _Side:
    """One collection, cut to the shared questions."""

    collection: Collection
    places: Mapping[str, list[int]]

    def field(self, name: str, field: str) -> Float64:
        return self.collection[name].numbers(field)[self.places[name]]

    def has(self, *names: str) -> bool:
        return all(name in self.places for name in names)


def _names(one: Collection, other: Collection) -> tuple[str, str]:
    for a, b in (
        (one.name, other.name),
        (one.path.name, other.path.name),
        (str(one.path), str(other.path)),
    ):
        if a != b:
            return a, b
    return str(one.path), f"{other.path} again"


def _caveats(one: Collection, other: Collection) -> list[str]:
    """The same questions may have been put in other words, or answered in another way."""
    specs = one.config["spec"], other.config["spec"]
    a, b = (spec["templates"] for spec in specs)
    texts = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
    found: list[str] = []
    if texts:
        found.append(f"The templates differ ({', '.join(texts)}): so do the prompts, not only the "
                     "models")  # fmt: skip
    if specs[0]["chat"] != specs[1]["chat"]:
        found.append("A chat template was used for one of the two alone")
    if specs[0]["generate"] != specs[1]["generate"]:
        found.append("Answers were taken in another way: sampled, or the most probable letter")
    return found


def _refuse_other_questions(
    one: Collection, other: Collection, name: str, places: tuple[list[int], list[int]]
) -> None:
    for i, j in zip(*places, strict=True):
        a, b = one[name].rows[i], other[name].rows[j]
        for field in ("question_text", "options"):
            if a[field] != b[field]:
                raise BadInputError(
                    f"question {a['question_id']} differs between the two in its {field}",
                    got=f"{a[field]!r:.80} and {b[field]!r:.80}",
                    next_step="collect both from one file with one --seed",
                )


def _measures(one: _Side, other: _Side, n: int) -> list[Measured]:
    found: list[Measured] = []

    def add(name: str, a: Callable[[Int64], float], b: Callable[[Int64], float]) -> None:
        whole = bootstrap(lambda r: b(r) - a(r), n)
        found.append(Measured(name, bootstrap(a, n), bootstrap(b, n), whole))

    def means(label: str, name: str, field: str) -> None:
        a, b = (side.field(name, field) for side in (one, other))
        add(label, lambda r: float(a[r].mean()), lambda r: float(b[r].mean()))

    if one.has("mcq"):
        means("accuracy", "mcq", "is_correct")
        means("entropy (nats)", "mcq", "entropy")
        means("logit margin", "mcq", "logit_margin")
    for name, label in (("self_confidence", "self"), ("other_confidence", "other")):
        if one.has(name):
            means(f"{label}-confidence (%)", name, name)
    if one.has("mcq", "self_confidence"):
        sure = [side.field("self_confidence", "self_confidence") / 100 for side in (one, other)]
        right = [side.field("mcq", "is_correct") for side in (one, other)]
        for label, score in (("ECE", calibration_error), ("Brier score", brier_score)):
            a, b = (
                lambda r, s=s, h=h, score=score: score(s[r], h[r])
                for s, h in zip(sure, right, strict=True)
            )
            add(label, a, b)
    return found


def _reliability(one: _Side, other: _Side) -> tuple[Reliability, Reliability] | None:
    if not one.has("mcq", "self_confidence"):
        return None
    a, b = (
        reliability(
            side.field("self_confidence", "self_confidence") / 100, side.field("mcq", "is_correct")
        )
        for side in (one, other)
    )
    return a, b


def _likeness(one: _Side, other: _Side, name: str, layers: tuple[int, ...]) -> LayerLikeness:
    cosine: list[float] = []
    low: list[float] = []
    cka: list[float] = []
    for layer in layers:
        a, b = (side.collection[name].answers(layer, side.places[name]) for side in (one, other))
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        each = (a * b).sum(axis=1) / np.where(size > 0, size, np.nan)
        cosine.append(float(np.nanmean(each)))
        low.append(float(np.nanquantile(each, 0.025)))
        cka.append(debiased_cka(a, b) if len(a) >= 4 else float("nan"))
    folder = one.collection[name].which.folder
    return LayerLikeness(folder, layers, tuple(cosine), tuple(low), tuple(cka))
