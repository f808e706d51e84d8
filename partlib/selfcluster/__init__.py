"""Learning from one's own clusters: group the photographs by what the network says of them, teach it the groups, and begin again.

Clusters, memory bank and samples are buffers, and k-means starts from the epoch's own chance: a run that was killed goes on as if it had not
been, as `training.fit` does with everything. A trunk is what it is in `pretext`.
"""

from .clusters import Collapse, OwnClusters, evenly, refilled
from .deepcluster import DeepCluster, DeepClusterV2
from .deepercluster import DeeperCluster

__all__ = ["Collapse", "DeepCluster", "DeepClusterV2", "DeeperCluster", "OwnClusters", "evenly", "refilled"]
