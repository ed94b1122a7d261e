"""What a collection holds: counts, shapes, answers, and everything that is not as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actscope.analysis.resampling import Estimate, bootstrap
from actscope.studies.introspection.data import Collection, PassData
from actscope.studies.introspection.passes import CONFIDENCE_BINS

__all__ = ["Inspection", "LayerState", "examples_of", "inspect_pass"]

_ROWS_AT_ONCE = 256
_EVERYWHERE = (
    "question_id", "question_text", "options", "model_name", "checkpoint_id", "prompt_type",
    "prompt_text", "temperature", "top_p", "max_new_tokens", "output_text", "logits", "probs",
    "entropy", "char_length", "token_length", "question_type", "has_negation", "has_ambiguity",
    "token_rarity_mean", "token_rarity_max",
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
    """

    layer: int
    shape: tuple[int, ...]
    dtype: str
    non_finite: int
    empty: int
    norm: float


@dataclass(frozen=True)
class Inspection:
    """What one pass of a collection holds.

    Attributes:
        folder: Of the pass.
        n: Questions on the disk.
        missing: Questions of the range that are not.
        duplicates: Question ids that occur more than once.
        absent: Fields that rows lack, with how many rows.
        non_finite: Rows whose logits are not finite.
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
    absent: Mapping[str, int]
    non_finite: int
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
        found += [f"{k} rows lack {name}" for name, k in self.absent.items()]
        if self.missing:
            found.append(f"{self.missing} questions of the range are not on the disk yet")
        if self.non_finite:
            found.append(f"{self.non_finite} rows have logits that are not finite")
        for state in self.layers:
            if state.non_finite:
                found.append(f"layer {state.layer} has {state.non_finite} values not finite")
            if state.empty:
                found.append(f"layer {state.layer} has {state.empty} questions of zeros")
        return found


def inspect_pass(collection: Collection, collected: PassData) -> Inspection:
    """Read every row and every byte of one pass."""
    rows, which = collected.rows, collected.which
    n = len(rows)
    counts = Counter(collected.ids)
    answers = Counter(str(row.get("parsed_answer") or "") for row in rows)
    rights = Counter(str(row["correct_answer_letter"]) for row in rows)
    wanted = (*_EVERYWHERE, which.name if which.states_confidence else "is_correct")
    absent = {f: sum(row.get(f) is None for row in rows) for f in wanted}
    logits = [np.asarray(row["logits"], np.float64) for row in rows]
    entropy = np.array([row["entropy"] for row in rows], np.float64)
    hits = None if which.states_confidence or not n else collected.numbers("is_correct")
    stated = collected.numbers(which.name) if which.states_confidence and n else None
    letters = {letter: answers.get(letter, 0) / max(n, 1) for letter in which.letters}
    if answers.get(""):
        letters[""] = answers[""] / n
    return Inspection(
        folder=which.folder,
        n=n,
        missing=collection.missing,
        duplicates={name: k for name, k in counts.items() if k > 1},
        absent={f: k for f, k in absent.items() if k},
        non_finite=sum(not np.isfinite(x).all() for x in logits),
        accuracy=None if hits is None else bootstrap(lambda r: float(hits[r].mean()), n),
        letters=letters,
        right_letters={} if hits is None else {x: rights[x] / n for x in which.letters},
        entropy=tuple(np.quantile(entropy, [0, 0.25, 0.5, 0.75, 1]).tolist()) if n else (),
        most=float(np.log(len(which.letters))),
        confidence=_histogram(collected) if which.states_confidence else {},
        stated=None if stated is None else bootstrap(lambda r: float(stated[r].mean()), n),
        layers=tuple(_state(collected, layer) for layer in collection.layers),
    )


def _histogram(collected: PassData) -> dict[str, int]:
    """Questions by the bin of their most probable letter."""
    found = Counter(int(np.argmax(row["probs"])) for row in collected.rows)
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
    return LayerState(layer, mapped.shape, str(mapped.dtype), bad, empty, norm)


def examples_of(collected: PassData, count: int) -> list[dict[str, Any]]:
    """The first rows with what a reader wants to see of them."""
    shown: list[dict[str, Any]] = []
    for row in collected.rows[:count]:
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
            found["expected confidence"] = f"{row[collected.which.name]:.1f} %"
        else:
            found["correct"] = f"{row['is_correct']}, margin {row['logit_margin']:.2f}"
        shown.append(found)
    return shown
