"""Which experts a mixture of experts sends tokens to, from its router logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["chosen_experts", "expert_counts", "load_balance"]

Int64 = npt.NDArray[np.int64]


def chosen_experts(logits: npt.ArrayLike, top_k: int) -> Int64:
    """The experts of each token: those with the largest router logits, largest first.

    Only right where the model chooses so: ``model.experts(layer).largest`` says.

    Args:
        logits: ``[rows, n_experts]``.
        top_k: Experts of a token.

    Returns:
        ``[rows, top_k]``; of equal logits the first expert.

    Raises:
        BadInputError: logits of another shape or not finite, or more experts than there are.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise BadInputError(
            "router logits are finite rows [rows, n_experts]", got=f"shape {list(values.shape)}"
        )
    if not 1 <= top_k <= values.shape[1]:
        raise BadInputError(
            "no such number of experts", got=top_k, expected=f"1 to {values.shape[1]}"
        )
    return np.argsort(-values, axis=1, kind="stable")[:, :top_k].astype(np.int64)


def expert_counts(logits: npt.ArrayLike, top_k: int) -> Int64:
    """How many tokens each expert gets, ``[n_experts]``; the counts sum to ``rows * top_k``.

    Args:
        logits: ``[rows, n_experts]``.
        top_k: Experts of a token.

    Raises:
        BadInputError: as for ``chosen_experts``.
    """
    chosen = chosen_experts(logits, top_k)
    return np.bincount(chosen.ravel(), minlength=np.shape(logits)[1]).astype(np.int64)


def load_balance(counts: npt.ArrayLike) -> float:
    """Entropy of the shares over its maximum: 1 where all get as many, 0 where one gets all.

    Args:
        counts: ``[n_experts]``, as of ``expert_counts``.

    Raises:
        BadInputError: no counts, negative ones, or fewer than two experts.
    """
    values: Any = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or (values < 0).any() or values.sum() <= 0:
        raise BadInputError("counts of at least two experts, not all zero", got=repr(counts)[:60])
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(values)))
