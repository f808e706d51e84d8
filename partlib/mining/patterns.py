"""Pattern parts: channels that are often active together in a cell, and the cells where they are."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from mlxtend.frequent_patterns import fpgrowth
from scipy import ndimage
from torch import Tensor

from ..clustering import EmptyClusters, KMeans
from ..regions import Regions, grid
from .parts import NothingFound, Parts
from .world import World, check_groups, each_group

MOST = 500  # patterns kept of a group, the most frequent first


@dataclass
class PatternParts:
    """Unsupervised part mining [Zhang et al. 2019, arXiv 1902.09941; its details are our reading].

    Each cell of a map is a transaction, the channels that are more than usual the items. Patterns of channels that are
    frequent in a group's cells are mined by FP-growth; the cells that hold many of them are the object, and clusters of
    these cells the parts. Channel k is an item of a cell of photograph i, one of its strongest, where

        f_ik(x, y) > 2 u_ik,    u_ik = the mean of f_ik over the cells along i's border; where there are groups, ½ of it
                                       and ½ of the mean of f_k over the photographs of the other groups.

    The paper's threshold is a mean; over what is our choice. A mean over the photographs mined would contain the object
    wherever all show the same kind of it, and backdrops alone would stand out. What surrounds an object reaches the
    border, and so is usual there; and groups, where given, say what the rest of the world is.

    Args:
        parts: for each group. items: channels kept of a cell. support: the least share of a group's cells that hold a
            pattern. longest: channels in a pattern, at most.
        dims: directions in which the world is described, for the detectors.
        photographs: at most so many of a group are looked at. seed: of whatever is drawn.
    """

    parts: int = 10
    items: int = 12
    support: float = 0.03
    longest: int = 3
    dims: int = 128
    photographs: int = 64
    seed: int = 0

    def fit(self, regions: Regions, groups=None) -> Parts:
        """From groups `(n,)` of the photographs, or from all of them as one group."""
        return self.parts_of(self.mine(regions, groups), regions)

    def parts_of(self, mined, regions: Regions) -> Parts:
        """Clusters of the cells that are on the objects, in what was mined."""
        world = World.of(regions, self.dims, self.seed)
        cells = Regions(regions.maps, grid(*regions.cells))
        means, owners = [], []
        for g, rows, baskets, patterns in mined:
            inside = objects(support_maps(baskets, patterns)).flatten(1)
            if not inside.any():  # every cell holds as many of them
                continue
            x = world.describe(cells[rows])[inside]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EmptyClusters)
                means.append(KMeans(min(self.parts, len(x)), seed=self.seed).fit(x).centroids_)
            owners += [g] * len(means[-1])
        if not means:
            raise NothingFound(
                f"no channels are active together in {self.support:.0%} of the cells of any group, and in some more than "
                "in others: lower support, or take more items"
            )
        return world.parts(torch.cat(means), owners, self, regions)

    def mine(self, regions: Regions, groups=None):
        """Of each group that has any: its number, the photographs looked at, what their cells hold, and the frequent patterns."""
        owners_of = np.full(len(regions), -1) if groups is None else check_groups(groups, regions)
        levels = None if groups is None else torch.cat([maps.mean((2, 3)) for maps in regions.map_batches()])
        for g, rows, _ in each_group(owners_of, self.photographs, self.seed, what="patterns"):
            usual = border if groups is None else lambda maps: (border(maps) + levels[owners_of != g].mean(0)) / 2
            baskets = torch.cat([transactions(maps, usual(maps), self.items) for maps in regions[rows].map_batches()])
            patterns = frequent_patterns(baskets.flatten(0, 2), self.support, self.longest)
            if len(patterns):
                yield g, rows, baskets, patterns


def border(maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d"]:
    """The mean of each channel over the cells along the photograph's four sides."""
    edge = torch.ones(maps.shape[2:], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    return maps[:, :, edge].mean(2)


def transactions(maps: Float[Tensor, "n d h w"], usual: Float[Tensor, "*n d"], items: int) -> Bool[Tensor, "n h w d"]:
    """Which channels each cell holds: of those over twice their usual value, the `items` that are highest above it.

    Args:
        usual: the same for all photographs, or for each its own.
    """
    above = (maps / usual.clamp(min=1e-6)[..., None, None]).permute(0, 2, 3, 1)
    least = above.topk(min(items, above.shape[3]), dim=3).values[..., -1:]
    return (above >= least) & (above > 2)


def frequent_patterns(baskets: Bool[Tensor, "m d"], support: float, longest: int) -> Bool[Tensor, "q d"]:
    """The 500 most frequent sets of 2 to `longest` channels that a share `support` of the cells hold, by FP-growth."""
    often = baskets.float().mean(0) >= support  # no set is more frequent than its channels
    table = pd.DataFrame(baskets[:, often].numpy(), columns=np.flatnonzero(often.numpy()))
    none = pd.DataFrame({"itemsets": [], "support": []})
    found = fpgrowth(table, support, use_colnames=True, max_len=longest) if table.shape[1] else none
    found = found[found.itemsets.map(len) > 1].sort_values("support", ascending=False, kind="stable")
    patterns = torch.zeros(min(len(found), MOST), baskets.shape[1], dtype=torch.bool)
    for row, channels in enumerate(found.itemsets[:MOST]):
        patterns[row, list(channels)] = True
    return patterns


def support_maps(baskets: Bool[Tensor, "n h w d"], patterns: Bool[Tensor, "q d"]) -> Float[Tensor, "n h w"]:
    """The share of the patterns that each cell holds."""
    held = baskets.float() @ patterns.float().T
    return (held == patterns.sum(1)).float().mean(3)


def objects(support: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """The object in each photograph: the largest connected set of cells whose support is over the photograph's mean."""
    masks = []
    for values in support.numpy():
        labels, count = ndimage.label(values > values.mean())
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        masks.append(labels == 1 + sizes.argmax() if count else np.zeros(values.shape, dtype=bool))
    return torch.from_numpy(np.stack(masks))
