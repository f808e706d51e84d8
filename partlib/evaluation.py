"""What a code is good for: nearest-neighbour and linear probes; how far a clustering agrees with classes, and parts with true parts."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, one_hot

from ._checks import check_count, check_labels
from .clustering import contingency
from .retrieval import Index, unit


def knn_accuracy(train_codes, train_labels, test_codes, test_labels, k=5) -> float:
    """Share of test codes, in percent, whose k nearest training codes by cosine have mostly their class.

    One vote each; of classes with equal votes, the one whose voters are nearer in sum.
    """
    train, train_labels, test, test_labels = _checked(train_codes, train_labels, test_codes, test_labels)
    cosines, neighbours = Index(train).search(test, k)
    votes = np.zeros((len(test_labels), train_labels.max() + 1))
    rows = np.arange(len(votes))[:, None]
    # A whole vote outweighs any sum of nearness: (1 + cosine) / 2 is at most 1, divided by more than k.
    np.add.at(votes, (rows, train_labels[neighbours]), 1 + (1 + cosines) / (2 * (k + 1)))
    return 100 * float((votes.argmax(1) == test_labels).mean())


def linear_probe(train_codes, train_labels, test_codes, test_labels, seed=0) -> float:
    """Accuracy in percent of a logistic regression on the codes.

    The codes are ℓ2-normalised and each dimension standardised; the strength of the ℓ2 penalty is chosen among five by
    cross-validation inside the training codes alone, with folds drawn from `seed`.
    """
    train, train_labels, test, test_labels = _checked(train_codes, train_labels, test_codes, test_labels)
    smallest = np.unique(train_labels, return_counts=True)[1].min()
    if smallest < 2 or smallest == len(train_labels):
        raise ValueError("a linear probe needs at least two classes and two training codes of each, for cross-validation: give more, or fewer classes")
    folds = StratifiedKFold(min(3, smallest), shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    probe = GridSearchCV(probe, {"logisticregression__C": np.logspace(-4, 0, 5)}, cv=folds)
    with threadpool_limits(1, user_api="blas"):  # thousands of small products: threads that wait for one another cost more than they bring
        return 100 * float(probe.fit(train, train_labels).score(test, test_labels))


def _checked(train_codes, train_labels, test_codes, test_labels):
    train, test = unit(train_codes), unit(test_codes)
    if len(train) == 0 or len(test) == 0:
        raise ValueError(f"{len(train)} training codes and {len(test)} test codes: a probe needs some of both")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"training codes of {train.shape[1]} dimensions, test codes of {test.shape[1]}: encode both alike")
    return train, check_labels(train_labels, len(train), "training labels"), test, check_labels(test_labels, len(test), "test labels")


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


# Learnt parts against true ones. Whatever learnt them saw neither.


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
