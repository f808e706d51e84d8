"""What codes, parts and explanations are worth, by measures that know the truth."""

from .keypoints import keypoint_regression, merge_sides, part_agreement, part_centres
from .parts import agreement, ceiling, part_overlap, parts_at
from .probes import few_shot, knn_accuracy, linear_probe
from .purity import consistency, disturb, purity, stability, touched

__all__ = [
    "agreement", "ceiling", "consistency", "disturb", "few_shot", "keypoint_regression", "knn_accuracy", "linear_probe", "merge_sides", "part_agreement",
    "part_centres", "part_overlap", "parts_at", "purity", "stability", "touched",
]  # fmt: skip
