"""What all loops over own clusters share: features of all examples, groups without empty ones, fair sampling, and a log."""

import warnings
from abc import abstractmethod
from typing import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.nn.functional import normalize

from .. import training
from .._checks import check_count, check_labels
from ..clustering import EmptyClusters, KMeans, effective_number
from ..encoding import gap
from ..pretext import Crops, Views
from ..whitening import PCAWhitening


class Collapse(UserWarning):
    """The clusters have run into few: nothing is to be learnt from predicting them."""


def refilled(x: Float[Tensor, "n d"], labels: Int[np.ndarray, "n"], centroids: Float[Tensor, "k d"]) -> tuple[Int[np.ndarray, "n"], int]:
    """The labels, where each cluster without members has started anew from one vector; and how many did.

    It takes the vector that is farthest from its own centroid, of those whose cluster has others. Copies of a centroid cannot start one:
    with fewer distinct vectors than clusters, some stay empty.
    """
    labels, sizes = labels.copy(), np.bincount(labels, minlength=len(centroids))
    away = (x - centroids[labels]).norm(dim=1).numpy()
    empty = np.flatnonzero(sizes == 0)
    for number, cluster in enumerate(empty):
        farthest = int(np.where(sizes[labels] > 1, away, 0).argmax())
        if away[farthest] <= 1e-6 or sizes[labels[farthest]] < 2:
            return labels, number
        sizes[labels[farthest]] -= 1
        labels[farthest], sizes[cluster], away[farthest] = cluster, 1, 0
    return labels, len(empty)


def grouped(x: Float[Tensor, "n d"], k: int, generator: torch.Generator, spherical=False, iterations=20) -> tuple[Int[Tensor, "n"], int]:
    """k-means from a start that the generator draws, its empty clusters refilled: labels, and how many were empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyClusters)
        found = KMeans(k, spherical, iterations=iterations, seed=int(torch.randint(2**31 - 1, (1,), generator=generator))).fit(x)
    labels, empty = refilled(normalize(x, dim=1) if spherical else x, found.labels_, found.centroids_)
    return torch.from_numpy(labels), empty


def evenly(labels: Int[Tensor, "n"], generator: torch.Generator) -> Int[Tensor, "n"]:
    """n examples, mixed, the same number from each cluster that has members: small ones repeat theirs, large ones leave some out.

    Without it, all photographs in one cluster would be a solution, and a perfect one [Caron et al. 2018, section 3.3].
    """
    found, drawn = labels.unique(), []
    each = len(labels) // len(found) + 1
    for cluster in found:
        members = torch.nonzero(labels == cluster).flatten()
        again = len(members) <= each
        order = torch.randint(len(members), (each,), generator=generator) if again else torch.randperm(len(members), generator=generator)[:each]
        drawn.append(members[order])
    drawn = torch.cat(drawn)
    return drawn[torch.randperm(len(drawn), generator=generator)[: len(labels)]]


def whitened(features: Float[Tensor, "n d"], dims: int) -> Float[Tensor, "n dims"]:
    """The strongest directions, whitened, each vector of length 1: what DeepCluster clusters. Fewer, where fewer carry variance."""
    return normalize(PCAWhitening().fit(features).transform(features)[:, :dims], dim=1)


class OwnClusters(training.Task):
    """Predict, of another view of a photograph, the cluster that the network itself has put it into.

    Args:
        trunk: pictures (or cached maps) → maps; it learns.
        seen: the photographs: `Crops` of pictures, or `Views` of cached maps. Clusters are those of `seen.whole`.
        k: clusters.
        pool: maps → features.
        temperature: τ; the features that heads see are centred and of length 1, so scores are divided by it.
        known: class labels, where they are known, for the log alone.

    Buffers: `labels` (n) the clusters, `last` those before, `sample` (n) which examples make up the epoch, `mean` (d) of the features.
    """

    head_scale = 10.0  # the head's rate is so many times the trunk's: it has an epoch to learn what the trunk learns in all of them

    def __init__(self, trunk: nn.Module, seen: Crops | Views, k: int, pool: Callable = gap, temperature=0.1, known=None):
        super().__init__()
        self.trunk, self.seen, self.pool, self.temperature = trunk, seen, pool, temperature
        n = len(seen)
        self.k, self.known = check_count(k, n, "clusters", "examples"), None if known is None else check_labels(known, n)
        self.channels = self._in_evaluation(lambda: self._pooled(seen.whole(torch.arange(1)))).shape[1]
        self.register_buffer("labels", torch.full((n,), -1))
        self.register_buffer("last", torch.full((n,), -1))
        self.register_buffer("sample", torch.arange(n))
        self.register_buffer("empty", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(self.channels))

    def __len__(self):
        return len(self.seen)

    @abstractmethod
    def cluster(self, epoch: int, generator: torch.Generator) -> list[nn.Parameter]:
        """Write new `labels`, `mean`, `sample` and `empty`; the parameters that start anew."""

    def begin(self, epoch, generator):
        before = self.labels.clone()
        with torch.no_grad():
            anew = self.cluster(epoch, generator)
        self.last.copy_(before)
        return anew

    def draw(self, rows, generator):
        return self.sample[rows], self.seen.draw(len(rows), generator)

    def end(self, epoch):
        """How many clusters there are in effect, exp(H); the share of the largest in percent; how many were empty and refilled; how far the
        clusters agree with those before (NMI in percent, once there are any) and with the classes, where known."""
        labels = self.labels.cpu().numpy()
        effective, largest = effective_number(labels), 100 * np.bincount(labels).max() / len(labels)
        if largest > 50 or effective < self.k / 4:
            warnings.warn(
                f"{type(self).__name__} has collapsed: {largest:.0f} % of the photographs are in one cluster, and {self.k} clusters are as many "
                f"as {effective:.1f} of one size; take a lower rate or fewer clusters", Collapse, stacklevel=2,
            )  # fmt: skip
        agreement = lambda other: 100 * float(normalized_mutual_info_score(other, labels))
        log = {"effective": effective, "largest": largest, "empty": int(self.empty)}
        if (self.last >= 0).all():
            log["NMI to last"] = agreement(self.last.cpu().numpy())
        return log if self.known is None else log | {"NMI to classes": agreement(self.known)}

    def groups(self):
        trunk = {id(p) for p in self.trunk.parameters()}
        learn = [p for p in self.parameters() if p.requires_grad]
        of_trunk = {"params": [p for p in learn if id(p) in trunk]}
        of_head = {"params": [p for p in learn if id(p) not in trunk], "scale": self.head_scale}
        return [group for group in (of_trunk, of_head) if group["params"]]

    def features(self, change: Callable = lambda seen: seen) -> Float[Tensor, "n d"]:
        """Pooled maps of all examples as they are, in evaluation mode; `change` comes before the trunk."""
        some = torch.arange(len(self), device=self.mean.device).split(128)
        return self._in_evaluation(lambda: torch.cat([self._pooled(change(self.seen.whole(rows))) for rows in some])).cpu()

    def codes(self, features: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """z: features centred at the mean of the epoch's beginning, of length 1."""
        return normalize(features - self.mean.to(features.device), dim=1)

    @torch.no_grad()
    def _in_evaluation(self, look):
        """Batch norms must not count what is only looked at."""
        mode = self.trunk.training
        self.trunk.eval()
        found = look()
        self.trunk.train(mode)
        return found

    def _pooled(self, seen):
        return self.pool(self.trunk(seen))
