"""Probes and agreement of clusterings, against loops and the definitions."""

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from partlib.evaluation import agreement, knn_accuracy, linear_probe


def some_codes(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def classes_apart(n, c, d, apart, seed=0):
    """Codes around the same class centres whatever the seed, standard normal around them, and their labels."""
    centres, draw = np.random.default_rng(c).normal(size=(c, d)), np.random.default_rng(seed)
    labels = draw.permutation(np.arange(n) % c)
    return torch.from_numpy(centres[labels] * apart + draw.normal(size=(n, d))).float(), labels


def unit_rows(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt((x**2).sum(1, keepdims=True))


# ---- nearest neighbours ----


def knn_by_hand(train, train_labels, test, test_labels, k):
    right = 0
    for code, label in zip(unit_rows(test), test_labels):
        nearest = sorted(((float(code @ other), own) for other, own in zip(unit_rows(train), train_labels)), reverse=True)[:k]
        classes = {own for _, own in nearest}
        voted = max(classes, key=lambda c: (sum(own == c for _, own in nearest), sum(cos for cos, own in nearest if own == c)))
        right += voted == label
    return 100 * right / len(test)


@given(n=st.integers(1, 30), m=st.integers(1, 15), k=st.integers(1, 8), c=st.integers(1, 4), seed=st.integers(0, 9999))
@settings(max_examples=60)
def test_knn_is_a_vote_and_ties_go_to_the_nearer(n, m, k, c, seed):
    draw, k = np.random.default_rng(seed), min(k, n)
    train, test, train_labels, test_labels = some_codes(n, 4, seed), some_codes(m, 4, seed + 1), draw.integers(0, c, n), draw.integers(0, c, m)
    expected = knn_by_hand(train, train_labels, test, test_labels, k)
    assert knn_accuracy(train, train_labels, test, test_labels, k) == pytest.approx(expected)


def test_knn_ties_by_hand():
    train, query = torch.tensor([[1.0, 0], [1, 0.5], [0.9, 0.1], [0, 1]]), torch.tensor([[1.0, 0]])
    # Two votes each: class 1 holds the nearest, class 0 those that are nearer in sum.
    tied = torch.tensor([[1.0, 0], [1, 0.3], [1, 0.35], [-1, 0.01]])
    assert knn_accuracy(tied, [1, 0, 0, 1], query, [0], k=4) == 100
    # Two votes of far ones outweigh one of the code itself.
    assert knn_accuracy(train, [1, 0, 2, 0], query, [0], k=4) == 100
    assert knn_accuracy(train, [1, 0, 2, 0], query, [1], k=1) == 100


def test_a_class_of_the_test_set_alone_is_never_right():
    codes = some_codes(6, 3)
    assert knn_accuracy(codes, [0, 0, 0, 1, 1, 1], codes, [0, 0, 0, 9, 9, 9], k=1) == 50


def test_knn_forgets_names_of_classes_order_and_length():
    train, labels = classes_apart(60, 3, 5, 1.0)
    test, truth = classes_apart(40, 3, 5, 1.0, seed=1)
    expected, order = knn_accuracy(train, labels, test, truth), np.random.default_rng(0).permutation(60)
    assert knn_accuracy(train[order], labels[order], test, truth) == expected
    assert knn_accuracy(train * 9, np.array([5, 0, 2])[labels], test / 7, np.array([5, 0, 2])[truth]) == expected


# ---- the linear probe ----


def predicted(train, labels, test, classes):
    """The share of test codes that the probe puts into each class: its accuracy if all were of that class."""
    return [linear_probe(train, labels, test, np.full(len(test), c)) for c in range(classes)]


@pytest.mark.parametrize("c", [2, 5])
def test_separable_codes_are_all_told_apart(c):
    train, labels = classes_apart(80, c, 12, 8.0)
    assert linear_probe(train[:60], labels[:60], train[60:], labels[60:]) == 100


def test_random_labels_are_near_chance():
    draw = np.random.default_rng(0)
    found = linear_probe(some_codes(200, 30), draw.integers(0, 4, 200), some_codes(400, 30, seed=1), draw.integers(0, 4, 400))
    assert 15 < found < 35


def test_the_probe_is_fitted_on_training_codes_alone():
    """What is said of one test code does not depend on the other test codes, nor on any test label."""
    train, labels = classes_apart(60, 3, 10, 0.7)
    test, truth = classes_apart(40, 3, 10, 0.7, seed=1)
    test[30:] *= -5  # quite another distribution: whoever standardised on it would notice
    whole = linear_probe(train, labels, test, truth)
    assert 34 < whole < 100
    first, last = linear_probe(train, labels, test[:30], truth[:30]), linear_probe(train, labels, test[30:], truth[30:])
    assert whole == pytest.approx((30 * first + 10 * last) / 40)
    order = np.random.default_rng(1).permutation(40)
    assert linear_probe(train, labels, test[order], truth[order]) == pytest.approx(whole)
    one_by_one = [linear_probe(train, labels, test[i : i + 1], truth[i : i + 1]) for i in range(8)]
    assert linear_probe(train, labels, test[:8], truth[:8]) == pytest.approx(np.mean(one_by_one))
    assert sum(predicted(train, labels, test, 3)) == pytest.approx(100)


@pytest.mark.parametrize("seed", [0, 1])  # whose folds choose differently
def test_the_penalty_is_the_one_that_cross_validation_likes_best(seed):
    train, labels = classes_apart(60, 3, 40, 0.25)
    test, truth = classes_apart(200, 3, 40, 0.25)  # another number of codes: other ones
    a, b = unit_rows(train), unit_rows(test)

    def accuracy(strength, fit_on, x, y):
        """Standardise and fit on some training codes, and nothing else."""
        mean, spread = a[fit_on].mean(0), a[fit_on].std(0)
        model = LogisticRegression(C=strength, max_iter=500).fit((a[fit_on] - mean) / spread, labels[fit_on])
        return (model.predict((x - mean) / spread) == y).mean()

    folds = list(StratifiedKFold(3, shuffle=True, random_state=seed).split(a, labels))
    strengths = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    scores = [np.mean([accuracy(s, inside, a[outside], labels[outside]) for inside, outside in folds]) for s in strengths]
    expected = 100 * accuracy(strengths[int(np.argmax(scores))], np.arange(60), b, truth)
    assert linear_probe(train, labels, test, truth, seed=seed) == pytest.approx(expected, abs=0.51)  # one test code of 200


def test_a_penalty_matters():
    """Many dimensions, few codes: of 100 dimensions two tell the classes apart."""
    draw = np.random.default_rng(0)
    labels = np.arange(400) % 2
    codes = torch.from_numpy(draw.normal(size=(400, 100))).float()
    codes[:, :2] += torch.from_numpy(3.0 * labels[:, None] - 1.5).float()
    assert linear_probe(codes[:60], labels[:60], codes[60:], labels[60:]) > 80


def test_the_probe_forgets_names_of_classes_and_length():
    train, labels = classes_apart(60, 3, 8, 1.0)
    test, truth = classes_apart(60, 3, 8, 1.0, seed=1)
    names = np.array([4, 9, 6])
    assert linear_probe(train * 50, names[labels], test / 3, names[truth]) == pytest.approx(linear_probe(train, labels, test, truth))


def test_few_codes_of_a_class_mean_fewer_folds():
    labels = np.array([0] * 8 + [1] * 2)  # two of class 1: two folds
    codes = some_codes(10, 3) + 20 * torch.eye(3)[labels]
    assert linear_probe(codes, labels, codes, labels) == 100


def test_the_probe_takes_real_sizes_without_a_warning():
    """As many codes, dimensions and classes as the groceries have, non-negative as pooled maps are."""
    draw = np.random.default_rng(0)
    labels = np.arange(675) % 14
    codes = torch.from_numpy(np.maximum(draw.normal(size=(14, 1280))[labels] * 0.3 + draw.normal(size=(675, 1280)) - 0.5, 0)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert linear_probe(codes[:500], labels[:500], codes[500:], labels[500:]) > 60


def test_codes_may_carry_gradients():
    train, labels = classes_apart(40, 2, 4, 9.0)
    assert linear_probe(train.requires_grad_(), labels, train, labels) == 100
    assert knn_accuracy(train, labels, train, labels) == 100


# ---- agreement ----


def entropy(counts):
    return -sum(n / sum(counts) * math.log(n / sum(counts)) for n in counts if n)


def agreement_by_hand(clusters, labels):
    n = len(labels)
    together = [sum((c, l) == pair for c, l in zip(clusters, labels)) for pair in set(zip(clusters, labels))]
    h_clusters, h_labels = (entropy([list(v).count(i) for i in set(v)]) for v in (clusters, labels))
    shared = h_clusters + h_labels - entropy(together)
    mean = (h_clusters + h_labels) / 2

    def pairs_together(v):
        return {(i, j) for i, j in combinations(range(n), 2) if v[i] == v[j]}

    a, b, every = pairs_together(clusters), pairs_together(labels), n * (n - 1) / 2
    by_chance = len(a) * len(b) / every if every else 0
    most = (len(a) + len(b)) / 2
    purity = sum(max([l for c, l in zip(clusters, labels) if c == g].count(x) for x in set(labels)) for g in set(clusters)) / n
    return {
        "NMI": 100 * shared / mean if mean else 100,  # both of one cluster: they are the same
        "ARI": 100 * (len(a & b) - by_chance) / (most - by_chance) if most != by_chance else 100,
        "purity": 100 * purity,
    }


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=25))
def test_agreement_is_counted(pairs):
    clusters, labels = map(list, zip(*pairs))
    assert agreement(clusters, labels) == pytest.approx(agreement_by_hand(clusters, labels), abs=1e-6)


def test_agreement_by_hand():
    assert agreement([0, 0, 1, 1], [5, 5, 2, 2]) == pytest.approx({"NMI": 100, "ARI": 100, "purity": 100})
    assert agreement([0, 0, 0, 0], [0, 0, 1, 1]) == pytest.approx({"NMI": 0, "ARI": 0, "purity": 50})
    # Every point a cluster: pure, and of entropy log 4 against log 2, which share log 2.
    assert agreement([0, 1, 2, 3], [0, 0, 1, 1]) == pytest.approx({"NMI": 100 / 1.5, "ARI": 0, "purity": 100})
    # Independent halves agree less than by chance: of the 6 pairs 2 are together in each, none in both, by chance 2/3.
    assert agreement([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx({"NMI": 0, "ARI": 100 * (0 - 2 / 3) / (2 - 2 / 3), "purity": 50})
    assert agreement([0], [0]) == pytest.approx({"NMI": 100, "ARI": 100, "purity": 100})


def test_nmi_is_over_the_arithmetic_mean():
    clusters, labels = [0, 1, 2, 3], [0, 0, 1, 1]  # shared log 2; the geometric mean would give 100 / √2
    assert agreement(clusters, labels)["NMI"] == pytest.approx(100 * math.log(2) / ((math.log(4) + math.log(2)) / 2))


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_numbers_of_clusters_and_order_mean_nothing(pairs, seed):
    draw = np.random.default_rng(seed)
    clusters, labels = map(np.array, zip(*pairs))
    order = draw.permutation(len(pairs))
    assert agreement(draw.permutation(7)[clusters][order], draw.permutation(7)[labels][order]) == pytest.approx(agreement(clusters, labels), abs=1e-6)
