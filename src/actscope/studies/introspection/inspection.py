"""What a collection holds: counts, shapes, answers, and everything that is not as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.analysis.resampling import Estimate, bootstrap
from actscope.stores import checksum
from actscope.studies.introspection.data import Collection, PassData, content_of
from actscope.studies.introspection.passes import CONFIDENCE_BINS

__all__ = ["Inspection", "LayerState", "examples_of", "inspect_pass", "known_numbers"]

Float64 = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 256
_EVERYWHERE = (
    "question_id", "question_text", "options", "model_name", "checkpoint_id", "prompt_type",
    "prompt_text", "temperature", "top_p", "max_new_tokens", "output_text", "logits", "probs",
    "entropy", "char_length", "token_length", "question_type", "has_negation", "has_ambiguity",
    "token_rarity_mean", "token_rarity_max",
)  # fmt: skip
_OF_ANSWERS = ("is_correct", "correct_answer_letter", "logit_margin", "answer_token_index")
_OF_CONFIDENCE = ("correct_answer_letter", "confidence_token_index")
_SHOWN = (
    "question_text", "options", "correct_answer_letter", "output_text", "output_source", "letters",
    "probs", "entropy", "letter_mass",
)  # fmt: skip


@dataclass(frozen=True)
class LayerState:
    """One layer's file.

    Attributes:
        layer: Which.
        shape: ``[questions, seq, d]``.
        dtype: Of the file.
        non_finite: Values that are NaN or infinite.
        empty: Questions whose answer position is all zeros.
        norm: Median length of the answer position's rows.
        altered: Units whose bytes are not those that were written.
    """

    layer: int
    shape: tuple[int, ...]
    dtype: str
    non_finite: int
    empty: int
    norm: float
    altered: int


@dataclass(frozen=True)
class Inspection:
    """What one pass of a collection holds.

    Attributes:
        folder: Of the pass.
        n: Questions on the disk.
        missing: Questions of the range that are not.
        duplicates: Question ids that occur more than once.
        repeated: Ids of questions with the same text and the same answers.
        absent: Fields that rows lack, with how many rows.
        non_finite: Fields of numbers that are not finite, with how many rows.
        accuracy: Share of right answers; None for a pass without.
        letters: Share of questions answered with each letter; the empty text stands for none.
        right_letters: Share of questions whose right answer is at each letter; empty without.
        entropy: Minimum, quartiles and maximum, in nats.
        most: The largest entropy there can be.
        confidence: Questions by bin of stated confidence; empty for ``mcq``.
        stated: Mean expected confidence in percent; None for ``mcq``.
        layers: One a layer.
    """

    folder: str
    n: int
    missing: int
    duplicates: Mapping[str, int]
    repeated: tuple[tuple[str, ...], ...]
    absent: Mapping[str, int]
    non_finite: Mapping[str, int]
    accuracy: Estimate | None
    letters: Mapping[str, float]
    right_letters: Mapping[str, float]
    entropy: tuple[float, ...]
    most: float
    confidence: Mapping[str, int]
    stated: Estimate | None
    layers: tuple[LayerState, ...]

    @property
    def problems(self) -> list[str]:
        """In words, what is not as it should be."""
        found = [f"question {name} is there {k} times" for name, k in self.duplicates.items()]
        found += [f"the questions {', '.join(ids)} have the same text" for ids in self.repeated]
        found += [f"{k} rows lack {name}" for name, k in self.absent.items()]
        found += [f"{k} rows have {name} not finite" for name, k in self.non_finite.items()]
        if self.missing:
            found.append(f"{self.missing} questions of the range are not on the disk yet")
        for state in self.layers:
            if state.non_finite:
                found.append(f"layer {state.layer} has {state.non_finite} values not finite")
            if state.empty:
                found.append(f"layer {state.layer} has {state.empty} questions of zeros")
            if state.altered:
                found.append(
                    f"layer {state.layer} has {state.altered} units whose bytes are not those that "
                    "were written"
                )
        return found


def inspect_pass(collection: Collection, collected: PassData) -> Inspection:
    """Read every row and every byte of one pass."""
    rows, which = collected.rows, collected.which
    n = len(rows)
    counts = Counter(collected.ids)
    answers = Counter(str(row.get("parsed_answer") or "") for row in rows)
    rights = Counter(str(row.get("correct_answer_letter")) for row in rows)
    own = (*_OF_CONFIDENCE, which.name) if which.states_confidence else _OF_ANSWERS
    wanted = (*_EVERYWHERE, *own)
    absent = {f: sum(row.get(f) is None for row in rows) for f in wanted}
    spoiled = {f: sum(not _finite(row.get(f)) for row in rows) for f in wanted}
    entropy = known_numbers(rows, "entropy")
    hits = known_numbers(rows, "is_correct") if not which.states_confidence else None
    stated = known_numbers(rows, which.name) if which.states_confidence else None
    letters = {letter: answers.get(letter, 0) / max(n, 1) for letter in which.letters}
    if answers.get(""):
        letters[""] = answers[""] / n
    return Inspection(
        folder=which.folder,
        n=n,
        missing=collection.missing,
        duplicates={name: k for name, k in counts.items() if k > 1},
        repeated=_repeated(rows),
        absent={f: k for f, k in absent.items() if k},
        non_finite={f: k for f, k in spoiled.items() if k},
        accuracy=_mean(hits),
        letters=letters,
        right_letters={} if hits is None or not n else {x: rights[x] / n for x in which.letters},
        entropy=tuple(np.quantile(entropy, [0, 0.25, 0.5, 0.75, 1]).tolist())
        if entropy.size
        else (),
        most=float(np.log(len(which.letters))),
        confidence=_histogram(collected) if which.states_confidence else {},
        stated=_mean(stated),
        layers=tuple(_state(collected, layer) for layer in collection.layers),
    )


def known_numbers(rows: Sequence[Mapping[str, Any]], field: str) -> Float64:
    """A field of the rows that have it, where it is finite."""
    values = np.array([row[field] for row in rows if row.get(field) is not None], np.float64)
    return values[np.isfinite(values)]


def _mean(values: Float64 | None) -> Estimate | None:
    if values is None or not values.size:
        return None
    return bootstrap(lambda rows: float(values[rows].mean()), len(values))


def _finite(value: Any) -> bool:
    """Whether a number, or every number of a list, is finite; what is no number is."""
    listed: list[Any] = value if isinstance(value, list) else [value]
    return all(not isinstance(x, float) or isfinite(x) for x in listed)


def _repeated(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Ids of questions that are the same but for their id."""
    found: dict[object, list[str]] = {}
    for row in rows:
        found.setdefault(content_of(row), []).append(str(row.get("question_id")))
    named = (tuple(dict.fromkeys(ids)) for ids in found.values())
    return tuple(ids for ids in named if len(ids) > 1)


def _histogram(collected: PassData) -> dict[str, int]:
    """Questions by the bin of their most probable letter."""
    found = Counter(int(np.argmax(row["probs"])) for row in collected.rows if row.get("probs"))
    return {name: found.get(i, 0) for i, name in enumerate(CONFIDENCE_BINS)}


def _state(collected: PassData, layer: int) -> LayerState:
    mapped = collected.files.read(layer)
    n = len(collected)
    bad = empty = 0
    for start in range(0, n, _ROWS_AT_ONCE):
        block = np.asarray(mapped[start : min(start + _ROWS_AT_ONCE, n)])
        bad += int((~np.isfinite(block)).sum())
        empty += int((~block[:, -1].any(axis=1)).sum())
    ends = np.asarray(mapped[:n, -1], np.float64)
    norm = float(np.median(np.linalg.norm(ends, axis=1))) if n else float("nan")
    name = f"{collected.which.folder}/{layer:02d}"
    altered = sum(
        checksum(mapped[unit.start : unit.stop]) != unit.sums[name]
        for unit in collected.units
        if name in unit.sums
    )
    return LayerState(layer, mapped.shape, str(mapped.dtype), bad, empty, norm, altered)


def examples_of(collected: PassData, count: int) -> list[dict[str, Any]]:
    """The first rows with what a reader wants to see of them."""
    shown: list[dict[str, Any]] = []
    for row in collected.rows[:count]:
        lost = [f for f in _SHOWN if row.get(f) is None]
        if lost:
            shown.append({"question": row.get("question_id"), "lacks": ", ".join(lost)})
            continue
        lines = [f"{letter}) {answer}" for letter, answer in row["options"].items()]
        probs = " ".join(f"{x} {p:.2f}" for x, p in zip(row["letters"], row["probs"], strict=True))
        found: dict[str, Any] = {
            "question": f"{row['question_id']}: {row['question_text']}",
            "options": "  ".join(lines),
            "right answer": row["correct_answer_letter"],
            "output": f"{row['output_text']} ({row['output_source']})",
            "probabilities": probs,
            "entropy": f"{row['entropy']:.3f} nats, {row['letter_mass']:.1%} of all on letters",
        }
        if collected.which.states_confidence:
            stated = row.get(collected.which.name)
            found["expected confidence"] = "absent" if stated is None else f"{stated:.1f} %"
        else:
            margin = row.get("logit_margin")
            said = "absent" if margin is None else f"{margin:.2f}"
            found["correct"] = f"{row.get('is_correct')}, margin {said}"
        shown.append(found)
    return shown
