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
    """A function of maps, batch by batch: neither all maps nor all that is on the way to the result is in memory at once."""
    with torch.no_grad():
        return encode(maps, function) if isinstance(maps, Maps) else torch.cat([function(some) for some in check_maps(maps).split(64)])


def some_maps(maps, seed=0, cells=SAMPLE) -> Float[Tensor, "m d h w"]:
    """The maps of so many photographs, drawn at random, that they have so many cells; of all, if there are fewer."""
    n, _, h, w = maps.shape
    rows = np.sort(np.random.default_rng(seed).permutation(n)[: max(1, cells // (h * w))])
    some = check_maps(maps[rows].tensor() if isinstance(maps, Maps) else maps[rows])
    if not torch.isfinite(some).all():
        raise ValueError("the maps hold NaN or infinity: mend what made them")
    if (some - some.mean((0, 2, 3))[:, None, None]).norm(dim=1).max() <= 1e-5 * some.norm(dim=1).max().clamp(min=1e-12):
        raise NothingFound(f"all cells of these {n} photographs are alike, so no part can be told from another: are the maps constant?")
    return some


@dataclass(frozen=True)
class Foreground:
    """Which cells are of an object rather than of its surroundings, guessed: the side of the first principal component of unit cells
    that the border of the pictures has less of [as in Amir et al. 2021 and Oquab et al. 2024, for transformers]."""

    mean: Float[Tensor, "d"]
    side: Float[Tensor, "d"]
    least: float = 0.0

    @classmethod
    def of(cls, maps: Float[Tensor, "n d h w"], clearly=False):
        """From these maps; `clearly` counts only cells at least half as far on that side as the middle one of those on it."""
        cells = F.normalize(check_maps(maps), dim=1)
        mean = cells.mean((0, 2, 3))
        flat = cells.permute(0, 2, 3, 1).flatten(0, 2).sub_(mean)  # in place: cells are gigabytes
        del cells
        side = torch.linalg.eigh((flat.T @ flat).double())[1][:, -1].to(maps.dtype)
        values = (flat @ side).view(len(maps), *maps.shape[2:])
        border = torch.ones(values.shape[1:], dtype=torch.bool)
        border[1:-1, 1:-1] = False
        inside = values[:, ~border].mean() if (~border).any() else values.mean()
        sign = torch.sign(inside - values[:, border].mean())
        on = values[values * sign > 0]
        return cls(mean, sign * side, float(on.abs().median()) / 2 if clearly and len(on) else 0.0)

    def __call__(self, maps: Float[Tensor, "n d h w"]) -> Bool[Tensor, "n h w"]:
        return torch.einsum("ndhw,d->nhw", F.normalize(maps, dim=1), self.side) > self.mean @ self.side + self.least


def foreground(maps: Float[Tensor, "n d h w"]) -> Bool[Tensor, "n h w"]:
    """The foreground of these maps, guessed from them alone."""
    return Foreground.of(maps)(maps)


@dataclass(frozen=True)
class Subspace:
    """The cells' strongest directions, in which filters are learnt: ⟨u, Bᵀx⟩ = ⟨B u, x⟩, so nothing is lost when they are unfolded."""

    basis: Float[Tensor, "d q"]
    scale: float

    @classmethod
    def of(cls, maps, dims: int, seed=0):
        """From the cells of at most some hundred photographs."""
        cells = some_maps(maps, seed).permute(0, 2, 3, 1).flatten(0, 2)
        strongest = torch.linalg.eigh((cells.T @ cells).double())[1].flip(1)[:, : min(dims, cells.shape[1])]
        return cls(strongest.float(), float(cells.norm(dim=1).mean()))

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
