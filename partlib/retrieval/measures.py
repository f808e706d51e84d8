"""How good a ranking is. `relevant` says of each answer, best first, whether it is right; junk is taken out before anything is counted."""

import numpy as np
from jaxtyping import Bool, Float, Int

from .._checks import check_count, check_labels
from .index import unit


def average_precision(relevant: Bool[np.ndarray, "n"], variant="sum") -> float:
    """Area under precision against recall.

    "sum": the mean of the precision at each right answer, Σᵢ (i / rankᵢ) / n⁺, with ranks from 1 (the finite sum of
    information retrieval). "trapezoid": the precision before each right answer counts half, and before the first
    answer it is 1 (the Oxford and Paris protocol [Philbin et al. 2007]). The two are never to be compared.
    NaN where there is no right answer at all.
    """
    ranks = np.flatnonzero(relevant)  # from 0
    if len(ranks) == 0:
        return float("nan")
    hits = np.arange(1, len(ranks) + 1)
    after = hits / (ranks + 1)
    if variant == "sum":
        return float(after.mean())
    if variant != "trapezoid":
        raise ValueError(f"variant={variant!r}: average precision is 'sum' or 'trapezoid'")
    before = np.where(ranks > 0, (hits - 1) / np.maximum(ranks, 1), 1.0)
    return float(((before + after) / 2).mean())


def precision_at(relevant: Bool[np.ndarray, "n"], k: int) -> float:
    """The share of right answers among the first k."""
    return float(np.mean(relevant[: check_count(k, len(relevant), "answers", "ranked")]))


def recall_at(relevant: Bool[np.ndarray, "n"], k: int) -> float:
    """1 if any of the first k answers is right, else 0: metric learning's recall@k. NaN where there is no right answer."""
    if not np.any(relevant):
        return float("nan")
    return float(np.any(relevant[: check_count(k, len(relevant), "answers", "ranked")]))


def relevance(order: Int[np.ndarray, "n"], right, junk=()) -> Bool[np.ndarray, "n"]:
    """Which answers of a ranking are right, once junk is taken out of it: whoever came after junk moves up.

    Args:
        order: numbers of the database, best first. right, junk: numbers of the database; what is in both is junk.
    """
    order = np.asarray(order)
    return np.isin(order[~np.isin(order, junk)], right)


def evaluate(codes, labels, queries=None, query_labels=None, ks=(1,), variant="sum", junk=None) -> dict[str, float]:
    """Mean average precision, precision@k and recall@k of a ranking of `codes` by cosine, in percent.

    Without `queries`, every code asks in turn, and its answers are all the others (leave one out). An answer is right
    if it has the query's label. A query without any right answer does not count; `queries` in the result says how many did.
    Answers that are equally near stay in the order of `codes`.

    Args:
        codes: `(n, d)` of the database; labels: `(n,)`.
        queries: `(m, d)`; query_labels: `(m,)`.
        junk: for each query, numbers of codes that are taken out of its ranking: neither right nor wrong.
    """
    each = evaluate_each(codes, labels, queries, query_labels, ks, variant, junk)
    counted = ~np.isnan(each["AP"])
    if not counted.any():
        raise ValueError("no query has any right answer: are these the labels of these codes?")
    means = {name: 100 * float(values[counted].mean()) for name, values in each.items()}
    return {"mAP": means.pop("AP"), **means, "queries": int(counted.sum())}


def evaluate_each(codes, labels, queries=None, query_labels=None, ks=(1,), variant="sum", junk=None) -> dict[str, Float[np.ndarray, "m"]]:
    """The same for every single query, from 0 to 1: "AP", "P@k", "R@k"; NaN where a query has no right answer."""
    database = unit(codes)
    labels = check_labels(labels, len(database))
    asking = database if queries is None else unit(queries)
    own_labels = labels if queries is None else check_labels(query_labels, len(asking), "query labels")
    if asking.shape[1] != database.shape[1]:
        raise ValueError(f"codes of {database.shape[1]} dimensions, queries of {asking.shape[1]}: encode both alike")
    if junk is not None and len(junk) != len(asking):
        raise ValueError(f"junk for {len(junk)} queries, and there are {len(asking)}: give each a list, empty where there is none")
    measures = {"AP": [], **{f"P@{k}": [] for k in ks}, **{f"R@{k}": [] for k in ks}}
    for i, order in enumerate(rankings(asking, database)):
        order = order if queries is not None else order[order != i]
        order = order if junk is None else order[~np.isin(order, junk[i])]
        right = labels[order] == own_labels[i]
        measures["AP"].append(average_precision(right, variant))
        for k in ks:
            measures[f"P@{k}"].append(precision_at(right, k) if right.any() else np.nan)
            measures[f"R@{k}"].append(recall_at(right, k))
    return {name: np.array(values, dtype=float) for name, values in measures.items()}


def rankings(queries: Float[np.ndarray, "m d"], database: Float[np.ndarray, "n d"]):
    """For each query of length 1, the numbers of all codes, nearest first; a few queries at once: m n cosines may not fit into memory."""
    for start in range(0, len(queries), 256):
        yield from np.argsort(-(queries[start : start + 256] @ database.T), axis=1, kind="stable")
