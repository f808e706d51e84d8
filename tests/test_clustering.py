"""k-means in its kinds: planted clusters are found, balance is stable, and every count agrees with loops."""

import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster

from partlib.clustering import EmptyClusters, KMeans, _assign_within, align, contingency, effective_number, hierarchical


def blobs(sizes, d=5, apart=20.0, seed=0):
    """Clusters of unit spread around centres far from each other, shuffled, and their true numbers."""
    draw = np.random.default_rng(seed)
    centres = apart * np.linalg.qr(draw.normal(size=(max(d, len(sizes)),) * 2))[0][: len(sizes), :d]
    truth = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return torch.from_numpy(centres[truth] + draw.normal(size=(len(truth), d))).float(), truth


def noise(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def same_partition(a, b):
    """Two in one cluster are in one cluster there too, and the other way round."""
    return all((a[i] == a[j]) == (b[i] == b[j]) for i in range(len(a)) for j in range(i))


def nearest(x, centroids):
    """The nearest centroid and its squared distance, by loops in float64."""
    distances = np.array([[sum((a - b) ** 2 for a, b in zip(row, c)) for c in centroids.tolist()] for row in x.tolist()])
    return distances.argmin(1), distances.min(1)


# ---- k-means ----


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("sizes", [[30, 30, 30], [100, 40, 10, 5], [7]])
def test_planted_clusters_are_found(sizes, spherical):
    x, truth = blobs(sizes)
    fitted = KMeans(len(sizes), spherical=spherical, restarts=5).fit(x)
    assert same_partition(fitted.labels_, truth)
    assert sorted(fitted.sizes_) == sorted(sizes) and fitted.empty_ == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_no_worse_than_that_of_scikit_learn(seed):
    x = blobs([60, 50, 40, 30, 20, 10], apart=3.0, seed=seed)[0]
    theirs = cluster.KMeans(8, n_init=5, random_state=seed).fit(x.numpy()).inertia_ / len(x)
    assert KMeans(8, restarts=5, iterations=50, seed=seed).fit(x).objective_ < 1.05 * theirs


@given(n=st.integers(1, 40), d=st.integers(1, 4), k=st.integers(1, 8), spherical=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_labels_sizes_and_objective_are_those_of_the_centroids(n, d, k, spherical, seed):
    x, k = noise(n, d, seed), min(k, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyClusters)  # directions in one dimension are but two
        fitted = KMeans(k, spherical=spherical, seed=seed).fit(x)
    points = x / x.norm(dim=1, keepdim=True) if spherical else x
    distances = nearest(points, fitted.centroids_)[1]
    assert fitted.centroids_.shape == (k, d) and fitted.centroids_.dtype == torch.float32
    own = ((points - fitted.centroids_[fitted.labels_]) ** 2).sum(1).numpy()
    np.testing.assert_allclose(own, distances, atol=1e-5)  # as near as any: labels may differ where two are as near
    assert fitted.sizes_.tolist() == [sum(fitted.labels_ == g) for g in range(k)]
    assert fitted.empty_ == k - len(set(fitted.labels_.tolist()))
    np.testing.assert_allclose(fitted.objective_, distances.mean(), atol=1e-5)
    if spherical:
        np.testing.assert_allclose(fitted.centroids_.norm(dim=1), 1, atol=1e-5)
        cosines = (points * fitted.centroids_[fitted.labels_]).sum(1)
        np.testing.assert_allclose(fitted.objective_, (2 - 2 * cosines).mean(), atol=1e-5)


def test_centroids_are_the_means_of_their_members():
    x = blobs([30, 20, 10])[0]
    fitted = KMeans(3, restarts=5, iterations=50).fit(x)
    for g in range(3):
        np.testing.assert_allclose(fitted.centroids_[g], x[fitted.labels_ == g].double().mean(0), atol=1e-4)


def test_spherical_k_means_forgets_lengths_and_plain_k_means_units():
    x = noise(200, 4)
    lengths = 2.0 ** torch.randint(-8, 9, (200, 1), generator=torch.Generator().manual_seed(0))  # powers of two: no rounding
    np.testing.assert_array_equal(KMeans(6, spherical=True).fit(x * lengths).labels_, KMeans(6, spherical=True).fit(x).labels_)
    plain, larger = KMeans(6).fit(x), KMeans(6).fit(x * 8)
    np.testing.assert_array_equal(larger.labels_, plain.labels_)
    np.testing.assert_array_equal(larger.centroids_, plain.centroids_ * 8)


@pytest.mark.parametrize("options", [{}, {"spherical": True}, {"balance": 1.2}, {"restarts": 3}])
def test_the_same_seed_gives_the_same_clusters(options):
    x = noise(300, 6)
    one, two, other = (KMeans(10, seed=seed, **options).fit(x) for seed in (4, 4, 5))
    assert torch.equal(one.centroids_, two.centroids_) and np.array_equal(one.labels_, two.labels_)
    assert not torch.equal(one.centroids_, other.centroids_)


def test_more_restarts_and_more_rounds_are_no_worse():
    x = noise(300, 3)
    once, often = KMeans(12, iterations=2), KMeans(12, restarts=10, iterations=30)
    assert often.fit(x).objective_ < once.fit(x).objective_


@pytest.mark.parametrize("spherical", [False, True])
def test_prediction_agrees_with_the_fit_and_with_loops(spherical):
    x, more = blobs([40, 30, 30], apart=4.0)[0], noise(60, 5, seed=1)
    fitted = KMeans(7, spherical=spherical).fit(x)
    np.testing.assert_array_equal(fitted.predict(x), fitted.labels_)
    np.testing.assert_array_equal(fitted.predict(more[:1]), fitted.predict(more)[:1])
    points = more / more.norm(dim=1, keepdim=True) if spherical else more
    np.testing.assert_array_equal(fitted.predict(more.numpy()), nearest(points, fitted.centroids_)[0])


@pytest.mark.parametrize("options", [{}, {"spherical": True}, {"balance": 1}])
def test_as_many_clusters_as_vectors(options):
    x = noise(9, 3)
    fitted = KMeans(9, **options).fit(x)
    assert sorted(fitted.labels_) == list(range(9)) and fitted.empty_ == 0
    assert fitted.objective_ < 1e-10


@pytest.mark.parametrize("spherical", [False, True])
def test_clusters_without_members_are_counted_and_warned_of(spherical):
    x = torch.eye(3).repeat(7, 1)  # 21 vectors, three of them distinct
    with pytest.warns(EmptyClusters, match="2 of 5 clusters are empty: fewer clusters would do"):
        fitted = KMeans(5, spherical=spherical, restarts=5).fit(x)
    assert fitted.empty_ == 2 and sorted(fitted.sizes_) == [0, 0, 7, 7, 7]
    assert torch.isfinite(fitted.centroids_).all() and fitted.objective_ < 1e-5
    with pytest.warns(EmptyClusters, match="3 of 4"):
        assert KMeans(4).fit(torch.zeros(10, 2)).sizes_.max() == 10


def test_no_warning_in_ordinary_use(recwarn):
    KMeans(10).fit(noise(100, 4))
    KMeans(10, balance=1.1).fit(noise(100, 4))
    assert not recwarn.list


def test_vectors_are_left_as_they_are_and_may_carry_gradients():
    x = noise(30, 4).requires_grad_()
    kept = x.detach().clone()
    fitted = KMeans(3, spherical=True).fit(x)
    assert torch.equal(x, kept) and not fitted.centroids_.requires_grad


# ---- balance ----


def deferred_acceptance(distances, capacity):
    """Gale and Shapley as they tell it: one row proposes at a time."""
    n, k = distances.shape
    lists = [sorted(range(k), key=lambda c: distances[i, c]) for i in range(n)]
    free, held = list(range(n)), {c: [] for c in range(k)}
    while free:
        i = free.pop()
        c = lists[i].pop(0)
        held[c] = sorted(held[c] + [i], key=lambda j: distances[j, c])
        free += held[c][capacity:]
        held[c] = held[c][:capacity]
    return np.array([next(c for c in range(k) if i in held[c]) for i in range(n)])


@given(n=st.integers(1, 30), k=st.integers(1, 6), spare=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_nobody_would_rather_swap(n, k, spare, seed):
    draw = np.random.default_rng(seed)
    distances, capacity = draw.random((n, k)) ** 3, math.ceil(n / k) + spare
    labels = _assign_within(distances, capacity)
    sizes = np.bincount(labels, minlength=k)
    assert sizes.max() <= capacity and labels.min() >= 0
    for i in range(n):
        for c in range(k):
            if distances[i, c] < distances[i, labels[i]]:  # i would rather be in c: then c is full, and of nearer ones only
                assert sizes[c] == capacity
                assert distances[labels == c, c].max() < distances[i, c]
    np.testing.assert_array_equal(labels, deferred_acceptance(distances, capacity))
    order = draw.permutation(n)
    np.testing.assert_array_equal(_assign_within(distances[order], capacity), labels[order])


def test_with_room_for_all_each_goes_to_the_nearest():
    distances = np.random.default_rng(0).random((50, 4))
    np.testing.assert_array_equal(_assign_within(distances, 50), distances.argmin(1))
    assert np.bincount(_assign_within(np.zeros((12, 4)), 3)).tolist() == [3, 3, 3, 3]  # all equally near: still within the limit


@given(n=st.integers(1, 60), k=st.integers(1, 7), balance=st.sampled_from([1, 1.0, 1.25, 1.5, 3.0]), spherical=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_no_cluster_is_above_its_capacity(n, k, balance, spherical, seed):
    x, k = noise(n, 3, seed), min(k, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyClusters)
        fitted = KMeans(k, balance=balance, spherical=spherical, seed=seed).fit(x)
    assert fitted.sizes_.sum() == n and fitted.sizes_.max() <= math.ceil(balance * n / k)
    if balance == 1 and n % k == 0:
        assert set(fitted.sizes_) == {n // k}
    points = (x / x.norm(dim=1, keepdim=True) if spherical else x).double().numpy()
    for g in np.flatnonzero(fitted.sizes_):
        mean = points[fitted.labels_ == g].mean(0)
        np.testing.assert_allclose(fitted.centroids_[g], mean / np.linalg.norm(mean) if spherical else mean, atol=1e-3)


def test_balance_moves_only_what_must_move():
    x, truth = blobs([90, 10], apart=8.0)
    equal, loose = KMeans(2, balance=1).fit(x), KMeans(2, balance=1.8, restarts=5).fit(x)
    assert equal.sizes_.tolist() == [50, 50]
    assert same_partition(loose.labels_, truth)  # 90 fit exactly
    small = np.bincount(equal.labels_[truth == 1])
    assert small.max() == 10  # the small cluster stayed together


# ---- clusters in clusters ----


@given(n=st.integers(4, 50), k=st.integers(1, 4), children=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_children_are_numbered_inside_their_parent(n, k, children, seed):
    x = noise(n, 3, seed)
    upper, labels = hierarchical(x, k, children, seed=seed)
    assert labels.shape == (n,)
    np.testing.assert_array_equal(labels // children, upper.labels_)
    for g in range(k):
        own = np.unique(labels[upper.labels_ == g])
        assert len(own) == min(children, upper.sizes_[g])
        assert own.tolist() == list(range(g * children, g * children + len(own)))


def test_children_are_the_planted_ones():
    # Two far groups of three clusters each.
    x, truth = blobs([20] * 6, d=6, apart=10.0)
    x[:, 0] += torch.from_numpy(np.where(truth < 3, 200.0, 0.0)).float()
    upper, labels = hierarchical(x, 2, 3, restarts=10)
    assert same_partition(upper.labels_, truth < 3) and same_partition(labels, truth)


# ---- what is asked of clusterings ----


@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_effective_number_is_the_exponential_of_the_entropy(labels, seed):
    entropy = -sum(labels.count(g) / len(labels) * math.log(labels.count(g) / len(labels)) for g in set(labels))
    assert effective_number(labels) == pytest.approx(math.exp(entropy), rel=1e-9)
    renamed = np.random.default_rng(seed).permutation(15)[labels]
    assert effective_number(renamed) == pytest.approx(effective_number(labels), rel=1e-9)


def test_effective_number_by_hand():
    assert effective_number([4, 4, 4]) == 1
    assert effective_number(np.repeat(np.arange(8), 5)) == pytest.approx(8)
    assert effective_number([0, 0, 0, 1]) == pytest.approx(4 / 27**0.25)


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=40)


@given(pairs=pairs)
def test_contingency_is_counted(pairs):
    a, b = map(list, zip(*pairs))
    expected = [[sum(i == x and j == y for x, y in pairs) for j in range(max(b) + 1)] for i in range(max(a) + 1)]
    assert contingency(a, b).tolist() == expected
    assert contingency(np.array(b), torch.tensor(a)).T.tolist() == expected


@given(pairs=pairs)
@settings(max_examples=50)
def test_alignment_is_the_best_of_all_renumberings(pairs):
    labels, to = map(np.array, zip(*pairs))
    k = max(labels.max(), to.max()) + 1
    best = max(sum(numbers[a] == b for a, b in pairs) for numbers in permutations(range(k)))
    found = align(labels, to)
    assert (found == to).sum() == best
    assert same_partition(found, labels) and found.min() >= 0 and found.max() < k


@given(truth=st.lists(st.integers(0, 5), min_size=1, max_size=50), seed=st.integers(0, 999))
def test_a_renumbering_is_undone(truth, seed):
    renamed = np.random.default_rng(seed).permutation(6)[truth]
    np.testing.assert_array_equal(align(renamed, truth), truth)


def test_alignment_of_more_and_of_fewer_clusters():
    assert align([2, 2, 0, 1], [0, 0, 1, 1]).tolist()[:2] == [0, 0]
    assert align([0, 0, 1, 1], [3, 3, 1, 2]).tolist()[:2] == [3, 3]
    assert align([0], [5]).tolist() == [5] and align([5], [0]).tolist() == [0]
    assert align([], []).shape == (0,) and contingency([], []).shape == (0, 0)
