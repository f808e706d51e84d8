"""The nearest codes by cosine, exactly or nearly."""

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .._checks import check_count, check_vectors


class Index:
    """Nearest neighbours of codes by cosine similarity, by faiss.

    Args:
        codes: `(n, d)` of the database; they are ℓ2-normalised here.
        kind: "exact" compares with all; "ivf" looks only into the cells of a k-means grid that are nearest to the query
            (for a hundred thousand and more); "hnsw" walks a graph of neighbours (fastest search, slow to build); "ivfpq" is "ivf" with
            codes in fewer bytes, for collections that do not fit into memory [Jégou, Douze and Schmid 2011].
        cells, probes: of "ivf" and "ivfpq": cells in all (√n to 4 √n), and how many are looked into. More probes: slower, more exact.
        links, width: of "hnsw": neighbours kept in the graph for each code, and how many codes a search holds in view on its way.
        pieces: of "ivfpq": bytes of a code; each says which of 256 centroids a piece of it is nearest to.
        again: of "ivfpq": so many times k answers are compared once more, by codes of a byte a number; 0 keeps the pieces alone.
        seed: of the sample of codes from which the centroids of "ivfpq" are learnt.
    """

    def __init__(self, codes: Float[Tensor, "n d"], kind="exact", cells=None, probes=8, links=32, width=64, pieces=16, again=4, seed=0):
        vectors = unit(codes)
        n, d = vectors.shape
        if n == 0:
            raise ValueError("an index of no codes has nothing to search: is the selection of photographs empty?")
        if kind in ("ivf", "ivfpq"):
            cells = check_count(int(np.sqrt(n)) if cells is None else cells, n, "cells", "codes")
            probes = check_count(min(probes, cells), cells, "probes", "cells")
        if kind == "exact":
            self._index = faiss.IndexFlatIP(d)
        elif kind == "ivf":
            self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
            self._index.cp.min_points_per_centroid = 1  # the caller chose the number of cells
            self._index.train(vectors)
            self._index.nprobe = probes
        elif kind == "ivfpq":
            self._index = _compressed(vectors, cells, probes, pieces, again, seed)
        elif kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(d, links, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efSearch = width
        else:
            raise ValueError(f"kind={kind!r}: an index is 'exact', 'ivf', 'ivfpq' or 'hnsw'")
        self._index.add(vectors)

    def __len__(self):
        return self._index.ntotal

    @property
    def bytes(self) -> int:
        """How large it is, as in a file."""
        return len(faiss.serialize_index(self._index))

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


def _compressed(vectors, cells, probes, pieces, again, seed):
    """An inverted file of product-quantised residuals, and what is needed to look at the best of them again."""
    n, d = vectors.shape
    if d % pieces or n < 256:
        raise ValueError(f"'ivfpq' cuts codes of {d} numbers into {pieces} pieces of 256 centroids each: take pieces that divide {d}, and 256 codes or more")
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(d), d, cells, pieces, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.nprobe = probes
    if again:
        index = faiss.IndexRefine(index, faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT))
        index.k_factor = again
    sample = np.random.default_rng(seed).permutation(n)[: max(40 * cells, 65_536)]
    index.train(vectors[np.sort(sample)])
    return index


def unit(codes: Float[Tensor, "n d"]) -> Float[np.ndarray, "n d"]:
    """Codes of length 1, as faiss takes them; a code of zeros stays one, equally far from all."""
    return np.ascontiguousarray(normalize(check_vectors(codes, "codes").detach().float().cpu(), dim=1).numpy())
