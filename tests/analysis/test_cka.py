"""CKA against the sum over quadruples that defines the unbiased HSIC; RSA against scipy."""

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from actscope.analysis.cka import debiased_cka, rsa
from actscope.core.errors import BadInputError

RNG = np.random.default_rng(0)


def hsic(k, m):
    """Song et al.: the mean over ordered quadruples of k_ij (m_ij + m_qr - 2 m_iq)."""
    places = list(permutations(range(len(k)), 4))
    return sum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in places) / len(places)


def test_cka_is_the_ratio_of_unbiased_hsics():
    a, b = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 5))
    b[:, 0] += a[:, 0]
    k, m = a @ a.T, b @ b.T
    wanted = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert debiased_cka(a, b) == pytest.approx(wanted, rel=1e-9)


def test_cka_ignores_rotation_and_scale_and_is_near_zero_for_noise():
    a = RNG.normal(size=(120, 400))
    turn, _ = np.linalg.qr(RNG.normal(size=(400, 400)))
    assert debiased_cka(a, 3 * a @ turn + 5) == pytest.approx(1, abs=1e-9)
    assert abs(debiased_cka(a, RNG.normal(size=(120, 400)))) < 0.05
    k, m = (x - x.mean(axis=0) for x in (a, RNG.normal(size=(120, 400))))
    plain = np.linalg.norm(k.T @ m) ** 2 / np.linalg.norm(k.T @ k) / np.linalg.norm(m.T @ m)
    assert plain > 0.5  # why it is debiased
    assert np.isnan(debiased_cka(np.ones((5, 2)), a[:5]))


def test_rsa_is_spearmans_correlation_of_correlation_distances():
    a, b = RNG.normal(size=(20, 6)), RNG.normal(size=(20, 9))
    b[:, :6] += a
    wanted = spearmanr(pdist(a, "correlation"), pdist(b, "correlation")).statistic
    assert rsa(a, b) == pytest.approx(wanted, abs=1e-9)
    ties = np.repeat(a[:5], 2, axis=0)
    wanted = spearmanr(pdist(ties, "correlation").round(12), pdist(b[:10], "correlation")).statistic
    assert rsa(ties, b[:10]) == pytest.approx(wanted, abs=1e-2)


def test_rows_that_do_not_fit_are_refused():
    a = RNG.normal(size=(6, 3))
    for bad in (a[:5], a[0], np.full((6, 3), np.nan)):
        with pytest.raises(BadInputError):
            debiased_cka(a, bad)
    with pytest.raises(BadInputError, match="does not vary"):
        rsa(a, np.ones((6, 3)))
