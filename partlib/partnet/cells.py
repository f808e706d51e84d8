"""Cells before any part is learnt: which are of an object, and the directions that hold nearly all of them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_maps
from ..encoding import encode
from ..features import Maps
from ..heads import PartHead
from ..mining import NothingFound

SAMPLE = 20_000  # cells from which directions and the first filters come, however many there are


def each(maps, function):
    """A function of maps, batch by batch where they are on disk."""
    with torch.no_grad():
        return encode(maps, function) if isinstance(maps, Maps) else function(check_maps(maps))


def foreground(maps: Float[Tensor, "n d h w"]) -> Bool[Tensor, "n h w"]:
    """Which cells are of an object rather than of its surroundings, guessed: the side of the first principal component of unit cells
    that the border of the pictures has less of [as in Amir et al. 2021 and Oquab et al. 2024, for transformers]."""
    cells = F.normalize(check_maps(maps), dim=1)
    mean = cells.mean((0, 2, 3), keepdim=True)
    flat = (cells - mean).permute(0, 2, 3, 1).flatten(0, 2)
    side = torch.linalg.eigh((flat.T @ flat).double())[1][:, -1].to(maps.dtype)
    values = torch.einsum("ndhw,d->nhw", cells - mean, side)
    border = torch.ones(values.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    inside = values[:, ~border].mean() if (~border).any() else values.mean()
    return values * torch.sign(inside - values[:, border].mean()) > 0


@dataclass(frozen=True)
class Subspace:
    """The cells' strongest directions, in which filters are learnt: ⟨u, Bᵀx⟩ = ⟨B u, x⟩, so nothing is lost when they are unfolded."""

    basis: Float[Tensor, "d q"]
    scale: float

    @classmethod
    def of(cls, maps, dims: int, seed=0):
        """From the cells of at most some hundred photographs."""
        n, d, h, w = maps.shape
        rows = np.sort(np.random.default_rng(seed).permutation(n)[: max(1, SAMPLE // (h * w))])
        some = maps[rows].tensor() if isinstance(maps, Maps) else maps[torch.from_numpy(rows)]
        cells = check_maps(some).permute(0, 2, 3, 1).flatten(0, 2)
        lengths = cells.norm(dim=1)
        if not torch.isfinite(cells).all():
            raise ValueError("the maps hold NaN or infinity: mend what made them")
        if (cells - cells.mean(0)).norm(dim=1).max() <= 1e-5 * lengths.max().clamp(min=1e-12):
            raise NothingFound(f"all cells of these {n} photographs are alike, so no part can be told from another: are the maps constant?")
        strongest = torch.linalg.eigh((cells.T @ cells).double())[1].flip(1)[:, : min(dims, d)]
        return cls(strongest.float(), float(lengths.mean()))

    @property
    def dims(self):
        return self.basis.shape[1]

    def reduce(self, maps) -> Float[Tensor, "n q h w"]:
        """Maps in these directions."""
        return each(maps, lambda some: torch.einsum("ndhw,dq->nqhw", some, self.basis))

    def unfold(self, head: PartHead) -> PartHead:
        """The same head on all channels."""
        weight = torch.einsum("pqhw,dq->pdhw", head.filters.weight.detach(), self.basis)
        head.filters = torch.nn.Conv2d(weight.shape[1], len(weight), 1, bias=False)
        head.filters.weight.data = weight.contiguous()
        return head
