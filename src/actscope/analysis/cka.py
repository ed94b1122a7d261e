"""Similarity of two representations of the same examples: debiased CKA and RSA.

CKA: Kornblith et al., "Similarity of neural network representations revisited" (2019), with the
unbiased HSIC of Song et al., "Feature selection via dependence maximization" (2012):
the plain one is near 1 for any two sets of rows that are wider than they are many. RSA:
Kriegeskorte et al., "Representational similarity analysis" (2008).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["debiased_cka", "rsa"]

Float64 = npt.NDArray[np.float64]


def debiased_cka(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Linear CKA with the unbiased HSIC: 1 for the same geometry, about 0 for unrelated ones.

    It does not change under rotations and scalings of either side, and may be slightly below 0.

    Args:
        one: ``[n, d]``, n >= 4.
        other: ``[n, e]``, row i of the same example.

    Returns:
        The similarity; NaN where a side does not vary.

    Raises:
        BadInputError: other shapes, or a value that is not finite.
    """
    a, b = _pair(one, other, least=4)
    k, m = _unbiased_centred(a @ a.T), _unbiased_centred(b @ b.T)
    size = np.sqrt(max((k * k).sum(), 0.0) * max((m * m).sum(), 0.0))
    return float((k * m).sum() / size) if size > 0 else float("nan")


def rsa(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Spearman's correlation of two dissimilarity matrices, 1 - Pearson's r between examples.

    Args:
        one: ``[n, d]``, n >= 3.
        other: ``[n, e]``, row i of the same example.

    Returns:
        The correlation; NaN where a side has one dissimilarity only.

    Raises:
        BadInputError: other shapes, a value that is not finite, or a row that does not vary.
    """
    a, b = _pair(one, other, least=3)
    ranks = [_ranks(_dissimilarities(rows)) for rows in (a, b)]
    centred = [r - r.mean() for r in ranks]
    size = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float(centred[0] @ centred[1] / size) if size > 0 else float("nan")


def _unbiased_centred(gram: Float64) -> Float64:
    """The U-centred Gram matrix (Szekely & Rizzo, 2014); its inner products are n(n-3) HSIC."""
    n = len(gram)
    gram = gram.copy()
    np.fill_diagonal(gram, 0.0)
    means = gram.sum(axis=0) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    gram -= means[:, None] + means[None, :]
    np.fill_diagonal(gram, 0.0)
    return gram


def _dissimilarities(rows: Float64) -> Float64:
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    if not (norms > 0).all():
        raise BadInputError(
            "a row that does not vary has no correlation with others",
            got=f"row {int(np.argmin(norms))}",
        )
    unit = centred / norms[:, None]
    return 1 - (unit @ unit.T)[np.triu_indices(len(rows), 1)]


def _ranks(values: Float64) -> Float64:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def _pair(one: npt.ArrayLike, other: npt.ArrayLike, *, least: int) -> tuple[Float64, Float64]:
    a, b = (np.asarray(x).astype(np.float64) for x in (one, other))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < least:
        raise BadInputError(
            f"two representations of at least {least} examples are compared row by row",
            got=f"{list(a.shape)} and {list(b.shape)}",
            expected="[n, d] and [n, e]",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise BadInputError("a representation has values that are not finite")
    return a, b
