"""What the tour did, and what its runs show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.analysis.logit_lens import LogitLens, logit_lens
from actscope.analysis.norms import LayerNorms, norms_by_layer, row_norms
from actscope.analysis.similarity import cosine_matrix, mean_centred
from actscope.core.arrays import Array
from actscope.core.spec import ModelIdentity
from actscope.core.text import RESPONSE

if TYPE_CHECKING:
    from actscope.capture.runner import RunResult
    from actscope.stores import Run, RunSummary, VerifyReport

__all__ = [
    "Answer",
    "Captured",
    "LensShares",
    "Similarity",
    "TourResult",
    "answers_of",
    "middle_layers",
    "norms_of",
    "shares_of",
    "signed",
    "similarity_of",
    "spread",
]

SITE = "resid_post"
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Captured:
    """One run of the tour.

    Attributes:
        name: Its folder's name.
        done: What this call captured and what was there before.
        summary: What the run holds.
        verified: What reading every byte of it found.
        noted: Examples that something was done to, such as cutting them to the context.
    """

    name: str
    done: RunResult
    summary: RunSummary
    verified: VerifyReport
    noted: int = 0


@dataclass(frozen=True)
class TourResult:
    """What the tour did.

    Attributes:
        model: Which model.
        captured: The runs, in order.
        report: The report's file.
        seconds: Wall clock of this call, 0 until it is over.
    """

    model: ModelIdentity
    captured: tuple[Captured, ...]
    report: Path
    seconds: float = 0.0

    def after(self, seconds: float) -> TourResult:
        """The same, with its time."""
        return replace(self, seconds=seconds)

    @property
    def newly_captured(self) -> int:
        """Examples that this call captured."""
        return sum(one.done.captured for one in self.captured)

    @property
    def resumed(self) -> int:
        """Examples that were on disk before."""
        return sum(one.done.resumed for one in self.captured)


def norms_of(runs: Sequence[Run]) -> LayerNorms:
    """Norms by layer over all tokens of some runs of the same sites."""
    norms = {
        layer: np.concatenate([row_norms(run.numpy(SITE, layer)) for run in runs])
        for layer in runs[0].layers
    }
    first: list[npt.NDArray[np.bool_]] = []
    for run in runs:
        mask = np.zeros(int(run.offsets[-1]), np.bool_)
        mask[run.offsets[:-1]] = True
        first.append(mask)
    return norms_by_layer(norms, np.concatenate(first))


@dataclass(frozen=True)
class Similarity:
    """Cosines of examples, each the mean of its tokens over some layers.

    Attributes:
        ids: Of the examples.
        layers: The layers averaged.
        raw: ``[n, n]``.
        centred: ``[n, n]`` after the mean of all examples is subtracted.
    """

    ids: tuple[str, ...]
    layers: tuple[int, ...]
    raw: Float64
    centred: Float64


def similarity_of(run: Run) -> Similarity:
    """Cosines of a run's examples; the first token is left out, its huge norm is in every text."""
    layers = middle_layers(max(run.layers) + 1)
    bounds = run.offsets
    means: list[Float64] = []
    for layer in layers:
        rows = run.numpy(SITE, layer).astype(np.float64)
        means.append(np.stack([_mean(rows[a + 1 : b]) for a, b in _pairs(bounds)]))
    vectors = np.mean(means, axis=0)
    ids = tuple(record.id for record in run.examples)
    return Similarity(ids, layers, cosine_matrix(vectors), cosine_matrix(mean_centred(vectors)))


def middle_layers(n_layers: int) -> tuple[int, ...]:
    """Three layers in a row that end at 27/35 of the depth, where meaning outweighs wording."""
    last = round(27 / 35 * (n_layers - 1))
    return tuple(range(max(0, last - 2), last + 1))


@dataclass(frozen=True)
class Answer:
    """A generated answer under the logit lens.

    Attributes:
        place: The example's place in the run.
        question: The prompt.
        text: The answer.
        token_ids: ``[L]`` prompt and answer.
        answer_from: The row whose next token is the answer's first.
        lens: Its rows are tokens 0 to L - 2.
    """

    place: int
    question: str
    text: str
    token_ids: npt.NDArray[np.int64]
    answer_from: int
    lens: LogitLens

    @property
    def n_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids) - 1 - self.answer_from

    @property
    def mean_probability(self) -> float:
        """Geometric mean of what the last layer gave the answer's tokens; NaN without any."""
        probabilities = self.lens.actual_prob[-1, self.answer_from :]
        if not probabilities.size:
            return float("nan")
        return float(np.exp(np.log(np.maximum(probabilities, 1e-300)).mean()))


def answers_of(
    run: Run, unembed: Callable[[Array], npt.ArrayLike], layers: Sequence[int]
) -> list[Answer]:
    """Every answer of a run, read by the logit lens; a prompt that has none is left out."""
    found: list[Answer] = []
    for place, record in enumerate(run.examples):
        phase = run.phase(place).numpy()
        if len(phase) < 2 or phase[-1] != RESPONSE:
            continue
        ids: npt.NDArray[np.int64] = run.tokens(place).numpy()
        resid = [run.array(SITE, layer, example=place) for layer in layers]
        found.append(
            Answer(
                place=place,
                question=_question(record.metadata, record.text),
                text=record.response or "",
                token_ids=ids,
                answer_from=int(np.argmax(phase == RESPONSE)) - 1,
                lens=logit_lens(resid, ids, unembed, layers=layers, top_k=1),
            )
        )
    return found


@dataclass(frozen=True)
class LensShares:
    """How the lens reads all answers' tokens, by layer.

    Attributes:
        layers: Layer indices.
        n_tokens: Tokens of the answers.
        first_guess: Share of them that is the layer's most probable token.
        probability: Mean probability of the token.
        entropy: Mean entropy of the prediction, in nats.
        kl_to_final: Mean KL to the last layer's prediction, in nats.
    """

    layers: tuple[int, ...]
    n_tokens: int
    first_guess: tuple[float, ...]
    probability: tuple[float, ...]
    entropy: tuple[float, ...]
    kl_to_final: tuple[float, ...]


def shares_of(answers: Sequence[Answer]) -> LensShares:
    """Statistics over the answers' tokens alone; the prompts were not the model's to choose."""

    def rows(name: str) -> Array:
        return np.concatenate([getattr(a.lens, name)[:, a.answer_from :] for a in answers], axis=1)

    def means(values: Array) -> tuple[float, ...]:
        return tuple(float(x) for x in values.mean(axis=1))

    rank = rows("actual_rank")
    return LensShares(
        layers=answers[0].lens.layers,
        n_tokens=rank.shape[1],
        first_guess=means(rank == 1),
        probability=means(rows("actual_prob")),
        entropy=means(rows("entropy")),
        kl_to_final=means(rows("kl_to_final")),
    )


def spread(layers: Sequence[int], most: int) -> list[int]:
    """At most so many layers, evenly spaced, the first and the last among them."""
    if len(layers) <= most:
        return list(layers)
    places = np.linspace(0, len(layers) - 1, most).round().astype(int)
    return [layers[place] for place in places]


def signed(value: float) -> str:
    """Two decimals, with a minus sign and not a hyphen."""
    return f"{value:.2f}".replace("-", "−")


def _question(metadata: Mapping[str, Any], text: str | None) -> str:
    return str(metadata.get("question", text or ""))


def _mean(rows: Float64) -> Float64:
    return rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan)


def _pairs(bounds: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(pairwise(bounds.tolist()))
