"""A few parts that all photographs' objects share, found by where on the object a cell lies, and the descriptor of each."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_maps
from ..clustering import KMeans
from ..mining import NothingFound
from ..whitening import PCAWhitening
from .cells import SAMPLE, Foreground, each, some_maps

TEMPERATURE = 0.1  # of cosines: how decidedly a cell is of one landmark


@dataclass(frozen=True)
class Landmarks:
    """Head, wing and tail of birds, say, though nothing names them: k parts, each cell of the foreground shared out among them.

    What a cell tells is mostly which object it is of, and less where on the object it lies. So the mean of the photograph's own
    foreground is taken away, and with it what all of the object's cells share:

        y_r = x_r / ‖x_r‖ − mean of x_s / ‖x_s‖ over the foreground,    S_kr = cos(m_k, Bᵀ y_r − t),    a_kr = softmax_k(S_kr / 0.1),

    a_kr = 0 off the foreground. B and t are the first principal directions and the mean of all such cells, m_k the centres of spherical
    k-means. The descriptor of landmark k is the generalised mean of its cells, v_k = (Σ_r a_kr x_r³)^(1/3).
    """

    foreground: Foreground
    basis: Float[Tensor, "d q"]
    middle: Float[Tensor, "q"]
    filters: Float[Tensor, "k q"]

    @classmethod
    def of(cls, maps, count=8, dims=64, seed=0):
        """From photographs alone.

        Raises:
            NothingFound: fewer cells on the foreground than landmarks.
        """
        some = some_maps(maps, seed, 3 * SAMPLE)
        foreground = Foreground.of(some, clearly=True)
        on = foreground(some)
        cells = torch.cat([_placed(few, own).permute(0, 2, 3, 1)[own] for few, own in zip(some.split(64), on.split(64))])  # copies of all would be gigabytes
        if len(cells) <= count:
            raise NothingFound(f"{count} landmarks, but only {len(cells)} cells on the foreground of {len(some)} photographs: ask for fewer")
        turned = PCAWhitening(min(dims, len(cells) - 1, cells.shape[1] - 1), power=0).fit(cells)
        found = KMeans(count, spherical=True, restarts=10, seed=seed).fit(turned.transform(cells))
        return cls(foreground, turned.directions_, turned.mean_ @ turned.directions_, found.centroids_)

    def __len__(self):
        return len(self.filters)

    def scores(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n k h w"]:
        """S of every cell, on the foreground or not: which landmark it is most like."""
        return self._scored(maps, self.foreground(check_maps(maps)))

    def shares(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n k h w"]:
        """a: on the foreground they sum to 1 over the landmarks."""
        on = self.foreground(check_maps(maps))
        return torch.softmax(self._scored(maps, on) / TEMPERATURE, dim=1) * on[:, None]

    def describe(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n k*d"]:
        """The descriptors of a photograph's landmarks, one after the other, together of length 1; zeros where it has no foreground."""
        cells = maps.clamp(min=0).flatten(2)
        largest = cells.amax(2, keepdim=True).clamp(min=1e-6)  # powers of shares of it neither overflow nor vanish
        sums = torch.einsum("nkr,ndr->nkd", self.shares(maps).flatten(2), (cells / largest).pow(3))
        return F.normalize((sums.clamp(min=0).pow(1 / 3) * largest.transpose(1, 2)).flatten(1), dim=1)

    def maps(self, maps, finer=1) -> Float[Tensor, "n k H W"]:
        """S of all photographs, batch by batch: what `evaluation.parts_at` and `part_overlap` take.

        Args:
            finer: cells are interpolated to so many times as many a side before they are scored, which tells more than scores interpolated.
        """
        return each(maps, lambda some: self.scores(F.interpolate(F.normalize(some, dim=1), scale_factor=finer, mode="bilinear", align_corners=False)))

    def _scored(self, maps, on: Bool[Tensor, "n h w"]):
        turned = torch.einsum("ndhw,dq->nqhw", _placed(maps, on), self.basis) - self.middle[:, None, None]
        return torch.einsum("nqhw,kq->nkhw", F.normalize(turned, dim=1), self.filters)


def _placed(maps, on):
    """y: unit cells less the mean of their photograph's foreground, of length 1."""
    cells, weight = F.normalize(maps, dim=1), on[:, None].to(maps.dtype)
    mean = (cells * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return F.normalize(cells - mean, dim=1)
