"""Parts: detectors of regions that recur in some photographs and tell them from the others.

Every learner is `fit(regions, groups) -> Parts`, and every `Parts` scores any regions in the same way.
"""

from .assigned import AssignedParts, UnsupervisedParts, visual_groups
from .clusters import ExemplarParts, KMeansParts
from .parts import NothingFound, Parts

__all__ = ["AssignedParts", "ExemplarParts", "KMeansParts", "NothingFound", "Parts", "UnsupervisedParts", "visual_groups"]
