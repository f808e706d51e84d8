"""What a code is good for: nearest-neighbour and linear probes."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from .._checks import check_labels
from ..retrieval import Index, unit


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
