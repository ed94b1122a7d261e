"""What a model's next-token logits say about a choice among letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["LetterReadout", "expected_value", "read_letters"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LetterReadout:
    """A distribution over letters for each of n positions.

    Attributes:
        logits: ``[n, letters]``: log of the summed exponentials of each letter's tokens.
        probs: ``[n, letters]``: softmax over the letters alone.
        entropy: ``[n]`` of ``probs``, in nats.
        mass: ``[n]``: probability of all letters together, in the softmax over the vocabulary.
    """

    logits: Float64
    probs: Float64
    entropy: Float64
    mass: Float64

    def margin(self, right: npt.ArrayLike) -> Float64:
        """``[n]`` the logit of the right letter minus the best of the others.

        Args:
            right: ``[n]`` the index of the right letter.
        """
        places = np.asarray(right, np.int64)
        rows = np.arange(len(places))
        others = self.logits.copy()
        others[rows, places] = -np.inf
        return self.logits[rows, places] - others.max(axis=1)

    @property
    def best(self) -> npt.NDArray[np.int64]:
        """``[n]`` the index of the most probable letter; the first of several."""
        return self.logits.argmax(axis=1)


def read_letters(logits: npt.ArrayLike, tokens: Sequence[Sequence[int]]) -> LetterReadout:
    """Sum the tokens of each letter and normalise over the letters.

    A letter's logit is ``logsumexp`` over its tokens ("A" and " A" are one letter), so its
    probability among letters is what the whole vocabulary's softmax gives these tokens together.

    Args:
        logits: ``[n, d_vocab]``, any real dtype.
        tokens: Token ids of each letter, at least one a letter and none of two letters.

    Raises:
        BadInputError: shapes that do not fit, a value that is not finite, a letter without a token,
            or a token of two letters.
    """
    rows = np.asarray(logits).astype(np.float64)
    flat = [token for ids in tokens for token in ids]
    if rows.ndim != 2 or not tokens or not all(len(ids) for ids in tokens):
        raise BadInputError(
            "letters are read from rows of logits, with at least one token a letter",
            got=f"logits {list(rows.shape)}, tokens a letter {[len(ids) for ids in tokens]}",
            expected="[n, d_vocab]",
        )
    if len(set(flat)) < len(flat) or not all(0 <= t < rows.shape[1] for t in flat):
        raise BadInputError(
            "each token belongs to one letter and to the vocabulary",
            got=flat,
            expected=f"different ids of 0 to {rows.shape[1] - 1}",
        )
    if not np.isfinite(rows[:, flat]).all() or np.isnan(rows).any() or np.isposinf(rows).any():
        raise BadInputError("the logits of the letters have values that are not finite")
    chosen = np.stack([_logsumexp(rows[:, list(ids)]) for ids in tokens], axis=1)
    total = _logsumexp(chosen)
    log_probs = chosen - total[:, None]
    probs = np.exp(log_probs)
    return LetterReadout(
        logits=chosen,
        probs=probs,
        entropy=-(probs * np.where(probs > 0, log_probs, 0.0)).sum(axis=1),
        mass=np.exp(total - _logsumexp(rows)),
    )


def expected_value(probs: npt.ArrayLike, values: Sequence[float]) -> Float64:
    """``sum p * value`` of each row: a stated confidence from the midpoints of its bins.

    Args:
        probs: ``[n, letters]``.
        values: One a letter.

    Raises:
        BadInputError: another number of values than of letters.
    """
    rows = np.asarray(probs, np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(values):
        raise BadInputError(
            "an expected value needs one value a letter",
            got=f"{len(values)} values, probabilities {list(rows.shape)}",
        )
    return rows @ np.asarray(values, np.float64)


def _logsumexp(rows: Float64) -> Float64:
    top = rows.max(axis=1)
    return top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
