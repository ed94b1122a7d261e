"""Probes find what is there, find nothing where nothing is, and agree with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from actscope.analysis import probes
from actscope.analysis.probes import auroc, probe_curve
from actscope.core.errors import BadInputError


@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.booleans()), min_size=2))
def test_auroc_counts_pairs_and_ties_by_half(rows):
    scores, labels = map(list, zip(*rows, strict=True))
    positive = [s for s, yes in rows if yes]
    negative = [s for s, yes in rows if not yes]
    if not positive or not negative:
        with pytest.raises(BadInputError, match="both classes"):
            auroc(scores, labels)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert auroc(scores, labels) == pytest.approx(wins / (len(positive) * len(negative)))
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_auroc_errors():
    with pytest.raises(BadInputError, match="one label a score"):
        auroc([1, 2], [True])
    with pytest.raises(BadInputError, match="NaN"):
        auroc([1, np.nan], [True, False])
    assert auroc([np.inf, -np.inf], [True, False]) == 1.0


def twins(n_pairs=40, d=30, signal=0.0, seed=0):
    """Pairs that share a topic; the signal lies along one axis."""
    rng = np.random.default_rng(seed)
    labels = np.tile([True, False], n_pairs)
    topic = np.repeat(rng.normal(size=(n_pairs, d)) * 2, 2, axis=0)
    rows = topic + rng.normal(size=(2 * n_pairs, d))
    rows[:, 0] += signal * labels
    return rows, labels, [f"pair {i // 2}" for i in range(2 * n_pairs)]


def test_held_out_scores_are_those_of_scikit_learn():
    rows, labels, groups = twins(signal=2)
    group = np.unique(groups, return_inverse=True)[1]
    folds = probes._deal(labels, group, 5, np.random.default_rng(0))
    tried = np.vstack([labels, probes._shuffles(labels, group, 3, np.random.default_rng(1))])
    found = probes._held_out_scores(rows, tried, folds)
    for k, truth in enumerate(tried):
        for held_out in folds:
            training = np.setdiff1d(np.arange(len(rows)), held_out)
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
            )
            model.fit(rows[training], truth[training])
            expected = model.decision_function(rows[held_out])
            np.testing.assert_allclose(found[k, held_out], expected, atol=1e-4)


def test_pooling_compares_rows_of_one_fold_only():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(1, 30)).round(1), np.arange(30)[None] % 3 == 0
    folds = [np.arange(0, 10), np.arange(10, 17), np.arange(17, 30)]
    alone, once = np.arange(30), np.ones((1, 30))
    found = probes._pooled_auroc(scores, labels, folds, alone, once)
    parts, pairs = [], []
    for rows in folds:
        parts.append(roc_auc_score(labels[0, rows], scores[0, rows]))
        pairs.append(labels[0, rows].sum() * (~labels[0, rows]).sum())
    assert found[0] == pytest.approx(np.average(parts, weights=pairs))
    moved = scores.copy()
    moved[0, folds[1]] += 100  # another fit may have another scale
    again = probes._pooled_auroc(moved, labels, folds, alone, once)
    assert again[0] == pytest.approx(found[0])


def test_a_group_that_is_drawn_twice_does_not_meet_its_copy():
    rng = np.random.default_rng(4)
    scores, labels = rng.normal(size=12), rng.random(12) < 0.5
    group = np.arange(12) // 3
    drawn = np.array([2, 0, 3, 1])
    found = probes._pooled_auroc(
        scores[None], labels[None], [np.arange(12)], group, drawn[group][None].astype(float)
    )
    copies = [(g, copy) for g in range(4) for copy in range(drawn[g])]
    wins = []
    for g, copy in copies:
        for h, other in copies:
            if g == h and copy != other:
                continue
            above = scores[(group == g) & labels]
            below = scores[(group == h) & ~labels]
            wins += [a > b for a in above for b in below]
    assert found[0] == pytest.approx(np.mean(wins))


def test_the_interval_is_where_other_samples_fall():
    rows, labels, groups = twins(signal=4)
    score = probe_curve({0: rows}, labels, groups, n_shuffles=1).best
    samples = [
        probe_curve({0: twins(signal=4, seed=s)[0]}, labels, groups, n_shuffles=1).best.auroc
        for s in range(1, 40)
    ]
    assert abs((score.low + score.high) / 2 - score.auroc) < 0.02
    assert 0.5 < (score.high - score.low) / (4 * np.std(samples)) < 2


def test_a_signal_is_found_where_it_is():
    signal, labels, groups = twins(signal=8)
    noise = twins(signal=0, seed=5)[0]
    found = probe_curve({7: signal, 2: noise}, labels, groups, n_shuffles=60)
    assert found.layers == (2, 7) and found.best_layer == 7
    nothing, best = found.scores
    assert best.auroc > 0.9 and found.best is best
    assert best.low <= best.auroc <= best.high <= 1
    assert best.low > best.control_p95 > best.control_mean
    assert 0.4 < best.control_mean < 0.6
    assert found.best_is_above_control
    assert nothing.low < 0.5 < nothing.high
    assert (best.n, found.n_groups, found.n_folds, found.n_shuffles) == (80, 40, 5, 60)
    assert found.to_json()["scores"][1]["auroc"] == best.auroc
    again = probe_curve({2: noise, 7: signal}, labels, groups, n_shuffles=60)
    assert again == found, "the same numbers for the same seed"
    assert probe_curve({7: signal}, labels, groups, n_shuffles=60, seed=1) != found


def test_noise_is_seldom_above_its_control():
    above = []
    for seed in range(40):
        rows, labels, groups = twins(n_pairs=15, d=10, seed=seed)
        other = twins(n_pairs=15, d=10, seed=1000 + seed)[0]
        found = probe_curve({0: rows, 1: other}, labels, groups, n_shuffles=60, seed=seed)
        above.append(found.best_is_above_control)
    assert sum(above) <= 6, "5 % of 40 are 2; more than 6 have a probability below 0.4 %"


def test_a_topic_that_twins_share_does_not_leak():
    """Where groups were split, each row's label would give away its twin's."""
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(60, 80))
    labels = rng.random(60) < 0.5
    rows = np.repeat(topic, 2, axis=0) + 0.01 * rng.normal(size=(120, 80))
    groups = [str(i // 2) for i in range(120)]
    found = probe_curve({0: rows}, np.repeat(labels, 2), groups, n_shuffles=40)
    assert abs(found.best.auroc - 0.5) < 0.2
    split = probe_curve({0: rows}, np.repeat(labels, 2), [str(i) for i in range(120)], n_shuffles=1)
    assert split.best.auroc > 0.8


def test_folds_keep_groups_together_and_hold_every_row_once():
    rng = np.random.default_rng(0)
    labels = rng.random(50) < 0.3
    group = rng.integers(0, 13, 50)
    group = np.unique(group, return_inverse=True)[1]
    folds = probes._deal(labels, group, 4, rng)
    assert sorted(np.concatenate(folds).tolist()) == list(range(50))
    for fold in folds:
        others = np.setdiff1d(np.arange(50), fold)
        assert not set(group[fold]) & set(group[others])


def test_shuffles_swap_twins_and_nothing_else():
    labels = np.tile([True, False], 20)
    group = np.repeat(np.arange(20), 2)
    shuffled = probes._shuffles(labels, group, 400, np.random.default_rng(0))
    assert shuffled.shape == (400, 40) and shuffled.dtype == bool
    assert (shuffled.reshape(400, 20, 2).sum(axis=2) == 1).all()
    swapped = (shuffled[:, ::2] != labels[::2]).mean(axis=0)
    assert np.abs(swapped - 0.5).max() < 0.12


def test_shuffles_exchange_the_labels_of_whole_groups_of_one_size():
    labels = np.repeat([True, True, False, False, False, True], [2, 2, 2, 2, 3, 3])
    group = np.repeat(np.arange(6), [2, 2, 2, 2, 3, 3])
    shuffled = probes._shuffles(labels, group, 300, np.random.default_rng(0))
    for g in range(6):
        rows = shuffled[:, group == g]
        assert (rows.all(axis=1) | ~rows.any(axis=1)).all(), "a group has one label, as before"
        assert rows[:, 0].any() and not rows[:, 0].all()
    assert (shuffled[:, :8].sum(axis=1) == 4).all()
    assert (shuffled[:, 8:].sum(axis=1) == 3).all()


def test_shuffles_that_leave_one_class_to_train_on_are_chance():
    rows = np.random.default_rng(0).normal(size=(4, 2))
    found = probe_curve({0: rows}, [True, False, True, False], list("aabb"), n_folds=2)
    assert np.isfinite([found.best.auroc, found.best.low, found.best_control_p95]).all()
    four = np.random.default_rng(0).normal(size=(6, 2))
    labels = [True, True, False, False, False, False]
    found = probe_curve({0: four}, labels, list("abcdef"), n_folds=2, n_shuffles=50)
    assert 0 <= found.best.control_mean <= 1


def test_constant_and_half_precision_features():
    rows, labels, groups = twins(n_pairs=10, d=4, signal=6)
    rows[:, 2] = 1e6 + 0.1
    found = probe_curve({0: rows.astype(np.float32)}, labels, groups, n_shuffles=5)
    assert found.best.auroc > 0.9
    flat = probe_curve({0: np.ones((20, 3))}, labels, groups, n_shuffles=5)
    assert flat.best.auroc == 0.5 and not flat.best_is_above_control


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features_by_layer": {}}, "at least one layer"),
        ({"features_by_layer": {3: np.ones((3, 2))}}, "layer 3 has features of another shape"),
        ({"features_by_layer": {3: np.full((8, 2), np.inf)}}, "layer 3 has .* not finite"),
        ({"labels": [True] * 8}, "both classes are needed"),
        ({"labels": [True] * 7}, "one label and one group a row"),
        ({"n_folds": 5}, "4 groups, 5 folds"),
        ({"n_folds": 1}, "at least 2 folds"),
        ({"n_shuffles": 0}, "1 shuffle"),
        ({"labels": [True] + [False] * 7}, "each class in at least two groups"),
        (
            {"labels": [True] * 4 + [False] * 4, "n_folds": 4},
            "no fold holds rows of both classes",
        ),
        (
            {
                "labels": [True, False, False, False, True, True, True, True],
                "groups": ["a", *"bbb", *"cccc"],
                "n_folds": 2,
            },
            "cannot be shuffled|at least two groups",
        ),
    ],
)
def test_errors(change, says):
    given = {
        "features_by_layer": {0: np.random.default_rng(0).normal(size=(8, 2))},
        "labels": [True, False] * 4,
        "groups": list("aabbccdd"),
        "n_folds": 2,
    }
    with pytest.raises(BadInputError, match=says):
        probe_curve(**(given | change))


def test_labels_that_no_shuffle_changes_are_refused():
    labels = np.array([True] + [False] * 2 + [True] * 3 + [False] * 4)
    groups = ["a", *"bb", *"ccc", *"dddd"]
    rows = np.random.default_rng(0).normal(size=(10, 2))
    with pytest.raises(BadInputError, match="cannot be shuffled"):
        probe_curve({0: rows}, labels, groups, n_folds=2)


@pytest.mark.parametrize("labels", [np.arange(60) % 3, ["a", "b"] * 30, np.linspace(0, 1, 60)])
def test_other_labels_than_two_classes_are_refused(labels):
    rows, groups = np.random.default_rng(0).normal(size=(60, 4)), [str(i) for i in range(60)]
    with pytest.raises(BadInputError, match="two classes"):
        probe_curve({0: rows}, labels, groups)
    with pytest.raises(BadInputError, match="two classes"):
        auroc(rows[:, 0], labels)


def test_zeros_and_ones_are_labels_and_features_come_by_layer():
    rows, groups = np.random.default_rng(0).normal(size=(60, 4)), [str(i) for i in range(60)]
    ones = np.arange(60) % 2
    assert probe_curve({0: rows}, ones, groups) == probe_curve({0: rows}, ones == 1, groups)
    for features in ([rows], rows):
        with pytest.raises(BadInputError, match="features by layer"):
            probe_curve(features, ones, groups)
