"""Diffusion: a photograph is near to what is near to its neighbours, along the whole chain."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import cg
from torch import Tensor

from .._checks import check_count
from .index import Index, unit


@dataclass
class Diffusion:
    """Ranking by a random walk on the graph of mutual neighbours [Iscen et al. 2017].

    a_ij = max(cos(z_i, z_j), 0)^γ where i and j are among each other's k nearest, else 0;  S = D^(−½) A D^(−½),  D = diag(A 1).
    A query pours y_j = max(cos(q, z_j), 0)^γ into its k nearest, and the ranking is by

        f = (I − α S)^(−1) y,

    solved by conjugate gradient: the matrix is sparse and positive definite, for the eigenvalues of S are at most 1 and α is below.

    Args:
        neighbours: k. alpha: how far it walks; 0: not at all. gamma: γ.
    """

    neighbours: int = 20
    alpha: float = 0.9
    gamma: float = 3.0

    def fit(self, codes: Float[Tensor, "n d"]):
        """The graph of a database."""
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha={self.alpha}: a walk goes on with probability from 0 to below 1")
        self.codes_ = z = unit(codes)
        n = len(z)
        self.index_ = Index(z)
        cosines, found = self.index_.search(z, min(check_count(self.neighbours, max(self.neighbours, 1), "neighbours", "codes") + 1, n))
        rows = np.arange(n)[:, None]
        near = np.where(found == rows, 0, np.maximum(cosines, 0).astype(np.float64) ** self.gamma)  # itself is among its own nearest
        near = sparse.csr_array((near.ravel(), (np.broadcast_to(rows, found.shape).ravel(), found.ravel())), (n, n))
        affinity = near.minimum(near.T)  # where only one of the two is near, the other entry is 0
        scale = 1 / np.sqrt(np.maximum(affinity.sum(1), 1e-12))
        self.graph_ = sparse.diags_array(scale) @ affinity @ sparse.diags_array(scale)
        self.system_ = sparse.eye_array(n) - self.alpha * self.graph_
        return self

    def scores(self, queries: Float[Tensor, "m d"]) -> Float[np.ndarray, "m n"]:
        """f of every query: higher is nearer. What the walk does not reach has 0."""
        if not hasattr(self, "system_"):
            raise ValueError("this diffusion knows no database yet: call fit(codes) first")
        cosines, found = self.index_.search(queries, min(self.neighbours, len(self.index_)))
        poured = np.zeros((len(found), len(self.index_)))
        np.put_along_axis(poured, found, np.maximum(cosines, 0) ** self.gamma, axis=1)
        return np.stack([cg(self.system_, y, rtol=1e-8)[0] for y in poured]) if len(poured) else poured

    def rankings(self, queries: Float[Tensor, "m d"]):
        """For each query the numbers of the whole database: by f, and by cosine what the walk does not reach."""
        cosines, scores = unit(queries) @ self.codes_.T, self.scores(queries)
        for f, cosine in zip(scores, cosines):
            yield np.lexsort((-cosine, -np.round(f, 12)))
