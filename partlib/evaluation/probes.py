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


def few_shot(codes, labels, ways=5, shots=1, queries=15, episodes=600, seed=0) -> dict[str, float]:
    """Few-shot recognition by the nearest class mean: mean accuracy over episodes, in percent, and half the width of its 95 % interval.

    An episode draws `ways` classes, and of each `shots` codes to learn from and `queries` others to be recognised. A query gets the class whose mean of
    unit codes has the highest cosine with it [Snell et al. 2017, with cosines]. Classes with fewer than shots + queries codes are not drawn. The interval
    1.96 σ / √episodes is about the draw of episodes from these codes, not about other photographs.
    """
    codes = unit(codes)
    labels = check_labels(labels, len(codes))
    rows = [own for c in np.unique(labels) if len(own := np.flatnonzero(labels == c)) >= shots + queries]
    if len(rows) < ways or min(ways, shots, queries, episodes) < 1:
        raise ValueError(f"{len(rows)} classes have {shots} + {queries} codes, and an episode takes {ways}: ask for fewer ways, shots or queries")
    draw, right = np.random.default_rng(seed), []
    for _ in range(episodes):
        chosen = np.stack([draw.permutation(rows[c])[: shots + queries] for c in draw.permutation(len(rows))[:ways]])
        means = unit(codes[chosen[:, :shots]].mean(1))
        answers = np.einsum("wqd,vd->wqv", codes[chosen[:, shots:]], means).argmax(2)
        right.append((answers == np.arange(ways)[:, None]).mean())
    spread = np.std(right, ddof=1) if episodes > 1 else 0.0
    return {"accuracy": 100 * float(np.mean(right)), "interval": 100 * 1.96 * float(spread) / episodes**0.5}
