"""Asking again with what was found: query expansion, and the same done to the whole database beforehand."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from .._checks import check_count, check_vectors
from .index import Index, unit


def expand(queries: Float[Tensor, "m d"], database: Float[Tensor, "n d"], k=5, alpha=0.0, among=False) -> Float[Tensor, "m d"]:
    """Each query plus its k nearest codes, of length 1: q + Σ_j max(cos(q, z_j), 0)^α z_j over the k nearest j.

    With α = 0 it is average query expansion [Chum et al. 2007]: all count alike. Larger α trusts the nearer ones more; α = 3 is
    usual [Radenović et al. 2019, section 3.5].

    Args:
        among: the queries *are* the database, row by row: a code is not among its own answers.
    """
    z = torch.from_numpy(unit(database))
    asking = torch.from_numpy(unit(queries))
    if among and asking.shape != z.shape:
        raise ValueError(f"among=True says that the queries are the database, but they are {tuple(asking.shape)} and {tuple(z.shape)}")
    check_count(k, len(z) - among, "answers to add", "codes")
    cosines, found = Index(z).search(asking, min(k + among, len(z)))
    if among:  # itself is first, unless codes that are the same come before it
        itself = found == np.arange(len(z))[:, None]
        itself[:, -1] |= ~itself.any(1)
        cosines, found = cosines[~itself].reshape(len(z), k), found[~itself].reshape(len(z), k)
    weights = torch.from_numpy(cosines).clamp(min=0) ** alpha
    return normalize(asking + torch.einsum("mk,mkd->md", weights, z[torch.from_numpy(found)]), dim=1)


def augment(database: Float[Tensor, "n d"], k=5, alpha=0.0) -> Float[Tensor, "n d"]:
    """Database augmentation: every code expanded by its own k nearest others, once, before anyone asks [Arandjelović and Zisserman 2012]."""
    return expand(database, database, k, alpha, among=True)


def merge_scales(*codes: Float[Tensor, "n d"], power=1.0) -> Float[Tensor, "n d"]:
    """One code of the same photographs seen in several sizes: the generalised mean of their codes, each of length 1 first.

    With power 1 it is their sum; GeM's codes are merged with GeM's own power [Radenović et al. 2019, section 5.2], and then are not negative.
    """
    stacked = torch.stack([normalize(check_vectors(some, "codes"), dim=1) for some in codes])
    if power != 1.0 and (stacked < 0).any():
        raise ValueError(f"power={power} of negative numbers: whitened codes are merged with power 1")
    return normalize(stacked.pow(power).mean(0).pow(1 / power), dim=1)
