"""Parts: detectors of regions that recur in some photographs and tell them from the others.

Every learner is `fit(regions, groups) -> Parts`, and every `Parts` scores any regions in the same way.
"""

from .assigned import AssignedParts, UnsupervisedParts, visual_groups
from .clusters import ExemplarParts, KMeansParts
from .joint import JointParts
from .parts import NothingFound, Parts
from .patches import PatchParts
from .patterns import PatternParts
from .stability import stability
from .streams import ThreeStreams

__all__ = [
    "AssignedParts", "ExemplarParts", "JointParts", "KMeansParts", "NothingFound", "Parts", "PatchParts",
    "PatternParts", "ThreeStreams", "UnsupervisedParts", "stability", "visual_groups",
]  # fmt: skip
