"""The part network as an estimator: part filters on the maps of a backbone, learnt from the photographs alone, or with labels.

Without labels a photograph's code is to be near those of its neighbours, which are the nearest codes of the epoch before; or near the
centroid of the cluster that it was in. What learns is light: p filters of d channels, and the backbone's last block where it is given.
"""

from .cells import Foreground, Subspace, foreground
from .choice import most_stable
from .estimator import BlockMissing, PartNet
from .landmarks import Landmarks
from .tasks import LastBlock, WithClusters, WithLabels, WithNeighbours

__all__ = [
    "BlockMissing", "Foreground", "Landmarks", "LastBlock", "PartNet", "Subspace", "WithClusters", "WithLabels", "WithNeighbours",
    "foreground", "most_stable",
]  # fmt: skip
