"""What codes, parts and explanations are worth, by measures that know the truth."""

from .parts import agreement, ceiling, part_overlap, parts_at
from .probes import knn_accuracy, linear_probe

__all__ = ["agreement", "ceiling", "knn_accuracy", "linear_probe", "part_overlap", "parts_at"]
