"""Does a part always mean the same thing? Which keypoints lie in a box around its strongest cell, photograph by photograph."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._checks import check_count


def touched(
    maps: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], sizes: Float[np.ndarray, "n 2"], side=32 / 224, inside=True
) -> Bool[np.ndarray, "n p k"]:
    """Which visible keypoints lie in the box, `side` of the picture wide and high, around the strongest cell of each part.

    Args:
        inside: boxes are spread over the picture so that the first and the last cell's touch its border, as those of PIP-Net; otherwise
            they are centred on the middle of the cell, and cut off at the border, as those of ProtoPNet's evaluation.
    """
    n, p, h, w = maps.shape
    best = maps.flatten(2).argmax(2).cpu().numpy()
    cell, cells = np.stack([best % w, best // w], axis=2), np.array([w, h])
    if inside:
        start = np.where(cells > 1, cell * (1 - side) / np.maximum(cells - 1, 1), (1 - side) / 2)
    else:
        start = (cell + 0.5) / cells - side / 2
    where = np.asarray(keypoints)[:, None, :, :2] / np.asarray(sizes, dtype=float)[:, None, None]
    within = (where >= start[:, :, None] - 1e-9) & (where <= start[:, :, None] + side + 1e-9)
    return within.all(3) & (np.asarray(keypoints)[:, None, :, 2] > 0)


def purity(
    maps: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], sizes: Float[np.ndarray, "n 2"], merged: Int[np.ndarray, "k"] | None = None, top=10
) -> dict[str, float]:
    """PIP-Net's purity of parts, in percent [Nauta et al. 2023, section 4].

    Of each part the `top` photographs that answer most strongly are looked at, in each a box of 32/224 of the picture around the strongest
    cell. For each keypoint: the share of the photographs, among those where it is visible, whose box holds it. A part's purity is that of its
    best keypoint.

    Args:
        merged: number of each keypoint when left and right are one (`merge_sides`): the box holds it if it holds either.

    Returns:
        "purity", the mean over parts; "spread", their standard deviation; "pure", the share of parts above one half.
    """
    top = check_count(min(top, len(maps)), len(maps), "photographs", "photographs")
    merged = np.arange(keypoints.shape[1]) if merged is None else np.asarray(merged)
    within, visible = touched(maps, keypoints, sizes), np.asarray(keypoints)[:, :, 2] > 0
    join = lambda flags: np.stack([flags[..., merged == m].any(-1) for m in range(merged.max() + 1)], axis=-1)
    within, visible = join(within), join(visible)
    first = (-maps.flatten(2).amax(2).cpu().numpy()).argsort(0, kind="stable")[:top]  # (top, p)
    held = within[first, np.arange(maps.shape[1])[None]].sum(0)
    seen = visible[first].sum(0)
    shares = 100 * (held / np.maximum(seen, 1)).max(1)
    return {"purity": float(shares.mean()), "spread": float(shares.std()), "pure": 100 * float((shares > 50).mean())}


def consistency(
    maps: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], sizes: Float[np.ndarray, "n 2"], labels=None, least=0.8
) -> float:
    """The share of parts, in percent, that mean one thing [Huang et al. 2023]: one of the keypoints lies in the box, 72/224 of the picture, around
    the strongest cell in at least `least` of the photographs in which that keypoint is visible.

    A ProtoPNet's parts are each of one class, and asked about its photographs alone. Parts that are of no class are asked about all photographs, or, with
    `labels` given, about those of each class in turn: then it is the share of pairs of part and class.
    """
    within, visible = touched(maps, keypoints, sizes, 72 / 224, inside=False), np.asarray(keypoints)[:, :, 2] > 0
    labels = np.zeros(len(maps), dtype=int) if labels is None else np.asarray(labels)
    consistent = []
    for label in np.unique(labels):
        own = labels == label
        shares = within[own].sum(0) / np.maximum(visible[own].sum(0), 1)
        consistent.append((shares >= least).any(1))
    return 100 * float(np.mean(consistent))


def stability(
    maps: Float[Tensor, "n p h w"], disturbed: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], sizes: Float[np.ndarray, "n 2"]
) -> float:
    """The share of photographs, in percent, averaged over parts, in which the box of `consistency` holds the same keypoints as with noise on the picture.

    Args:
        disturbed: the parts' maps of the same photographs with noise on them; Huang et al. (2023) take a standard deviation of 0.2 of the normalised
            pictures, cut off at ±0.25 (`disturb`).
    """
    here, there = (touched(some, keypoints, sizes, 72 / 224, inside=False) for some in (maps, disturbed))
    return 100 * float((here == there).all(2).mean())


def disturb(pictures: Float[Tensor, "n 3 H W"], std=0.2, most=0.25, seed=0) -> Float[Tensor, "n 3 H W"]:
    """Normalised pictures with noise that an eye hardly sees: Gaussian, cut off at ±`most`."""
    noise = torch.empty(pictures.shape).normal_(0, std, generator=torch.Generator().manual_seed(seed))
    return pictures + noise.clamp(-most, most).to(pictures)
