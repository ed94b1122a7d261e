"""What the analyses read: targets and activations of the questions that all passes have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.core.spec import UnitPlan
from actscope.studies.introspection.data import Collection, PassData, content_of
from actscope.studies.introspection.passes import PASSES
from actscope.studies.introspection.ranges import how_to_add
from actscope.studies.introspection.surface import NUMERIC, QUESTION_TYPES

__all__ = ["FEWEST", "Inputs", "inputs_of"]

Float64 = npt.NDArray[np.float64]

FEWEST = 40
"""Questions that the analyses need: folds and thirds of fewer hold next to nothing."""


@dataclass(frozen=True)
class Inputs:
    """One collection, ready to be analysed.

    Attributes:
        collection: Where it comes from.
        groups: ``[n]`` question ids: what cross-validation keeps together. A question that is
            there under several ids goes by the first of them.
        layers: Block indices.
        entropy: ``[n]`` of the answer letters, nats.
        correct: ``[n]`` booleans.
        own: ``[n]`` stated self-confidence, percent.
        others: ``[n]`` stated other-confidence, percent.
        letters: ``[n, 4]`` centred letter logits of the answer.
        surface: ``[n, s]`` surface features.
        surface_names: ``[s]``.
    """

    collection: Collection
    groups: list[str]
    layers: tuple[int, ...]
    entropy: Float64
    correct: npt.NDArray[np.bool_]
    own: Float64
    others: Float64
    letters: Float64
    surface: Float64
    surface_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, name: str, layer: int) -> Float64:
        """``[n, d]`` the answer position of a pass after a block."""
        return self.collection[name].answers(layer)

    def by_layer(self, name: str) -> dict[int, Float64]:
        """The same of every block."""
        return {layer: self.rows(name, layer) for layer in self.layers}

    @property
    def only_answer(self) -> str:
        """In words, that all answers are right, or all wrong; empty where there are both."""
        if self.correct.all():
            return "every answer is right"
        return "" if self.correct.any() else "every answer is wrong"


def inputs_of(collection: Collection) -> Inputs:
    """Targets of a collection of all three passes.

    Raises:
        BadInputError: a pass is missing, or there are too few questions.
    """
    mcq, own, others = (collection[p.name] for p in PASSES)
    whole = mcq.ids == own.ids == others.ids
    if not whole or len(mcq) < FEWEST:
        raise BadInputError(
            "the analyses need all passes of at least so many questions",
            got=f"{len(mcq)}, {len(own)} and {len(others)} questions in {collection.path}",
            expected=f"{FEWEST}",
            next_step=_more(collection, len(mcq))
            if whole and not collection.missing
            else "finish the collection: run its collect command again",
        )
    logits = np.array([row["logits"] for row in mcq.rows], np.float64)
    surface, names = _surface(mcq.rows)
    return Inputs(
        collection=collection,
        groups=_groups(mcq),
        layers=collection.layers,
        entropy=mcq.numbers("entropy"),
        correct=mcq.numbers("is_correct").astype(np.bool_),
        own=own.numbers("self_confidence"),
        others=others.numbers("other_confidence"),
        letters=logits - logits.mean(axis=1, keepdims=True),
        surface=surface,
        surface_names=names,
    )


def _more(collection: Collection, n: int) -> str:
    stop = UnitPlan.from_json(collection.config["plan"]).stop
    return how_to_add(collection.path, stop, stop + FEWEST - n)


def _groups(collected: PassData) -> list[str]:
    first: dict[object, str] = {}
    pairs = zip(collected.ids, collected.rows, strict=True)
    return [first.setdefault(content_of(row), name) for name, row in pairs]


def _surface(rows: Any) -> tuple[Float64, tuple[str, ...]]:
    """Numbers as they are, the kind of question as one column a kind that occurs."""

    def number(row: Mapping[str, Any], field: str) -> float:
        return float(row[field])

    kinds = [k for k in QUESTION_TYPES if any(row["question_type"] == k for row in rows)]
    columns = [[number(row, field) for row in rows] for field in NUMERIC]
    columns += [[float(row["question_type"] == kind) for row in rows] for kind in kinds]
    return np.array(columns, np.float64).T, (*NUMERIC, *(f"is_{kind}" for kind in kinds))
