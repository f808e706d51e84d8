"""Codes: one vector a photograph, from its feature map."""

from typing import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from . import regions
from ._checks import check_maps
from .features import Maps
from .whitening import PCAWhitening


def encode(maps: Maps, pooling: Callable, batch=64, **options) -> Float[Tensor, "n D"]:
    """Codes of all photographs, read from disk batch by batch: `encode(maps, gem, p=3)`."""
    if not isinstance(maps, Maps):
        raise TypeError(f"encode reads Maps, which partlib.extract makes, not {type(maps).__name__}: a tensor of maps goes into the pooling itself, as in gem(maps)")
    if len(maps) == 0:
        raise ValueError("there are no maps to encode: is the selection of photographs empty?")
    return torch.cat([pooling(some, **options) for some in maps.batches(batch)])


def gap(maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d"]:
    """Global average pooling: the mean over the cells."""
    return check_maps(maps).mean((2, 3))


def mac(maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d"]:
    """Maximum activations of convolutions: the maximum over the cells [Razavian et al. 2016]."""
    return check_maps(maps).amax((2, 3))


def spoc(maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d"]:
    """Sum-pooled convolutional features with a centre prior [Babenko and Lempitsky 2015, section 4].

    A Gaussian around the middle of the picture weighs the cells; σ is a third of the distance from the middle to the
    nearest border.
    """
    h, w = check_maps(maps).shape[2:]
    sigma = min(h, w) / 2 / 3
    y, x = (torch.arange(side, device=maps.device) - (side - 1) / 2 for side in (h, w))
    weight = torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2)).to(maps.dtype)
    return (maps * weight).sum((2, 3))


def gem(maps: Float[Tensor, "n d h w"], p=3.0, eps=1e-6) -> Float[Tensor, "n d"]:
    """Generalised mean (mean x^p)^(1/p): the average at p = 1, the maximum as p → ∞ [Radenović et al. 2019, section 3.2].

    Values under `eps` count as `eps`: the mean is of positive numbers. `p` may be a tensor of one number, which is learned.
    """
    if torch.as_tensor(p).numel() != 1 or not p > 0:
        raise ValueError(f"p={p}: the generalised mean takes one number p > 0 (1 is the average)")
    values = check_maps(maps).clamp(min=eps)
    # x^p overflows for large x and vanishes for small ones. Relative to the largest it does neither, and the mean is the
    # same, gradient too: it grows as its values do.
    largest = values.detach().amax((2, 3), keepdim=True)
    return largest[:, :, 0, 0] * (values / largest).pow(p).mean((2, 3)).pow(1 / p)


def rmac(maps: Float[Tensor, "n d h w"], levels=3, whitening: PCAWhitening | None = None) -> Float[Tensor, "n d"]:
    """Regional maximum activations of convolutions, of length 1 [Tolias, Sicre and Jégou 2016, section 3.2].

    Each window's maxima are ℓ2-normalised, PCA-whitened, ℓ2-normalised again, and summed over the windows.

    Args:
        whitening: fitted on such regions (`rmac_regions`) of *other* photographs; without it that step is left out.
    """
    vectors = rmac_regions(maps, levels)
    if whitening is not None:
        vectors = normalize(whitening.transform(vectors), dim=2)
    return normalize(vectors.sum(1), dim=1)


def rmac_regions(maps: Float[Tensor, "n d h w"], levels=3) -> Float[Tensor, "n r d"]:
    """The ℓ2-normalised maxima of R-MAC's windows: what its whitening is fitted on."""
    h, w = check_maps(maps).shape[2:]
    return normalize(regions.pool(maps, regions.rmac(h, w, levels), "max"), dim=2)


# Codes of part scores S `(n, p, r)`, which `mining.Parts` makes.


def bag_of_parts(scores: Float[Tensor, "n p r"], how="max") -> Float[Tensor, "n D"]:
    """One number a part: b_p = max_r S_pr, or the mean over the regions; "both" puts the two side by side."""
    if how not in ("max", "mean", "both"):
        raise ValueError(f"how={how!r}: a bag of parts is pooled by 'max', 'mean' or 'both'")
    pooled = {"max": scores.amax(2), "mean": scores.mean(2)}
    return torch.cat([normalize(b, dim=1) for b in pooled.values()], dim=1) if how == "both" else pooled[how]


def spatial_bag(scores: Float[Tensor, "n p r"], boxes: Int[Tensor, "r 4"], cells: tuple[int, int], how="max") -> Float[Tensor, "n D"]:
    """Bags of the whole picture and of its four quarters, 1 × 1 + 2 × 2: five to a photograph, each of length 1.

    A region belongs to the quarter that holds its centre; one on a border to the lower or the right one. A quarter without
    any region has a bag of zeros.

    Args:
        boxes: of the regions, in cells. cells: (h, w) of the maps.
    """
    h, w = cells
    boxes = torch.as_tensor(boxes)
    quarter = 2 * (boxes[:, 1] + boxes[:, 3] >= h) + 1 * (boxes[:, 0] + boxes[:, 2] >= w)
    chosen = [slice(None), *(quarter == q for q in range(4))]
    empty = scores.new_zeros(bag_of_parts(scores, how).shape)
    bags = [bag_of_parts(some, how) if (some := scores[:, :, own]).shape[2] else empty for own in chosen]
    return torch.cat([normalize(bag, dim=1) for bag in bags], dim=1)


def part_descriptors(x: Float[Tensor, "n r d"], scores: Float[Tensor, "n p r"]) -> Float[Tensor, "n p*d"]:
    """CoP, "CNN on parts": the descriptor of each part's best region, one after the other [Sicre et al. 2017].

    Long: whiten it to a few hundred dimensions by PCA.
    """
    where = scores.argmax(2)
    return x.gather(1, where[:, :, None].expand(-1, -1, x.shape[2])).flatten(1)


def join(*codes: Float[Tensor, "n D"]) -> Float[Tensor, "n sum"]:
    """Several codes of the same photographs as one: each of length 1 first, so that each has the same say."""
    if len({len(code) for code in codes}) != 1:
        raise ValueError(f"codes of {', '.join(str(len(code)) for code in codes)} photographs: join those of the same ones")
    return normalize(torch.cat([normalize(code, dim=1) for code in codes], dim=1), dim=1)
