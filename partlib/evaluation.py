"""What a code is good for: nearest-neighbour and linear probes; and how far a clustering agrees with classes."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from ._checks import check_labels, check_vectors
from .clustering import contingency
from .retrieval import Index


def knn_accuracy(train_codes, train_labels, test_codes, test_labels, k=5) -> float:
    """Share of test codes, in percent, whose k nearest training codes by cosine have mostly their class.

    One vote each; of classes with equal votes, the one whose voters are nearer in sum.
    """
    train_labels = check_labels(train_labels, len(train_codes), "training labels")
    test_labels = check_labels(test_labels, len(test_codes), "test labels")
    cosines, neighbours = Index(train_codes).search(test_codes, k)
    votes = np.zeros((len(test_labels), train_labels.max() + 1))
    rows = np.arange(len(votes))[:, None]
    # A whole vote outweighs any sum of nearness: (1 + cosine) / 2 is at most 1, divided by more than k.
    np.add.at(votes, (rows, train_labels[neighbours]), 1 + (1 + cosines) / (2 * (k + 1)))
    return 100 * float((votes.argmax(1) == test_labels).mean())


def linear_probe(train_codes, train_labels, test_codes, test_labels, seed=0) -> float:
    """Accuracy in percent of a logistic regression on the codes.

    The codes are ℓ2-normalised and each dimension standardised; the strength of the ℓ2 penalty is chosen among five by
    cross-validation inside the training codes alone.
    """
    train_labels = check_labels(train_labels, len(train_codes), "training labels")
    test_labels = check_labels(test_labels, len(test_codes), "test labels")
    train, test = (normalize(check_vectors(codes, "codes").float(), dim=1).numpy() for codes in (train_codes, test_codes))
    smallest = np.unique(train_labels, return_counts=True)[1].min()
    if smallest < 2:
        raise ValueError("a class has a single training code: cross-validation needs two of each at least")
    folds = StratifiedKFold(min(3, smallest), shuffle=True, random_state=seed)
    strengths = np.logspace(-5, -1, 5)
    probe = make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=strengths, cv=folds, max_iter=500, scoring="accuracy", use_legacy_attributes=False, l1_ratios=(0,))
    )
    return 100 * float(probe.fit(train, train_labels).score(test, test_labels))


def agreement(clusters, labels) -> dict[str, float]:
    """How far a clustering agrees with classes, in percent.

    NMI: mutual information over the arithmetic mean of the two entropies. ARI: share of agreeing pairs, adjusted for
    chance (0 on average for random clusters). purity: share of members of their cluster's most frequent class; it grows
    with the number of clusters by itself.
    """
    labels = check_labels(labels, len(clusters))
    table = contingency(clusters, labels)
    return {
        "NMI": 100 * float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "ARI": 100 * float(adjusted_rand_score(labels, clusters)),
        "purity": 100 * float(table.max(1).sum() / table.sum()),
    }
