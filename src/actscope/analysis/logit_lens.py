"""The logit lens: what each layer would predict if it were the last.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); the divergence to the final layer
follows Belrose et al., "Eliciting latent predictions with the tuned lens" (2023), figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError

__all__ = ["LogitLens", "lens_of_logits", "log_softmax", "logit_lens"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Unembed = Callable[[Array], npt.ArrayLike]

_CHUNK_VALUES = 1 << 24
"""Logits held at a time, per layer: 128 MiB in float64, whatever the vocabulary and the length."""


@dataclass(frozen=True)
class LogitLens:
    """Predictions at every token but the last, ``pos = L - 1``: row t predicts token t + 1.

    A row of logits with NaN or +inf gives NaN, and rank 0.

    Attributes:
        layers: Layer indices, in the order given; the last one is the reference.
        actual_ids: ``[pos]`` the tokens that did come next.
        top_ids: ``[layer, pos, k]`` most probable tokens, best first; ties by token id.
        top_probs: ``[layer, pos, k]`` their probabilities.
        actual_prob: ``[layer, pos]`` probability of the actual next token.
        actual_rank: ``[layer, pos]`` its rank, 1-based: 1 + tokens with a larger logit.
        entropy: ``[layer, pos]`` of the prediction, in nats.
        kl_to_final: ``[layer, pos]`` KL(final || layer) in nats: what is lost by stopping here.
    """

    layers: tuple[int, ...]
    actual_ids: Int64
    top_ids: Int64
    top_probs: Float64
    actual_prob: Float64
    actual_rank: Int64
    entropy: Float64
    kl_to_final: Float64


def logit_lens(
    resid: Sequence[Array],
    token_ids: npt.ArrayLike,
    unembed: Unembed,
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 5,
) -> LogitLens:
    """Read a prediction from the residual stream after each layer.

    Args:
        resid: Per layer ``[L, d_model]``, the residual stream at the tokens of one example.
        token_ids: ``[L]`` of the same tokens.
        unembed: ``[n, d_model] -> [n, d_vocab]`` logits: final norm, unembedding, and the model's
            own scale or soft-cap.
        layers: Their indices; 0, 1, ... by default.
        top_k: How many tokens to keep; fewer where the vocabulary is smaller.

    Raises:
        BadInputError: no layer, fewer than two tokens, or a layer with another number of rows.
    """
    ids = np.asarray(token_ids, dtype=np.int64).ravel()
    names = tuple(range(len(resid)) if layers is None else layers)
    _check(resid, ids, names, top_k)
    actual = ids[1:]
    parts: list[list[_Rows]] = []
    at = 0
    chunk = 1  # the vocabulary's size shows in the first answer
    while at < len(actual):
        rows = slice(at, min(at + chunk, len(actual)))
        final = log_softmax(unembed(resid[-1][rows]))
        _check_vocabulary(actual[rows], final.shape[1])
        part: list[_Rows] = []
        for layer in resid[:-1]:
            logp = log_softmax(unembed(layer[rows]))
            part.append(_rows_of(logp, final, actual[rows], top_k))
        parts.append([*part, _rows_of(final, final, actual[rows], top_k)])
        at, chunk = rows.stop, max(1, _CHUNK_VALUES // final.shape[1])
    return _joined(names, actual, parts)


def lens_of_logits(
    logits: Sequence[Array],
    token_ids: npt.ArrayLike,
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 5,
) -> LogitLens:
    """The same from ready logits, per layer ``[L, d_vocab]``."""
    return logit_lens(logits, token_ids, lambda rows: rows, layers=layers, top_k=top_k)


def log_softmax(logits: npt.ArrayLike) -> Float64:
    """Natural logarithms of probabilities over the last axis, float64, without overflow.

    -inf is a token that cannot be. A row with NaN or +inf, or of -inf alone, is NaN.
    """
    values = np.asarray(logits).astype(np.float64)
    largest = values.max(axis=-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, np.nan)
    shifted = values - largest
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class _Rows:
    """One layer's share of a chunk of rows."""

    top_ids: Int64
    top_probs: Float64
    prob: Float64
    rank: Int64
    entropy: Float64
    kl: Float64


def _rows_of(logp: Float64, final: Float64, actual: Int64, top_k: int) -> _Rows:
    p = np.exp(logp)
    mine = np.take_along_axis(logp, actual[:, None], axis=1)
    rank = 1 + (logp > mine).sum(axis=1)
    rank[np.isnan(mine[:, 0])] = 0
    top = _top(logp, min(top_k, logp.shape[1]))
    return _Rows(
        top_ids=top,
        top_probs=np.take_along_axis(p, top, axis=1),
        prob=np.exp(mine[:, 0]),
        rank=rank.astype(np.int64),
        entropy=0.0 - _weighted(p, logp),
        # Rounding can leave -1e-17 where two distributions are one.
        kl=np.maximum(_weighted(np.exp(final), final - np.where(final == -np.inf, 0.0, logp)), 0.0),
    )


def _top(logp: Float64, k: int) -> Int64:
    """Ids of the k largest of each row, best first, ties by id; 0, 1, ... in a row of NaN.

    Only what reaches the k-th largest value is sorted: a full sort of a large vocabulary takes ten
    times as long as everything else here.
    """
    kth = np.partition(logp, logp.shape[1] - k, axis=1)[:, -k]
    top = np.tile(np.arange(k, dtype=np.int64), (len(logp), 1))
    for row in np.flatnonzero(~np.isnan(logp).any(axis=1)):
        candidates = np.flatnonzero(logp[row] >= kth[row])
        order = np.argsort(-logp[row, candidates], kind="stable")
        top[row] = candidates[order[:k]]
    return top


def _weighted(p: Float64, values: Float64) -> Float64:
    """Sum of p * values over the vocabulary, where 0 times anything is 0."""
    safe = np.where(p > 0, values, 0.0)
    total = (p * safe).sum(axis=1)
    return np.where(np.isnan(p).any(axis=1), np.nan, total)


def _joined(names: tuple[int, ...], actual: Int64, parts: list[list[_Rows]]) -> LogitLens:
    def field(name: str) -> Array:
        return np.stack(
            [np.concatenate([getattr(p[i], name) for p in parts]) for i in range(len(names))]
        )

    return LogitLens(
        layers=names,
        actual_ids=actual,
        top_ids=field("top_ids"),
        top_probs=field("top_probs"),
        actual_prob=field("prob"),
        actual_rank=field("rank"),
        entropy=field("entropy"),
        kl_to_final=field("kl"),
    )


def _check(resid: Sequence[Array], ids: Int64, names: tuple[int, ...], top_k: int) -> None:
    if not resid:
        raise BadInputError("a logit lens needs at least one layer")
    if len(names) != len(resid):
        raise BadInputError("one name a layer", got=len(names), expected=len(resid))
    if len(ids) < 2:
        raise BadInputError(
            "a logit lens needs a token and the one after it", got=f"{len(ids)} tokens"
        )
    if top_k < 1:
        raise BadInputError("top_k must be at least 1", got=top_k)
    for name, rows in zip(names, resid, strict=True):
        if len(rows) != len(ids):
            raise BadInputError(
                f"layer {name} has {len(rows)} rows", expected=f"{len(ids)}: one a token"
            )


def _check_vocabulary(actual: Int64, size: int) -> None:
    wrong = actual[(actual < 0) | (actual >= size)]
    if wrong.size:
        raise BadInputError(
            f"token id {int(wrong[0])} has no logit", expected=f"0 to {size - 1}: d_vocab is {size}"
        )
