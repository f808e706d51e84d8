"""Three streams: a photograph as a whole, the object in it, and the parts of the object."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..encoding import bag_of_parts, gap, join
from ..features import Maps
from ..regions import Regions, grid
from .patterns import PatternParts, border, objects, support_maps, transactions


@dataclass
class ThreeStreams:
    """The code of unsupervised part mining [Zhang et al. 2019, arXiv 1902.09941; its details are our reading].

    Patterns of channels are mined in groups of photographs, and the object of any photograph is the largest set of cells that hold many of them,
    whichever group they are of. With O its cells and S_p the scores of pattern part p, a photograph f is

        z = [ mean f ;  mean_O f ;  max S_1, …, max S_P ],    each of the three streams of length 1.

    In the paper each stream is cut out of the photograph and goes through a network of its own, trained with labels. Here all three look at one
    map of a frozen network, and nothing has a label.

    Args:
        learner: of the parts; its patterns are the object's too.

    Attributes after `fit`: `parts_` (Parts), `patterns_` (q, d) and `means_`, of the streams.
    """

    learner: PatternParts = field(default_factory=lambda: PatternParts(4, support=0.01))

    def fit(self, maps: Maps | Float[Tensor, "n d h w"], groups=None):
        """From groups `(n,)` of the photographs, or from all of them as one group.

        Raises:
            NothingFound: no channels are active together, or all cells are alike.
        """
        regions = Regions(maps, grid(*maps.shape[2:]))
        mined = list(self.learner.mine(regions, groups))
        self.parts_ = self.learner.parts_of(mined, regions)
        self.patterns_ = torch.cat([patterns for *_, patterns in mined]).unique(dim=0)
        streams = [self.streams(some) for some in regions.map_batches()]
        self.means_ = [torch.cat(stream).mean(0) for stream in zip(*streams)]
        return self

    def objects(self, maps: Float[Tensor, "n d h w"]) -> Bool[Tensor, "n h w"]:
        """The object's cells; all of them, where no cell stands out."""
        on = objects(support_maps(transactions(maps, border(maps), self.learner.items), self.patterns_))
        return on | ~on.any(2).any(1)[:, None, None]

    def streams(self, maps: Float[Tensor, "n d h w"]) -> list[Float[Tensor, "n D"]]:
        """Whole, object and parts."""
        on = self.objects(maps)[:, None]
        return [gap(maps), (maps * on).sum((2, 3)) / on.sum((2, 3)), bag_of_parts(self.parts_.maps(maps).flatten(2))]

    def describe(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n 2*d+p"]:
        """z, less the streams' means over the photographs it was fitted to; for `encoding.encode`."""
        return join(*(stream - mean for stream, mean in zip(self.streams(maps), self.means_)))
