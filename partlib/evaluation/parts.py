"""How far a clustering agrees with classes, and learnt parts with true ones. Whatever learnt them saw neither."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, one_hot

from .._checks import check_count, check_labels
from ..clustering import contingency


def agreement(clusters, labels) -> dict[str, float]:
    """How far a clustering agrees with classes, in percent.

    NMI: mutual information over the arithmetic mean of the two entropies. ARI: share of agreeing pairs, adjusted for
    chance (0 on average for random clusters). purity: share of members of their cluster's most frequent class; it grows
    with the number of clusters by itself.
    """
    labels = check_labels(labels, len(clusters))
    if len(labels) == 0:
        raise ValueError("there are no labels to agree with: is the selection of photographs empty?")
    table = contingency(clusters, labels)
    return {
        "NMI": 100 * float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "ARI": 100 * float(adjusted_rand_score(labels, clusters)),
        "purity": 100 * float(table.max(1).sum() / table.sum()),
    }


def parts_at(maps: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], sizes) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """At every visible keypoint, the learnt part that scores highest there, and the number of the keypoint.

    Scores are interpolated between the centres of cells, as when a map is enlarged to its picture.

    Args:
        maps: scores of the parts. keypoints: x, y in pixels, and 1 where visible. sizes: (width, height) of each picture.
    """
    visible = torch.from_numpy(np.asarray(keypoints)[:, :, 2] > 0)
    where = torch.from_numpy(np.asarray(keypoints)[:, :, :2]).float() / torch.as_tensor(np.asarray(sizes)).float()[:, None]
    grid = (2 * where - 1)[:, :, None]
    scores = grid_sample(maps, grid.to(maps), align_corners=False, padding_mode="border")[..., 0]
    found, true = scores.argmax(1)[visible], torch.arange(visible.shape[1]).expand(visible.shape)[visible]
    return found.cpu().numpy(), true.numpy()


def part_overlap(maps: Float[Tensor, "n p h w"], masks: Bool[np.ndarray, "n k H W"]) -> Float[np.ndarray, "p k"]:
    """Intersection over union, in percent, of each learnt part with each true one, over the pixels of all photographs.

    A learnt part is the pixels where it scores highest of all. The best match of a true part is its column's maximum.
    """
    masks = torch.from_numpy(np.asarray(masks))
    shared, learnt, true = torch.zeros(maps.shape[1], masks.shape[1]), torch.zeros(maps.shape[1]), torch.zeros(masks.shape[1])
    for scores, mask in zip(maps, masks):  # one photograph at a time: scores of every pixel are many numbers
        where = interpolate(scores[None], mask.shape[1:], mode="bilinear", align_corners=False)[0].argmax(0).flatten().cpu()
        inside, mask = one_hot(where, maps.shape[1]).float(), mask.flatten(1).float()
        shared, learnt, true = shared + (mask @ inside).T, learnt + inside.sum(0), true + mask.sum(1)
    return (100 * shared / (learnt[:, None] + true - shared).clamp(min=1)).numpy()


def ceiling(labels, k: int) -> Int[np.ndarray, "n"]:
    """What a perfect learner of k parts could answer where there are more true ones: true parts merged, nearly as evenly as can be.

    `agreement(ceiling(labels, k), labels)` is the score to hold others against: of clusters that are unions of true parts, the
    most even have the highest NMI; each label goes to the emptiest cluster, the largest first, which is that or close to it. With
    k as many as there are true parts or more, it is the labels themselves.
    """
    labels = check_labels(labels, len(labels))
    sizes = np.bincount(labels)
    check_count(k, max(k, 1), "parts", "parts")
    group, filled = np.zeros(len(sizes), dtype=int), np.zeros(k)
    for label in (-sizes).argsort(kind="stable"):  # the largest first, each to the emptiest group
        group[label] = filled.argmin()
        filled[group[label]] += sizes[label]
    return group[labels]
