"""Parts of groups of photographs by assignment: with groups given (QAP parts), and without (unsupervised parts)."""

from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from jaxtyping import Int
from torch.nn.functional import normalize

from .. import matching
from ..clustering import KMeans
from ..regions import Regions
from ..whitening import PCAWhitening, moments
from .parts import NothingFound, Parts
from .world import World, bag, check_groups, each_group, some_of


@dataclass
class AssignedParts:
    """Parts of each group, each with one region in every photograph of the group [Sicre et al. 2016, in outline].

    In the whitened space of all regions, the assignment problem is solved for three times as many parts as wanted, from a
    random start; kept are those, no two alike, that answer most inside the group for what they answer outside, and the
    problem is solved again for these.

    Args:
        parts: for each group.
        solver: one of `matching`. presence: π, how often a part is expected in a photograph of its group.
        dims: directions in which the world is described. Few: a mean of n regions picked among many fits their noise
            in each further one, and two halves of the photographs agree less (`stability`).
        photographs: at most so many of a group, and of the rest, are looked at: time and memory do not grow with the others.
        seed: of whatever is drawn.
    """

    parts: int = 10
    solver: Callable = matching.soft_assign
    presence: float = 1.0
    dims: int = 32
    photographs: int = 128
    seed: int = 0

    def fit(self, regions: Regions, groups=None) -> Parts:
        """From groups `(n,)` of the photographs; groups of a single photograph are passed over.

        Without groups, all photographs are expected to share their parts, which are told from the world of regions alone.
        """
        world = World.of(regions, self.dims, self.seed)
        if groups is None:
            rows = some_of(np.arange(len(regions)), self.photographs, self.seed)
            if len(rows) < 2:
                raise NothingFound("one photograph, and a part must recur in others: give two or more")
            means = self._solve(world.describe(regions[rows]))
            return world.parts(means, np.full(len(means), -1), self, regions)
        groups = check_groups(groups, regions)
        means, owners = [], []
        for g, inside, outside in each_group(groups, self.photographs, self.seed, least=2):
            x, rest = world.describe(regions[inside]), world.describe(regions[outside])
            means.append(self._solve(x, lambda filters: _answer(x, filters) / _answer(rest, filters)))
            owners += [g] * len(means[-1])
        return world.parts(torch.cat(means), owners, self, regions)

    def _solve(self, x, worth=None):
        count = min(self.parts, x.shape[1])
        return matching.from_random(self.solver, x, count, seed=self.seed, worth=worth, presence=self.presence).filters


def _answer(x, filters):
    """How strongly each filter answers to a photograph: its best score, averaged over the photographs."""
    return bag(x, filters).mean(0).clamp(min=1e-6)


@dataclass
class Grouping:
    """What a learner needs that makes its groups itself."""

    groups: int = 20


@dataclass
class UnsupervisedParts(AssignedParts, Grouping):  # a dataclass takes the last base's fields first: groups, parts, …
    """Parts without any labels: groups of similar photographs take the place of classes [Sicre et al. 2017].

    Args:
        groups: how many. parts, solver, presence, dims, photographs, seed: as in `AssignedParts`.
    """

    def fit(self, regions: Regions, groups=None) -> Parts:
        """From the photographs alone; `groups`, where given, are used in place of its own."""
        if groups is None:
            groups = visual_groups(regions, self.groups, self.seed)
        return super().fit(regions, groups)


def visual_groups(regions: Regions, count: int, seed=0) -> Int[np.ndarray, "n"]:
    """Groups of similar photographs, of at most one and a half times the mean size: balanced k-means of global codes.

    A code is the mean of the photograph's regions, PCA-whitened to 64 directions by half, of length 1.
    """
    if len(regions) < 4:
        raise NothingFound(
            f"{len(regions)} photographs do not make two groups in which parts recur: give four or more"
        )
    if not 2 <= count <= len(regions) // 2:
        raise NothingFound(
            f"{count} groups of {len(regions)} photographs: a part must recur inside a group and be rare outside, "
            f"so take from 2 to {len(regions) // 2}"
        )
    codes_of = lambda some: (normalize(x.mean(1), dim=1) for x in some.batches(64))
    seen = moments(codes_of(regions[some_of(np.arange(len(regions)), 2000, seed)]))
    whitening = PCAWhitening(min(64, seen.n - 1, len(seen.mean)), shrinkage=0.01, power=0.25).fit(seen)
    # Written into one tensor: small tensors kept beside large ones that go would leave holes, and memory would grow.
    codes = torch.empty(len(regions), len(whitening.variances_))
    for rows, z in zip(codes.split(64), codes_of(regions)):
        rows.copy_(normalize(whitening.transform(z), dim=1))
    return KMeans(count, spherical=True, balance=1.5, restarts=3, seed=seed).fit(codes).labels_
