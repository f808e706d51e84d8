"""Learnt parts against true keypoints: where they lie (regression), and which part is where (agreement), in every variant by name."""

from typing import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LinearRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from .parts import agreement, ceiling, parts_at

ACTIVE = 0.5  # a part is in a photograph if its map is above this somewhere


def merge_sides(names: Sequence[str]) -> Int[np.ndarray, "k"]:
    """Number of each keypoint when left and right are one: of CUB's 15 keypoints, 12."""
    plain = [name.replace("left", "").replace("right", "").strip() for name in names]
    return np.array([list(dict.fromkeys(plain)).index(name) for name in plain])


def part_centres(maps: Float[Tensor, "n p h w"], sizes: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "n p 2"], Bool[np.ndarray, "n p"]]:
    """The middle of each part's mass, Σ_r a_pr z_r / Σ_r a_pr in pixels, and whether the part is there at all (max_r a_pr over ½)."""
    n, p, h, w = maps.shape
    maps = maps.double().cpu()
    across, down = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in (w, h))
    mass = maps.sum((2, 3)).clamp(min=1e-12)
    shares = torch.stack([(maps.sum(2) * across).sum(2) / mass, (maps.sum(3) * down).sum(2) / mass], dim=2)
    return shares.numpy() * np.asarray(sizes, dtype=float)[:, None], (maps.amax((2, 3)) > ACTIVE).numpy()


def keypoint_regression(
    maps: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"],
    train: Int[np.ndarray, "a"], test: Int[np.ndarray, "b"],
) -> float:  # fmt: skip
    """KPR: how far, in hundredths of the object's box, keypoints lie from where the parts' centres put them [Huang and Li 2020].

    Centres and keypoints are taken relative to the box, (z − box's corner) / box's sides. For each keypoint, among the training photographs in
    which it is visible: centres and keypoint are standardised, the standardised centres of absent parts set to 0, and a linear regression without
    intercept from 2p numbers to 2 is fitted. Its mean error on the test photographs is averaged over all visible test keypoints. The error
    is one of x / width and y / height together, so it is not the same length in every direction.

    Args:
        maps: of soft parts, from 0 to 1, without any background. boxes: x0, y0, x1, y1 of the objects, in pixels. sizes: (width, height) of the pictures.
    """
    corner, sides = np.asarray(boxes)[:, None, :2], np.asarray(boxes)[:, None, 2:] - np.asarray(boxes)[:, None, :2]
    centres, active = part_centres(maps, sizes)
    inputs, active = ((centres - corner) / sides).reshape(len(maps), -1), active.repeat(2, axis=1)
    targets, visible = (keypoints[:, :, :2] - corner) / sides, keypoints[:, :, 2] > 0
    errors = []
    for k in range(keypoints.shape[1]):
        known, asked = train[visible[train, k]], test[visible[test, k]]
        if len(asked) == 0:
            continue
        if len(known) == 0:
            raise ValueError(f"keypoint {k} is visible in {len(asked)} test photographs and in none for training: give it some, or leave it out")
        where, what = StandardScaler().fit(inputs[known]), StandardScaler().fit(targets[known, k])
        standard = lambda rows: np.where(active[rows], where.transform(inputs[rows]), 0)
        line = LinearRegression(fit_intercept=False).fit(standard(known), what.transform(targets[known, k]))
        found = what.inverse_transform(line.predict(standard(asked)))
        errors.append(np.linalg.norm(found - targets[asked, k], axis=1))
    if not errors:
        raise ValueError("no keypoint is visible in any test photograph, so there is nothing to regress")
    return 100 * float(np.concatenate(errors).mean())


def part_agreement(
    maps: Float[Tensor, "n p h w"], keypoints: Float[np.ndarray, "n k 3"], sizes: Float[np.ndarray, "n 2"], names: Sequence[str], background=False
) -> list[dict]:
    """NMI and ARI of the strongest part at each visible keypoint, in percent: a row for each way in which they are published.

    Keypoints with left and right apart, or merged; keypoints on the background counted as one more part (as Van der Klis et al. 2023 do), or left out
    (as Choudhury et al. 2021 do on the foreground). NMI is over the arithmetic mean of the two entropies, and once each over their geometric mean and
    the larger one. "NMI at best" and "ARI at best" are what a perfect learner of as many parts would reach (`ceiling`).

    Args:
        maps: scores of parts. names: of the keypoints, from which their sides are told. background: the last map is no part, but what is beside the object.
    """
    found, true = parts_at(maps, keypoints, sizes)
    parts, off = maps.shape[1] - background, (found == maps.shape[1] - 1) & background
    labels = {len(names): true} | {len(set(merge_sides(names))): merge_sides(names)[true]}
    rows = []
    for many, own in labels.items():
        for name, kept in {"as a part": np.ones_like(off), "left out": ~off}.items() if background else {"none": ~off}.items():
            if not kept.any():
                continue
            reached, best = agreement(found[kept], own[kept]), agreement(ceiling(own[kept], parts), own[kept])
            other = {mean: 100 * float(normalized_mutual_info_score(own[kept], found[kept], average_method=mean)) for mean in ("geometric", "max")}
            rows.append({
                "keypoints": many, "background": name, "NMI": reached["NMI"], "NMI geometric": other["geometric"], "NMI max": other["max"],
                "ARI": reached["ARI"], "NMI at best": best["NMI"], "ARI at best": best["ARI"], "on background": 100 * float(off.mean()),
            })  # fmt: skip
    return rows
