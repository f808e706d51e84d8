"""Discriminative patches: clusters that keep finding themselves in photographs they were not trained on."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..clustering import KMeans
from ..matching import distinct
from ..regions import Regions
from .parts import NothingFound, Parts, made_by
from .world import World, bag, check_groups, each_group

NEGATIVES = 300  # regions of the natural world in a detector's training, half of them the hardest
RARE = 0.05  # the share of the natural world's photographs in which a detector may fire


@dataclass
class PatchParts:
    """Mid-level discriminative patches [Singh, Gupta and Efros 2012, section 2].

    For each group: its photographs are the discovery set D, the others the natural world N, and both are halved. Regions
    of one half are clustered; then, in turns, a linear SVM (w, b) is trained for each cluster on one half against that
    half of the world, and what it fires on most in the *other* half becomes the cluster. What fires in fewer than three
    photographs there dies. So a cluster survives only if it recurs where it was not trained. Of a photograph i,

        s_i = max_r ⟨w, x_ir⟩ + b,        i is fired on where s_i > τ,

        worth = mean of the ten highest s_i, i ∈ D        (purity)
              + #{i ∈ D: s_i > τ} / #{i ∈ D ∪ N: s_i > τ}        (discriminativeness),

    of the halves not trained on. In the paper τ = −1, the SVM's margin for what is no member. On deep descriptors every
    photograph has a region above it, so that no cluster dies and the second term is the same for all. Ours is set anew for
    each detector: τ is what all but a twentieth of the photographs of N's other half stay under, so that firing in D more
    often than in a twentieth is evidence, whatever the descriptors. It needs no label.

    Args:
        parts: for each group. clusters: to begin with, in each group. rounds: of training and firing.
        top: members of a cluster, of different photographs.
        dims: directions in which the world is described; the paper takes HOG as it is.
        photographs: at most so many of a group, and of the rest, are looked at. seed: of whatever is drawn.
    """

    parts: int = 10
    clusters: int = 30
    rounds: int = 4
    top: int = 5
    dims: int = 128
    photographs: int = 64
    seed: int = 0

    def fit(self, regions: Regions, groups) -> Parts:
        """From groups `(n,)` of the photographs; a group needs 6 photographs, 3 for each half, and 2 others."""
        groups = check_groups(groups, regions, least=6)
        world = World.of(regions, self.dims, self.seed)
        detectors, owners = [], []
        for g, inside, outside in each_group(groups, self.photographs, self.seed, least=6, what="patches"):
            if len(outside) >= 2:
                found = self._of_group(world.describe(regions[inside]), world.describe(regions[outside]))
                detectors += found
                owners += [g] * len(found)
        if not detectors:
            raise NothingFound(
                "in no group of 6 photographs or more, with 2 or more outside, does a cluster of regions keep firing where "
                "it was not trained: take fewer, larger groups or more clusters"
            )
        weights, biases = (torch.stack(values).float() for values in zip(*detectors))
        filters, offsets = world.whitening.fold(weights)
        return Parts(filters, offsets + biases, np.array(owners), made_by(self, regions))

    def _of_group(self, x, rest):
        """Detectors (w, b) of one group, the best first."""
        halves, worlds = (x[::2], x[1::2]), (rest[::2], rest[1::2])
        members = self._first_members(halves[0])
        detectors = []
        for turn in range(self.rounds):
            here, there = turn % 2, 1 - turn % 2
            detectors, before = [], members
            members = []
            for own in before:
                detector = train(own, worlds[here].flatten(0, 1), self.seed)
                fired = firings(detector, halves[there], self.top, threshold(*detector, worlds[there]))
                if len(fired) >= 3:
                    detectors.append(detector)
                    members.append(fired)
        if not detectors:
            return []
        weights, biases = map(torch.stack, zip(*detectors))
        limits = threshold(weights, biases, worlds[there])
        ranks = worth(weights, biases, halves[there], worlds[there], limits)
        kept = distinct(weights, ranks, min(self.parts, len(detectors)))
        return [detectors[i] for i in kept.tolist()]

    def _first_members(self, x):
        """For each cluster of regions, those nearest to its centroid, of different photographs."""
        n, r, _ = x.shape
        flat = x.flatten(0, 1)
        means = KMeans(min(self.clusters, len(flat)), seed=self.seed).fit(flat).centroids_
        nearest, where = torch.cdist(means, flat).unflatten(1, (n, r)).min(2)
        first = nearest.argsort(1)[:, : self.top]
        return [x[rows, where[k, rows]] for k, rows in enumerate(first) if len(rows) >= 3]


def train(
    members: Float[Tensor, "m D"], world: Float[Tensor, "q D"], seed=0
) -> tuple[Float[Tensor, "D"], Float[Tensor, ""]]:
    """A linear SVM, members against the world, once on some of it and once more on the hardest of it."""
    drawn = np.random.default_rng(seed).permutation(len(world))[: NEGATIVES // 2]
    negatives = world[torch.from_numpy(drawn)]
    for _ in range(2):
        x, y = torch.cat([members, negatives]), np.repeat([1, 0], [len(members), len(negatives)])
        with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough: it is trained again next round
            machine = LinearSVC(C=0.1, tol=1e-3, max_iter=300, random_state=seed).fit(x.numpy(), y)
        weight, bias = torch.from_numpy(machine.coef_[0]).float(), torch.tensor(machine.intercept_[0]).float()
        hardest = (world @ weight).topk(min(NEGATIVES // 2, len(world))).indices
        negatives = torch.cat([negatives[: NEGATIVES // 2], world[hardest]])
    return weight, bias


def threshold(weights, biases, rest):
    """τ: what the best scores of all but a share `RARE` of the world's photographs stay under, for each detector."""
    best = bag(rest, torch.atleast_2d(weights)) + biases
    return best.quantile(1 - RARE, dim=0).view(biases.shape)


def firings(detector, x: Float[Tensor, "n r D"], top: int, limit=-1.0) -> Float[Tensor, "m D"]:
    """The regions it fires on most, one a photograph, at most `top`: those above the limit, −1 in the paper."""
    weight, bias = detector
    scores, where = (x @ weight + bias).max(1)
    first = scores.argsort(descending=True)[:top]
    first = first[scores[first] > limit]
    return x[first, where[first]]


def worth(weights, biases, x, rest, limits=-1.0, members=10):
    """Purity and discriminativeness: the mean score of the first members, and the share of firings that are inside."""
    inside, outside = (bag(photographs, weights) + biases for photographs in (x, rest))
    purity = inside.topk(min(members, len(x)), dim=0).values.mean(0)
    fires = (inside > limits).float().sum(0)
    return purity + fires / (fires + (outside > limits).float().sum(0)).clamp(min=1)
