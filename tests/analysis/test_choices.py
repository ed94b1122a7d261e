"""Letters read from logits, against torch's own softmax over the vocabulary."""

import numpy as np
import pytest
import torch

from actscope.analysis.choices import expected_value, read_letters
from actscope.core.errors import BadInputError

TOKENS = [[3, 7], [4], [11, 0], [5]]


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(9, 20)) * 4


def test_probabilities_are_those_of_the_vocabulary_renormalised(logits):
    found = read_letters(logits, TOKENS)
    whole = torch.tensor(logits).softmax(-1).numpy()
    summed = np.stack([whole[:, ids].sum(axis=1) for ids in TOKENS], axis=1)
    np.testing.assert_allclose(found.mass, summed.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.probs, summed / summed.sum(axis=1, keepdims=True), rtol=1e-10)
    entropy = torch.distributions.Categorical(torch.tensor(found.probs)).entropy().numpy()
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-10)
    by_hand = [[torch.tensor(row[ids]).logsumexp(0) for ids in TOKENS] for row in logits]
    np.testing.assert_allclose(found.logits, by_hand, rtol=1e-12)


def test_the_margin_is_the_right_letter_less_the_best_wrong_one(logits):
    found = read_letters(logits, TOKENS)
    right = np.arange(9) % 4
    for row, place, margin in zip(found.logits, right, found.margin(right), strict=True):
        assert margin == row[place] - max(x for i, x in enumerate(row) if i != place)
    assert (found.margin(found.best) >= 0).all()


def test_huge_logits_do_not_overflow_and_certainty_has_no_entropy():
    logits = np.full((1, 6), -1000.0)
    logits[0, 2] = 1000.0
    found = read_letters(logits, [[2], [3]])
    assert found.probs.tolist() == [[1.0, 0.0]] and found.entropy[0] == 0 and found.mass[0] == 1


def test_expected_confidence_is_the_mean_of_the_midpoints():
    assert expected_value([[0.25, 0.75]], [2.5, 95]).tolist() == [0.25 * 2.5 + 0.75 * 95]
    with pytest.raises(BadInputError, match="one value a letter"):
        expected_value([[0.5, 0.5]], [1.0])


@pytest.mark.parametrize("tokens", [[], [[1], []], [[1], [1]], [[1], [20]], [[-1], [2]]])
def test_letters_without_tokens_of_their_own_are_refused(logits, tokens):
    with pytest.raises(BadInputError):
        read_letters(logits, tokens)


def test_logits_that_are_not_finite_are_refused(logits):
    logits[2, 7] = np.nan
    with pytest.raises(BadInputError, match="not finite"):
        read_letters(logits, TOKENS)
    with pytest.raises(BadInputError, match="rows of logits"):
        read_letters(logits[0], TOKENS)
