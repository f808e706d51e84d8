"""What codes, parts and explanations are worth, by measures that know the truth."""

from .explanations import (
    ablation_error, area, baseline, box_mask, completeness_error, deletion, energy, in_cells, insertion, localisation, points_at, rank_correlation,
)  # fmt: skip
from .finetuning import fine_tune
from .keypoints import keypoint_regression, merge_sides, part_agreement, part_centres
from .parts import agreement, ceiling, part_overlap, parts_at
from .probes import few_shot, knn_accuracy, linear_probe
from .purity import consistency, disturb, purity, stability, touched

__all__ = [
    "ablation_error", "agreement", "area", "baseline", "box_mask", "ceiling", "completeness_error", "consistency", "deletion", "disturb", "energy",
    "few_shot", "fine_tune", "in_cells", "insertion", "keypoint_regression", "knn_accuracy", "linear_probe", "localisation", "merge_sides", "part_agreement",
    "part_centres", "part_overlap", "parts_at", "points_at", "purity", "rank_correlation", "stability", "touched",
]  # fmt: skip
