"""The two baselines: clusters of regions, and regions themselves, as parts."""

from dataclasses import dataclass

import numpy as np
import torch

from ..clustering import KMeans
from ..regions import Regions
from .parts import NothingFound, Parts, made_by
from .world import SAMPLE, World


@dataclass
class KMeansParts:
    """Clusters of all regions, wherever they are: frequent, but not necessarily of anything.

    The score is ⟨m, x⟩ − ½ ‖m‖²: highest for the nearest centroid.

    Args:
        parts: p. seed: of the regions clustered and of k-means.
    """

    parts: int = 64
    seed: int = 0

    def fit(self, regions: Regions, groups=None) -> Parts:
        """From a sample of the regions; groups change nothing."""
        x = regions.sample(SAMPLE, self.seed)
        if len(torch.unique(x[: 4 * self.parts + 1000].round(decimals=5), dim=0)) < min(self.parts, len(x)):
            raise NothingFound(
                f"there are fewer than {self.parts} different regions in these {len(regions)} photographs: ask for fewer parts"
            )
        means = KMeans(self.parts, seed=self.seed).fit(x).centroids_
        return Parts(means, -means.square().sum(1) / 2, about=made_by(self, regions))


@dataclass
class ExemplarParts:
    """Exemplar LDA: each part is one region drawn at random, as Σ⁻¹(x − μ) tells it from the world [Hariharan et al. 2012].

    Args:
        parts: p. dims: directions in which the world is described. seed: of the regions drawn.
    """

    parts: int = 64
    dims: int = 128
    seed: int = 0

    def fit(self, regions: Regions, groups=None) -> Parts:
        """From one region a part; groups change nothing."""
        world = World.of(regions, self.dims, self.seed)
        exemplars = world.whitening.transform(regions.sample(self.parts, self.seed))
        if len(exemplars) < self.parts:
            raise NothingFound(
                f"{self.parts} parts, but only {len(exemplars)} regions to be exemplars: ask for fewer parts"
            )
        return world.parts(exemplars, np.full(self.parts, -1), self, regions)
