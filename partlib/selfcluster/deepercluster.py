"""DeeperCluster: clusters within clusters, and every cluster four times, once for each turn of the picture."""

import torch
from torch import nn
from torch.nn import functional as F

from ..pretext import Crops, turned
from .clusters import OwnClusters, evenly, grouped, whitened

TURNS = 4


class DeeperCluster(OwnClusters):
    """Rotation and clustering as one task, the number of classes kept small by two levels of them [Caron et al. 2019].

    A super-class is a cluster of upright pictures and a turn, s = 4 · cluster + turn. Within each, the features of its turned pictures fall
    into sub-clusters. Each level has a head of its own, drawn anew whenever clusters change:

        loss = cross-entropy of the super-class + cross-entropy of the sub-cluster, given the super-class

    Args:
        supers: clusters of the upper level; the paper's 16 super-classes are 4 of them.
        children: sub-clusters of each super-class.
        every: epochs from one clustering to the next; 3, as published.
        dims: directions that are clustered, as in `DeepCluster`.

    Buffers besides: `above` (n) the upper clusters, `below` (4, n) the sub-clusters of each turn. `labels` are those of upright pictures.
    """

    def __init__(self, trunk, seen, supers=4, children=8, every=3, dims=64, **options):
        if not isinstance(seen, Crops):
            raise TypeError(f"a map of a turned picture is not the turned map, so give DeeperCluster Crops of pictures, not {type(seen).__name__}")
        super().__init__(trunk, seen, supers * children, **options)
        self.supers, self.each, self.every, self.dims = supers, children, every, dims
        self.upper = nn.Linear(self.channels, TURNS * supers)
        self.lower = nn.Parameter(torch.zeros(TURNS * supers, children, self.channels))
        self.register_buffer("above", torch.zeros(len(seen), dtype=torch.long))
        self.register_buffer("below", torch.zeros(TURNS, len(seen), dtype=torch.long))

    def cluster(self, epoch, generator):
        if epoch % self.every:
            return []
        features = torch.stack([self.features(lambda seen, turn=turn: turned(seen).chunk(TURNS)[turn]) for turn in range(TURNS)])
        self.mean.copy_(features.mean((0, 1)))
        x = whitened(features.flatten(0, 1), self.dims).unflatten(0, (TURNS, len(self)))
        above, empty = grouped(x[0], self.supers, generator)
        for upper in range(self.supers):
            members = torch.nonzero(above == upper).flatten()
            for turn in range(TURNS):
                found, none = grouped(x[turn, members], min(self.each, len(members)), generator)
                self.below[turn, members.to(self.below.device)] = found.to(self.below.device)
                empty += none
        self.above.copy_(above)
        self.labels.copy_(self.each * self.above + self.below[0])
        self.empty.fill_(empty)
        self.sample.copy_(evenly(self.labels.cpu(), generator))
        self.upper.weight.copy_(0.01 * torch.randn(self.upper.weight.shape, generator=generator))
        self.lower.copy_(0.01 * torch.randn(self.lower.shape, generator=generator))
        nn.init.zeros_(self.upper.bias)
        return [self.upper.weight, self.upper.bias, self.lower]

    def draw(self, rows, generator):
        return *super().draw(rows, generator), torch.randint(TURNS, (len(rows),), generator=generator)

    def forward(self, rows, drawn, turn):
        pictures = self.seen.seen(rows, drawn)
        pictures = turned(pictures).unflatten(0, (TURNS, len(rows)))[turn, torch.arange(len(rows), device=rows.device)]
        z = self.codes(self._pooled(pictures)) / self.temperature
        above = TURNS * self.above[rows] + turn
        below = torch.einsum("md,mkd->mk", z, self.lower[above])
        return {"super": F.cross_entropy(self.upper(z), above), "sub": F.cross_entropy(below, self.below[turn, rows])}
