"""What all learners share: the world of regions that a part is to be told from, and the space in which it is round."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._checks import check_labels
from .._progress import progress
from ..regions import Regions
from ..whitening import PCAWhitening, moments
from .parts import NothingFound, Parts, made_by

SAMPLE = 20_000  # regions from which a mean, a covariance or centroids are learnt, however many there are


@dataclass(frozen=True)
class World:
    """Descriptors of all regions, centred and whitened: there the world is N(0, I), and a part with mean m is N(m, I).

    Then log N(y; m, I) / N(y; 0, I) = ⟨m, y⟩ − ½ ‖m‖², the score of part m: its LDA filter, with the offset that makes 0 the
    place where part and world are as likely.
    """

    whitening: PCAWhitening

    @classmethod
    def of(cls, regions: Regions, dims: int, seed=0):
        """From a sample of the regions, in their `dims` strongest directions (or as many as there are)."""
        seen = moments(regions.sample(SAMPLE, seed))
        spread = seen.covariance.diagonal().sum()
        if spread <= 1e-8 * seen.mean.square().sum():
            raise NothingFound(
                f"all regions of these {len(regions)} photographs are alike, so no part can be told from the rest: "
                "are the maps constant, or the photographs copies of one?"
            )
        rank = int(torch.linalg.matrix_rank(seen.covariance, hermitian=True))
        return cls(PCAWhitening(min(dims, rank), shrinkage=0.1).fit(seen))

    def describe(self, regions: Regions) -> Float[Tensor, "n r D"]:
        """Whitened descriptors of all regions."""
        return torch.cat([self.whitening.transform(x) for x in regions.batches()])

    def parts(self, means: Float[Tensor, "p D"], groups, learner, regions: Regions) -> Parts:
        """Gaussian parts of these means, as detectors on the descriptors themselves."""
        filters, offsets = self.whitening.fold(means)
        return Parts(filters, offsets - means.square().sum(1) / 2, np.asarray(groups), made_by(learner, regions))


def check_groups(groups, regions: Regions, least=2) -> Int[np.ndarray, "n"]:
    """One group number a photograph; two groups at the least, one with `least` photographs."""
    if groups is None:
        raise ValueError(
            "this learner tells groups of photographs apart: give groups, for instance visual_groups(regions, 20)"
        )
    groups = check_labels(groups, len(regions), "groups")
    sizes = np.bincount(groups)
    if (sizes > 0).sum() < 2:
        raise NothingFound(
            "all photographs are in one group, so there is no rest to tell its parts from: make two groups or more"
        )
    if sizes.max() < least:
        raise NothingFound(
            f"the largest of the groups has {sizes.max()} photographs, and a part must recur in {least}: make fewer groups"
        )
    return groups


def some_of(rows, count, seed) -> Int[np.ndarray, "m"]:
    """At most `count` of the rows, drawn at random, in order."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return np.asarray(rows)[np.sort(drawn)]


def each_group(groups: Int[np.ndarray, "n"], count: int, seed=0, least=1, what="parts"):
    """Every group of `least` photographs or more: its number, and at most `count` rows inside it and outside."""
    for g in progress(np.unique(groups), desc=f"{what} of groups", unit="group", leave=False):
        inside, outside = (some_of(np.flatnonzero(rows), count, seed) for rows in (groups == g, groups != g))
        if len(inside) >= least:
            yield g, inside, outside


def bag(x: Float[Tensor, "n r D"], filters: Float[Tensor, "p D"]) -> Float[Tensor, "n p"]:
    """Each filter's best score in each photograph: max_r ⟨w_p, x_r⟩."""
    return torch.einsum("nrd,pd->npr", x, filters).amax(2)
