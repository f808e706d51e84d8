"""Probes and agreement of clusterings, against loops and the definitions."""

import math
import os
import warnings
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from partlib.evaluation import agreement, ceiling, knn_accuracy, linear_probe, part_overlap, parts_at


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


# ---- parts against true parts ----


def enlarged(values, x, y):
    """A map `(h, w)` between the centres of its cells, at x, y in [0, 1]; beyond the outer centres it goes on as it is there."""
    (h, w), corners = values.shape, 0.0
    x, y = min(max(x * w - 0.5, 0), w - 1), min(max(y * h - 0.5, 0), h - 1)
    for i, j in product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        share = (1 - abs(y - i)) * (1 - abs(x - j))
        if share > 0:
            corners += share * values[i, j]
    return corners


@given(n=st.integers(1, 3), p=st.integers(2, 5), k=st.integers(1, 5), h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 9999))
@settings(max_examples=60)
def test_the_part_at_a_keypoint_is_the_highest_there(n, p, k, h, w, seed):
    draw = np.random.default_rng(seed)
    maps, sizes = draw.normal(size=(n, p, h, w)).astype(np.float32), draw.integers(20, 400, (n, 2))
    keypoints = np.concatenate([draw.random((n, k, 2)) * sizes[:, None], draw.integers(0, 2, (n, k, 1))], axis=2)
    found, true = parts_at(torch.from_numpy(maps), keypoints, sizes)
    visible = [(i, j) for i in range(n) for j in range(k) if keypoints[i, j, 2]]
    assert true.tolist() == [j for _, j in visible] and len(found) == len(true)
    for part, (i, j) in zip(found, visible):
        there = [enlarged(values, *(keypoints[i, j, :2] / sizes[i])) for values in maps[i]]
        assert there[part] == pytest.approx(max(there), abs=1e-4)


def test_keypoints_by_hand():
    maps = torch.zeros(2, 3, 2, 4)
    maps[:, 0, 0, :2], maps[:, 1, 0, 2:], maps[:, 2, 1] = 1.0, 1.0, 1.0  # upper left, upper right, lower half
    keypoints = np.array([[[10, 10, 1], [90, 10, 1], [50, 45, 1]], [[10, 10, 1], [90, 10, 0], [130, 10, 1]]])
    found, true = parts_at(maps, keypoints, [(100, 50), (200, 50)])
    assert found.tolist() == [0, 1, 2, 0, 1] and true.tolist() == [0, 1, 2, 0, 2]
    found, _ = parts_at(maps, keypoints, [(100, 50), (400, 50)])  # of a wider picture the last is still on the left
    assert found.tolist() == [0, 1, 2, 0, 0]


def test_keypoints_beyond_the_picture_count_at_its_edge_and_hidden_ones_not_at_all():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, :, 0], maps[0, 1, :, 1] = 1.0, 1.0
    found, true = parts_at(maps, [[[-5, 3, 1], [14, 3, 1], [0, 0, 0]]], [(10, 10)])
    assert found.tolist() == [0, 1] and true.tolist() == [0, 1]
    found, true = parts_at(maps, [[[5, 5, 0]]], [(10, 10)])
    assert len(found) == len(true) == 0


@given(n=st.integers(1, 3), p=st.integers(1, 4), k=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 4), seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_overlap_is_counted_pixels(n, p, k, h, w, seed):
    draw, (height, width) = np.random.default_rng(seed), (6, 7)
    maps, masks = draw.normal(size=(n, p, h, w)).astype(np.float32), draw.random((n, k, height, width)) < 0.4
    learnt = np.zeros((n, height, width), dtype=int)
    for i, y, x in np.ndindex(n, height, width):
        learnt[i, y, x] = np.argmax([enlarged(values, (x + 0.5) / width, (y + 0.5) / height) for values in maps[i]])
    found = part_overlap(torch.from_numpy(maps), masks)
    assert found.shape == (p, k)
    for part, true in np.ndindex(p, k):
        pixels = {at for at in np.ndindex(n, height, width) if learnt[at] == part}
        mask = {(i, y, x) for i, y, x in np.ndindex(n, height, width) if masks[i, true, y, x]}
        expected = 100 * len(pixels & mask) / len(pixels | mask) if pixels | mask else 0
        assert found[part, true] == pytest.approx(expected, abs=100 * 1.01 / (n * 42))  # a pixel may lie between two parts


def test_overlap_by_hand():
    maps, masks = torch.zeros(2, 3, 2, 2), np.zeros((2, 3, 2, 2), dtype=bool)
    maps[:, 0, :, 0], maps[:, 1, :, 1], maps[:, 2] = 1.0, 1.0, -1.0  # left, right, nowhere
    masks[:, 0, :, 0], masks[0, 1, 0] = True, True  # the left half of both; the upper row of the first; nothing
    np.testing.assert_allclose(part_overlap(maps, masks), [[100, 20, 0], [0, 20, 0], [0, 0, 0]], rtol=1e-6)


# ---- the ceiling ----


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=30), more=st.integers(0, 4))
def test_with_as_many_parts_as_labels_the_ceiling_is_the_labels(labels, more):
    found = ceiling(labels, max(labels) + 1 + more)
    assert agreement(found, labels) == pytest.approx({"NMI": 100, "ARI": 100, "purity": 100})


def best_merge(sizes, k):
    """The highest NMI of all merges of labels of these sizes: a union of labels shares its whole entropy with them."""
    merges = ([sum(s for s, own in zip(sizes, groups) if own == g) for g in range(k)] for groups in product(range(k), repeat=len(sizes)))
    return max(100 * 2 * (h := entropy(merged)) / (h + entropy(sizes)) for merged in merges)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=25), k=st.integers(1, 4))
@settings(max_examples=60)
def test_a_ceiling_is_a_union_of_labels_into_at_most_k(labels, k):
    found = ceiling(labels, k)
    assert len({(a, b) for a, b in zip(found, labels)}) == len(set(labels))  # no label is torn apart
    assert set(found) <= set(range(k)) and len(set(found)) == min(k, len(set(labels)))


@pytest.mark.parametrize(("count", "k"), [(4, 2), (5, 2), (5, 3), (6, 2), (6, 3), (6, 4)])
def test_no_merge_of_equal_labels_has_a_higher_nmi(count, k):
    labels = list(range(count)) * 3
    assert agreement(ceiling(labels, k), labels)["NMI"] == pytest.approx(best_merge([3] * count, k))


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=5), k=st.integers(2, 3))
@settings(max_examples=60)
def test_hardly_any_merge_has_a_higher_nmi(sizes, k):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    best = best_merge(sizes, k)
    assert 0.97 * best <= agreement(ceiling(labels, k), labels)["NMI"] <= best + 1e-6


def test_the_ceiling_of_4_parts_for_15_equal_keypoints():
    labels = np.arange(150) % 15
    found = ceiling(labels, 4)
    assert sorted(np.bincount(found)) == [30, 40, 40, 40]  # 3, 4, 4 and 4 of them
    shared = entropy([3, 4, 4, 4])  # a union tells nothing that the labels do not
    assert agreement(found, labels)["NMI"] == pytest.approx(100 * 2 * shared / (shared + math.log(15)))


def test_a_ceiling_of_no_parts():
    with pytest.raises(ValueError, match="0 parts of"):
        ceiling([0, 1, 2], 0)


def test_true_keypoints_lie_in_the_parts_of_their_photographs(tmp_path):
    """Photographs of many sizes: a part for each of 4 x 4 fields of a picture is found where the keypoint is, by its own size."""
    from partlib import Backbone, extract
    from partlib.data import cub200
    from partlib.mining import KMeansParts
    from partlib.regions import Regions

    home = os.environ.get("PARTLIB_DATA")
    if not home:
        pytest.skip("PARTLIB_DATA is not set (the folder of CUB_200_2011)")
    birds = cub200(Path(home) / "CUB_200_2011")
    birds = birds[np.linspace(0, len(birds) - 1, 24).astype(int)]
    sizes = np.array([picture.size for picture in birds])
    assert len({tuple(size) for size in sizes}) > 5
    fields = torch.eye(16).view(1, 16, 4, 4).expand(24, -1, -1, -1)
    found, true = parts_at(fields, birds.keypoints, sizes)
    i, j = np.nonzero(birds.keypoints[:, :, 2])
    place = 4 * birds.keypoints[i, j, :2] / sizes[i]
    inside = (np.abs(place - place.round()) > 1e-4).all(1)  # on a border between two fields the two are even
    x, y = place[inside].astype(int).T
    np.testing.assert_array_equal(true, j)
    np.testing.assert_array_equal(found[inside], 4 * y + x)
    assert inside.mean() > 0.9
    regions = Regions(extract(Backbone(size=128), birds, tmp_path))
    found, again = parts_at(KMeansParts(6).fit(regions).maps(regions.maps), birds.keypoints, sizes)
    assert set(found) <= set(range(6)) and len(set(found)) > 1
    np.testing.assert_array_equal(again, j)
