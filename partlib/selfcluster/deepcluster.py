"""DeepCluster and its second version: cluster, predict the clusters, and again; and what becomes of the head in between."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .. import training
from ..clustering import align
from .clusters import OwnClusters, evenly, grouped, whitened

HEADS = ("reset", "align", "centroids")


def means_of(codes: Float[Tensor, "n d"], labels: Int[Tensor, "n"], k: int) -> Float[Tensor, "k d"]:
    """The mean code of each cluster, of length 1; zeros where it has no members."""
    return F.normalize(torch.zeros(k, codes.shape[1]).index_add(0, labels, codes), dim=1)


class DeepCluster(OwnClusters):
    """Features → PCA, whitening, length 1 → k-means from a new start → a head learns the clusters for an epoch [Caron et al. 2018].

        loss = cross-entropy of (W z + b) / τ with the photograph's cluster, photographs drawn evenly from the clusters

    Numbers of clusters mean nothing: cluster 3 of this epoch is not cluster 3 of the last. So something must be done with the head.

    Args:
        head: "reset" draws it anew from N(0, 0.01), as published; "align" keeps it and renumbers the new clusters so that as many photographs
            as can be keep their number; "centroids" makes row j the mean code of cluster j.
        dims: directions that are clustered; the paper's 256 are of 1.3 million pictures.
    """

    def __init__(self, trunk, seen, k, head="reset", dims=64, **options):
        super().__init__(trunk, seen, k, **options)
        if head not in HEADS:
            raise ValueError(f"head={head!r}: between epochs a head is one of {', '.join(HEADS)}")
        self.between, self.dims = head, dims
        self.head = nn.Linear(self.channels, k)

    def cluster(self, epoch, generator):
        features = self.features()
        self.mean.copy_(features.mean(0))
        labels, empty = grouped(whitened(features, self.dims), self.k, generator)
        if self.between == "align" and epoch > 0:
            labels = torch.from_numpy(align(labels, to=self.labels.cpu()))
        self.labels.copy_(labels)
        self.empty.fill_(empty)
        self.sample.copy_(evenly(labels, generator))
        if self.between == "align" and epoch > 0:
            return []
        nn.init.zeros_(self.head.bias)
        if self.between == "centroids":
            self.head.weight.copy_(means_of(self.codes(features), labels, self.k))
        else:
            self.head.weight.copy_(0.01 * torch.randn(self.head.weight.shape, generator=generator))
        return [self.head.weight, self.head.bias]

    def forward(self, rows, drawn):
        scores = self.head(self.codes(self._pooled(self.seen.seen(rows, drawn))))
        return {"clusters": F.cross_entropy(scores / self.temperature, self.labels[rows])}


class DeepClusterV2(OwnClusters):
    """A memory bank holds each photograph's features since it was last seen; their spherical centroids are the head [Caron et al. 2020].

        loss = cross-entropy of cos(m_j, z) / τ with the photograph's cluster

    Nothing is passed through the network for clustering alone, and there is no head that could be out of date: centroids are copied and, as
    in the authors' code, not learnt. Every photograph is seen once an epoch.

    Buffers besides: `bank` (n, d), `prototypes` (k, d).
    """

    def __init__(self, trunk, seen, k, **options):
        super().__init__(trunk, seen, k, **options)
        self.register_buffer("bank", torch.zeros(len(seen), self.channels))
        self.register_buffer("prototypes", torch.zeros(k, self.channels))

    def cluster(self, epoch, generator):
        if epoch == 0:
            self.bank.copy_(self.features())
        bank = self.bank.cpu()
        self.mean.copy_(bank.mean(0))
        codes = self.codes(bank)
        labels, empty = grouped(codes, self.k, generator, spherical=True, iterations=10)
        self.labels.copy_(labels)
        self.empty.fill_(empty)
        self.prototypes.copy_(means_of(codes, labels, self.k))
        return []

    def forward(self, rows, drawn):
        features = self._pooled(self.seen.seen(rows, drawn))
        with torch.no_grad():
            self.bank[training.gathered(rows)] = training.gathered(features.detach())
        scores = self.codes(features) @ self.prototypes.T
        return {"clusters": F.cross_entropy(scores / self.temperature, self.labels[rows])}
