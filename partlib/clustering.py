"""k-means in its kinds, and what is asked of a clustering: its sizes, and how it maps to another one."""

import warnings
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from ._checks import check_count, check_labels, check_vectors


class EmptyClusters(UserWarning):
    """Some clusters have no members: there are fewer distinct vectors than clusters, or nearly so."""


@dataclass
class KMeans:
    """k-means by faiss: the best of `restarts` runs of `iterations` rounds from seeded random starts.

    Within the rounds faiss re-seeds an empty cluster by splitting a large one. What is empty in the end is counted and
    warned of (`EmptyClusters`).

    Args:
        k: clusters.
        spherical: cosine in place of distance: vectors and centroids of length 1.
        balance: largest size of a cluster, as a multiple of the mean size n / k, rounded up (1: all equal, where k
            divides n). A vector whose nearest cluster is full goes to the nearest that has room. None: any size.

    Attributes after `fit`: `centroids_` (k, d) float32 tensor; `labels_` (n,) numbers 0 to k − 1; `sizes_` (k,);
    `empty_` how many clusters have no member; `objective_` mean squared distance to the centroid (spherical: 2 − 2 cosine).
    """

    k: int
    spherical: bool = False
    balance: float | None = None
    iterations: int = 20
    restarts: int = 1
    seed: int = 0

    def fit(self, x: Float[Tensor, "n d"]):
        x = self._prepared(x)
        n, d = x.shape
        check_count(self.k, n, "clusters", "vectors")
        if self.balance is not None and self.balance < 1:
            raise ValueError(f"balance={self.balance}: clusters of at most the mean size need balance=1, larger ones more")
        search = faiss.Kmeans(
            d, self.k, niter=self.iterations, nredo=self.restarts, seed=self.seed, spherical=self.spherical,
            min_points_per_centroid=1, max_points_per_centroid=n,
        )  # fmt: skip
        search.train(x)
        centroids = search.centroids.copy()
        if self.balance is None:
            labels = _nearest(x, centroids)
        else:
            capacity = int(np.ceil(self.balance * n / self.k))
            for _ in range(self.iterations):
                labels = _assign_within(_squared_distances(x, centroids), capacity)
                centroids = self._means(x, labels, centroids)
        self.centroids_, self.labels_ = torch.from_numpy(centroids), labels
        self.sizes_ = np.bincount(labels, minlength=self.k)
        self.empty_ = int((self.sizes_ == 0).sum())
        self.objective_ = float(((x - centroids[labels]) ** 2).sum(1).mean())
        if self.empty_:
            warnings.warn(f"{self.empty_} of {self.k} clusters are empty: fewer clusters would do", EmptyClusters, stacklevel=2)
        return self

    def predict(self, x: Float[Tensor, "m d"]) -> Int[np.ndarray, "m"]:
        """The nearest centroid of each vector (whatever the balance)."""
        if not hasattr(self, "centroids_"):
            raise ValueError("these clusters know no vectors yet: call fit first")
        x = self._prepared(x)
        if x.shape[1] != self.centroids_.shape[1]:
            raise ValueError(f"fitted on vectors of {self.centroids_.shape[1]} dimensions, given {x.shape[1]}: give such as it was fitted on")
        return _nearest(x, self.centroids_.numpy())

    def _prepared(self, x):
        x = check_vectors(x).detach().float().cpu()
        return np.ascontiguousarray((normalize(x, dim=1) if self.spherical else x).numpy())

    def _means(self, x, labels, old):
        sums = np.zeros_like(old)
        np.add.at(sums, labels, x)
        sizes = np.bincount(labels, minlength=self.k)[:, None]
        means = np.where(sizes > 0, sums / np.maximum(sizes, 1), old)
        return normalize(torch.from_numpy(means), dim=1).numpy() if self.spherical else means


def _nearest(x, centroids):
    return faiss.knn(x, centroids, 1)[1][:, 0]


def _squared_distances(x, centroids):
    return (x**2).sum(1, keepdims=True) - 2 * x @ centroids.T + (centroids**2).sum(1)


def _assign_within(distances, capacity):
    """Each row to its nearest column that has room; where more ask than fit, the nearest stay.

    Deferred acceptance (Gale and Shapley 1962): rows ask column after column in the order of their distance, and a full
    column lets its farthest go. The result does not depend on the order of the rows, unless distances are equal.
    """
    n, k = distances.shape
    wishes = distances.argsort(1, kind="stable")
    asked, labels = np.zeros(n, dtype=int), np.full(n, -1)
    while (free := np.flatnonzero(labels < 0)).size:
        labels[free] = wishes[free, asked[free]]
        asked[free] += 1
        for column in np.unique(labels[free]):
            members = np.flatnonzero(labels == column)
            if len(members) > capacity:
                labels[members[distances[members, column].argsort(kind="stable")[capacity:]]] = -1
    return labels


def hierarchical(x: Float[Tensor, "n d"], k: int, children: int, **options) -> tuple[KMeans, Int[np.ndarray, "n"]]:
    """k-means, then k-means inside each cluster: the upper clusters, and each vector's number in 0 … k·children − 1.

    Vectors of upper cluster g are numbered from g·children on; a cluster of fewer than `children` vectors gets as many
    children as it has. `options` are those of `KMeans`.
    """
    x = check_vectors(x)
    upper = KMeans(k, **options).fit(x)
    labels = np.zeros(len(x), dtype=int)
    for g in range(k):
        members = np.flatnonzero(upper.labels_ == g)
        if len(members):
            labels[members] = g * children + KMeans(min(children, len(members)), **options).fit(x[members]).labels_
    return upper, labels


def effective_number(labels) -> float:
    """exp(H) of the sizes: the number of clusters of equal size that would be as uncertain. 1 when all fell into one."""
    if len(labels) == 0:
        raise ValueError("no vectors, so no clusters to count: is the selection empty?")
    sizes = np.bincount(check_labels(labels, len(labels), "clusters"))
    share = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def contingency(a, b) -> Int[np.ndarray, "k l"]:
    """How many have number i in `a` and number j in `b`."""
    a = check_labels(a, len(a), "clusters")
    b = check_labels(b, len(a), "clusters")
    table = np.zeros((a.max(initial=-1) + 1, b.max(initial=-1) + 1), dtype=int)
    np.add.at(table, (a, b), 1)
    return table


def align(labels, to) -> Int[np.ndarray, "n"]:
    """The same clusters, renumbered to agree with another clustering `to` on as many vectors as can be.

    Cluster numbers are arbitrary and change from run to run; the best renumbering is an assignment problem on the
    contingency table (Kuhn's Hungarian method). Clusters beyond those of `to` get the numbers that are left.
    """
    table = contingency(labels, to)
    k = max(table.shape)
    rows, columns = linear_sum_assignment(np.pad(table, ((0, k - table.shape[0]), (0, k - table.shape[1]))), maximize=True)
    return columns[rows.argsort()][np.asarray(labels, dtype=int)]
