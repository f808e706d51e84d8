"""Retrieval: the nearest codes, what makes them nearer, and how good a ranking is.

`retrieval.learning`, which trains a code for retrieval, needs the feature maps' module and is imported when it is first named.
"""

from .diffusion import Diffusion
from .expansion import augment, expand, merge_scales
from .geometry import rerank, similarity_transform
from .index import Index, unit
from .measures import average_precision, evaluate, evaluate_each, precision_at, rankings, recall_at, relevance
from .pairs import PairWhitening, mutual_neighbours
from .protocols import judge, revisited

_LEARNING = ("RegionalCode", "Triplets", "triplet_loss")

__all__ = [
    "Diffusion", "Index", "PairWhitening", "RegionalCode", "Triplets", "augment", "average_precision", "evaluate", "evaluate_each", "expand", "judge",
    "merge_scales", "mutual_neighbours", "precision_at", "rankings", "recall_at", "relevance", "rerank", "revisited", "similarity_transform",
    "triplet_loss", "unit",
]  # fmt: skip


def __getattr__(name):
    if name in _LEARNING:
        from . import learning

        return getattr(learning, name)
    raise AttributeError(f"partlib.retrieval has no {name!r}; it has {', '.join(__all__)}")
