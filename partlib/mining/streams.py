"""Three streams: a photograph as a whole, the object in it, and the parts of the object."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..encoding import gap, join
from ..features import Maps, batches
from ..regions import Regions, grid
from .patterns import PatternParts, border, frequent_patterns, objects, support_maps, transactions
from .world import some_of


@dataclass
class ThreeStreams:
    """The code of unsupervised part mining [Zhang et al. 2019, arXiv 1902.09941; its details are our reading].

    Patterns of channels are mined in all photographs as one group, and the object of any photograph is the largest set of cells that hold many of
    them. With B its box and W_p the 3 × 3 cells around the best cell of part p in the object, a photograph f is

        z = [ mean f ;  mean_B f ;  mean_{W_1} f ; … ; mean_{W_P} f ],    each of the three streams of length 1.

    In the paper each box is cut out of the photograph and goes through a network of its own, trained with labels. Here they are cut out of one
    map of a frozen network, and nothing has a label.

    Args:
        learner: of the parts; its patterns are the object's too.

    Attributes after `fit`: `parts_` (Parts) and `patterns_` (q, d).
    """

    learner: PatternParts = field(default_factory=lambda: PatternParts(8))

    def fit(self, maps: Maps | Float[Tensor, "n d h w"]):
        """Mine the patterns, and the parts, of some of these photographs.

        Raises:
            NothingFound: no channels are active together, or all cells are alike.
        """
        self.parts_ = self.learner.fit(Regions(maps, grid(*maps.shape[2:])))
        some = maps[torch.from_numpy(some_of(np.arange(len(maps)), self.learner.photographs, self.learner.seed))]  # those that the parts are of
        baskets = torch.cat([transactions(few, border(few), self.learner.items).flatten(0, 2) for few in batches(some)])
        self.patterns_ = frequent_patterns(baskets, self.learner.support, self.learner.longest)
        return self

    def objects(self, maps: Float[Tensor, "n d h w"]) -> Bool[Tensor, "n h w"]:
        """The object's cells; all of them, where no cell stands out."""
        on = objects(support_maps(transactions(maps, border(maps), self.learner.items), self.patterns_))
        return on | ~on.any(2).any(1)[:, None, None]

    def describe(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n D"]:
        """z, of length 1; for `encoding.encode`."""
        on = self.objects(maps)
        box = (on.any(2)[:, :, None] & on.any(1)[:, None, :])[:, None]
        scores = self.parts_.maps(maps).flatten(2)
        best = scores.masked_fill(~on.flatten(1)[:, None], -torch.inf).argmax(2)
        around = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False).flatten(2)
        windows = around.gather(2, best[:, None].expand(-1, maps.shape[1], -1))
        return join(gap(maps), (maps * box).sum((2, 3)) / box.sum((2, 3)), windows.transpose(1, 2).flatten(1))
