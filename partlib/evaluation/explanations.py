"""What an explanation is worth: does it add up, does the network need what it names, does it lie where the truth is known to lie?

A map is any array `(h, w)` of importances; it is laid over its picture cell by cell, whatever the picture's size.
"""

from typing import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from .._checks import check_count
from ..regions import largest_area

BASELINES = ("blur", "mean", "grey")

# True to the network: arithmetic.


def completeness_error(contributions: Float[Tensor, "n ..."], scores: Float[Tensor, "n"], constant=0.0) -> Float[Tensor, "n"]:
    """How far the sum of contributions and constant is from the score, as a share of the score: by how much an explanation fails to add up."""
    return (contributions.flatten(1).sum(1) + constant - scores).abs() / scores.abs().clamp(min=1e-12)


def ablation_error(contributions: Float[Tensor, "n p"], scores: Float[Tensor, "n"], without: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
    """How far the contribution of p is from the score less the score without p, as a share of the score; the worst p counts.

    So: whether taking a thing away takes just what was said of it.

    Args:
        without: the score of the network itself, run again without thing p.
    """
    return (scores[:, None] - without - contributions).abs().amax(1) / scores.abs().clamp(min=1e-12)


# True to the network: what happens to its answer when the picture is changed.


def baseline(picture: Float[Tensor, "3 H W"], how="blur") -> Float[Tensor, "3 H W"]:
    """What takes the place of what is removed: the picture blurred (σ a twentieth of its width), its mean colour, or grey (½)."""
    if how not in BASELINES:
        raise ValueError(f"how={how!r}: what is removed is replaced by {', '.join(BASELINES)}")
    if how == "blur":
        sigma = picture.shape[2] / 20
        return gaussian_blur(picture, 2 * min(round(2 * sigma), (min(picture.shape[1:]) - 1) // 2) + 1, sigma)
    return torch.full_like(picture, 0.5) if how == "grey" else picture.mean((1, 2), keepdim=True).expand_as(picture)


def deletion(score: Callable, picture: Float[Tensor, "3 H W"], values: Float[Tensor, "h w"], how="blur", steps=10) -> Float[Tensor, "steps+1"]:
    """The score while the most important cells are removed, a share of 0, 1/steps, … 1 of them [Petsiuk et al. 2018]: it should fall soon.

    Args:
        score: pictures `(m, 3, H, W)`, values 0 to 1 → `(m,)`. how: of `baseline`.
    """
    return score(_mixed(picture, baseline(picture, how), values, steps))


def insertion(score: Callable, picture: Float[Tensor, "3 H W"], values: Float[Tensor, "h w"], how="blur", steps=10) -> Float[Tensor, "steps+1"]:
    """The score while the most important cells are put into the baseline, likewise: it should rise soon."""
    return score(_mixed(baseline(picture, how), picture, values, steps))


def area(curve: Float[Tensor, "m"]) -> float:
    """The area under a curve over shares from 0 to 1, by trapezoids: the mean height."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def _mixed(before, after, values, steps):
    """Pictures in which more and more cells, the largest values first, are taken from `after` in place of `before`; equal ones row by row."""
    check_count(steps, values.numel(), "steps", "cells")
    order = values.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    counts = torch.linspace(0, len(order), steps + 1, device=order.device).round()
    changed = (rank[None] < counts[:, None]).view(-1, 1, *values.shape).to(before.dtype)
    return torch.lerp(before[None], after[None], F.interpolate(changed, before.shape[1:], mode="nearest-exact"))


# True to the world: where the object is known.


def points_at(values: Float[Tensor, "h w"], mask: Bool[np.ndarray, "H W"]) -> bool:
    """The pointing game: whether the middle of the strongest cell is on the object [Zhang et al. 2018]. A box is a mask, too: `box_mask`."""
    h, w = values.shape
    y, x = divmod(int(values.argmax()), w)
    return bool(mask[int((y + 0.5) * mask.shape[0] / h), int((x + 0.5) * mask.shape[1] / w)])


def energy(values: Float[Tensor, "h w"], mask: Bool[np.ndarray, "H W"]) -> float:
    """Which share of the positive values lies on the object, each spread evenly over its cell; 0 where nothing is positive."""
    positive = values.clamp(min=0)
    return float((positive * in_cells(mask, values.shape)).sum() / positive.sum().clamp(min=1e-12))


def localisation(values: Float[Tensor, "h w"], mask: Bool[np.ndarray, "H W"], threshold=0.2) -> tuple[float, float]:
    """Overlap (IoU) with the object of what is above a share of the maximum: of all of it, and of the box of its largest area with the object's.

    The map is enlarged bilinearly to the size of the mask. Where nothing is positive, the whole picture is the answer, as in `cam.object_box`.
    """
    mask = np.asarray(mask)
    large = F.interpolate(values[None, None].float(), mask.shape, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    found = large >= threshold * large.max() if large.max() > 0 else np.ones_like(mask)
    y, x = np.nonzero(mask)
    around = box_mask((x.min(), y.min(), x.max() + 1, y.max() + 1), mask.shape) if len(x) else mask
    return _iou(found, mask), _iou(box_mask(largest_area(found), mask.shape), around)


def in_cells(masks: Bool[np.ndarray, "... H W"], cells: tuple[int, int]) -> Float[Tensor, "... h w"]:
    """The share of each cell that a mask covers."""
    masks = torch.from_numpy(np.asarray(masks)).float()
    return F.adaptive_avg_pool2d(masks.view(-1, 1, *masks.shape[-2:]), cells).view(*masks.shape[:-2], *cells)


def box_mask(box, shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A box x0, y0, x1, y1 in pixels as a mask of a picture of `shape` = (H, W): pixels whose middle is inside."""
    x0, y0, x1, y1 = box
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + 0.5 > x0) & (x + 0.5 < x1) & (y + 0.5 > y0) & (y + 0.5 < y1)


def _iou(a, b):
    return float((a & b).sum() / max((a | b).sum(), 1))


# True to what was learnt: two explanations compared.


def rank_correlation(a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."]) -> Float[np.ndarray, "n"]:
    """Spearman's correlation of two maps of each photograph, or of any two lists of numbers; NaN where one of them is constant.

    Sanity: the maps of a network and of one whose weights were drawn anew should not agree [Adebayo et al. 2018]. Interventions: what
    an explanation says of each true part should agree with what its removal does [Hesse et al. 2023, "single deletion"].
    """
    a, b = (torch.as_tensor(values).flatten(1).cpu().numpy() for values in (a, b))
    constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    return np.array([np.nan if flat else spearmanr(x, y).statistic for x, y, flat in zip(a, b, constant)])
