"""What matching pairs of photographs teach a code, without a network: learned whitening; and pairs that need no labels."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .._checks import check_count, check_vectors
from .index import Index


def mutual_neighbours(codes: Float[Tensor, "n d"], k: int) -> Int[np.ndarray, "q 2"]:
    """Pairs i < j that are among each other's k nearest: two that choose each other are seldom wrong."""
    n = len(codes)
    found = Index(codes).search(codes, check_count(k, n - 1, "neighbours", "other codes") + 1)[1]
    near = np.zeros((n, n), dtype=bool)
    np.put_along_axis(near, found, True, axis=1)
    return np.argwhere(np.triu(near & near.T, 1))


@dataclass
class PairWhitening:
    """Learned whitening: what differs within matching pairs should not count [Mikolajczyk and Matas 2007; Radenović et al. 2019, section 3.4].

        W = mean over the pairs of (z_i − z_j)(z_i − z_j)ᵀ + ε (tr W / d) I,    y = W^(−½) (z − μ),    then PCA of y.

    Args:
        dims: of the result. shrinkage: ε; pairs fewer than dimensions need some.
    """

    dims: int = 128
    shrinkage: float = 0.1

    def fit(self, codes: Float[Tensor, "n d"], pairs: Int[np.ndarray, "q 2"]):
        """From codes and the numbers of those that match."""
        z = normalize(check_vectors(codes, "codes").double(), dim=1)
        pairs = torch.as_tensor(np.asarray(pairs))
        if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
            raise ValueError(f"expected pairs (q, 2) of numbers of codes, one at least, not {tuple(pairs.shape)}: mutual_neighbours(codes, k) finds some")
        d = check_count(self.dims, z.shape[1], "dimensions", "dimensions of the codes") and z.shape[1]
        self.mean_ = z.mean(0)
        apart = z[pairs[:, 0]] - z[pairs[:, 1]]
        within = apart.T @ apart / len(apart)
        within += self.shrinkage * within.diagonal().mean().clamp(min=1e-12) * torch.eye(d, dtype=z.dtype)
        whiten = torch.linalg.inv(torch.linalg.cholesky(within)).T  # rows times this are white; PCA turns away how it is turned
        whitened = (z - self.mean_) @ whiten
        turned = torch.linalg.eigh(whitened.T @ whitened)[1].flip(1)[:, : self.dims]
        self.projection_ = whiten @ turned
        return self

    def transform(self, codes: Float[Tensor, "n d"]) -> Float[Tensor, "n dims"]:
        """Whitened codes of length 1."""
        if not hasattr(self, "mean_"):
            raise ValueError("this whitening knows no pairs yet: call fit(codes, pairs) first")
        z = normalize(check_vectors(codes, "codes").double(), dim=1)
        return normalize((z - self.mean_) @ self.projection_, dim=1).float()
