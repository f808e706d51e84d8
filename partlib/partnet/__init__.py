"""The part network as an estimator: part filters on the maps of a fixed backbone, learnt from the photographs alone, or with labels.

Without labels a photograph's code is to be near those of its neighbours, which are the nearest codes of the epoch before; or near the
centroid of the cluster that it was in. Either way what learns is light: p filters of d channels.
"""

from .cells import Subspace, foreground
from .estimator import PartNet
from .tasks import WithClusters, WithLabels, WithNeighbours

__all__ = ["PartNet", "Subspace", "WithClusters", "WithLabels", "WithNeighbours", "foreground"]
