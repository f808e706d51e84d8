"""Retrieval: the nearest codes by cosine, and how good a ranking is."""

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ._checks import check_count, check_labels, check_vectors


class Index:
    """Nearest neighbours of codes by cosine similarity, by faiss.

    Args:
        codes: `(n, d)` of the database; they are ℓ2-normalised here.
        kind: "exact" compares with all; "ivf" looks only into the cells of a k-means grid that are nearest to the query
            (for a hundred thousand and more); "hnsw" walks a graph of neighbours (fastest search, slow to build).
        cells, probes: of "ivf": cells in all (√n to 4 √n), and how many are looked into. More probes: slower, more exact.
        links: of "hnsw": neighbours kept in the graph for each code.
    """

    def __init__(self, codes: Float[Tensor, "n d"], kind="exact", cells=None, probes=8, links=32):
        vectors = unit(codes)
        n, d = vectors.shape
        if n == 0:
            raise ValueError("an index of no codes has nothing to search: is the selection of photographs empty?")
        if kind == "exact":
            self._index = faiss.IndexFlatIP(d)
        elif kind == "ivf":
            cells = check_count(int(np.sqrt(n)) if cells is None else cells, n, "cells", "codes")
            self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
            self._index.cp.min_points_per_centroid = 1  # the caller chose the number of cells
            self._index.train(vectors)
            self._index.nprobe = check_count(min(probes, cells), cells, "probes", "cells")
        elif kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(d, links, faiss.METRIC_INNER_PRODUCT)
        else:
            raise ValueError(f"kind={kind!r}: an index is 'exact', 'ivf' or 'hnsw'")
        self._index.add(vectors)

    def __len__(self):
        return self._index.ntotal

    def search(self, queries: Float[Tensor, "m d"], k=10) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """The k nearest codes of each query: cosines, highest first, and numbers of the codes.

        A single code `(d,)` is taken too, and gives `(k,)`. An approximate index that found fewer than k fills up with −1.
        """
        queries = torch.as_tensor(queries)
        if queries.ndim == 1:
            cosines, numbers = self.search(queries[None], k)
            return cosines[0], numbers[0]
        if queries.shape[1] != self._index.d:
            raise ValueError(f"the index holds codes of {self._index.d} dimensions, the queries have {queries.shape[1]}: encode both alike")
        return self._index.search(unit(queries), check_count(k, len(self), "neighbours", "codes in the index"))


def unit(codes: Float[Tensor, "n d"]) -> Float[np.ndarray, "n d"]:
    """Codes of length 1, as faiss takes them; a code of zeros stays one, equally far from all."""
    return np.ascontiguousarray(normalize(check_vectors(codes, "codes").detach().float().cpu(), dim=1).numpy())


# Measures of one ranking. `relevant` says of each answer, best first, whether it is right.


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


def evaluate(codes, labels, queries=None, query_labels=None, ks=(1,), variant="sum") -> dict[str, float]:
    """Mean average precision, precision@k and recall@k of a ranking of `codes` by cosine, in percent.

    Without `queries`, every code asks in turn, and its answers are all the others (leave one out). An answer is right
    if it has the query's label. A query without any right answer does not count; `queries` in the result says how many did.
    Answers that are equally near stay in the order of `codes`.

    Args:
        codes: `(n, d)` of the database; labels: `(n,)`.
        queries: `(m, d)`; query_labels: `(m,)`.
    """
    database = unit(codes)
    labels = check_labels(labels, len(database))
    if queries is None:
        asking, own_labels = database, labels
    else:
        asking = unit(queries)
        own_labels = check_labels(query_labels, len(asking), "query labels")
        if asking.shape[1] != database.shape[1]:
            raise ValueError(f"codes of {database.shape[1]} dimensions, queries of {asking.shape[1]}: encode both alike")
    measures = {"mAP": [], **{f"P@{k}": [] for k in ks}, **{f"R@{k}": [] for k in ks}}
    for start in range(0, len(asking), 256):  # a few queries at once: n² similarities may not fit into memory
        similarity = asking[start : start + 256] @ database.T
        if queries is None:
            similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))] = -np.inf  # itself: last
        order = np.argsort(-similarity, axis=1, kind="stable")
        if queries is None:
            order = order[:, :-1]
        for right in labels[order] == own_labels[start : start + 256, None]:
            if right.any():
                measures["mAP"].append(average_precision(right, variant))
                for k in ks:
                    measures[f"P@{k}"].append(precision_at(right, k))
                    measures[f"R@{k}"].append(recall_at(right, k))
    if not measures["mAP"]:
        raise ValueError("no query has any right answer: are these the labels of these codes?")
    return {name: 100 * float(np.mean(values)) for name, values in measures.items()} | {"queries": len(measures["mAP"])}
