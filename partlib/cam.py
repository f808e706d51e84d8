"""Class activation maps: which cells a decision came from, exactly.

A network that averages its last map and applies a linear layer gives class c the logit

    ℓ_c = b_c + Σ_k w_ck (1/hw) Σ_xy f_k(x, y) = b_c + Σ_xy M_c(x, y),    M_c(x, y) = (1/hw) Σ_k w_ck f_k(x, y).

So M_c is a picture of the logit: signed, and its cells add up to the logit less the bias. Zhou et al. (CVPR 2016) draw
it without the factor 1/hw, and each map stretched to its own range, which hides both sign and size. Neither is done here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_maps
from .heads import PartHead


@dataclass(frozen=True)
class ClassMaps:
    """Signed contributions of cells to logits: `maps` (n, c, h, w) and the constant `bias` (c,)."""

    maps: Float[Tensor, "n c h w"]
    bias: Float[Tensor, "c"]

    @property
    def logits(self) -> Float[Tensor, "n c"]:
        """The logits that these maps explain: their sums, plus the bias."""
        return self.maps.sum((2, 3)) + self.bias


def class_maps(maps: Float[Tensor, "n d h w"], layer: nn.Linear) -> ClassMaps:
    """What each cell adds to each class's logit, for a linear layer on the average-pooled map.

    Args:
        layer: `backbone.classifier`, or a linear layer trained on GAP codes.
    """
    n, d, h, w = check_maps(maps).shape
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"class_maps explains a linear layer (nn.Linear), not {type(layer).__name__}: some backbones have none on their pooled map")
    if layer.in_features != d:
        raise ValueError(f"the layer takes {layer.in_features} channels, the maps have {d}: take the layer that was trained on these maps")
    contributions = torch.einsum("ndhw,cd->nchw", maps, layer.weight) / (h * w)
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
    return ClassMaps(contributions, bias)


def enlarge(cells: Float[Tensor, "... h w"], picture: tuple[int, int]) -> Float[Tensor, "... height width"]:
    """Maps drawn at the size (width, height) of their picture, bilinearly; values stay those of the cells."""
    width, height = picture
    flat = cells.reshape(-1, 1, *cells.shape[-2:]).float()
    return F.interpolate(flat, (height, width), mode="bilinear", align_corners=False).reshape(*cells.shape[:-2], height, width)


def object_box(values: Float[Tensor, "height width"], threshold=0.2) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) of the largest connected area above a share of the maximum [Zhou et al. 2016, section 3.2].

    Where nothing is positive there is no evidence for the class, and the box is the whole picture.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: it is a share of the maximum, above 0 and up to 1")
    values = torch.as_tensor(values).detach().cpu().numpy()
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected one map (height, width), not {values.shape}: take that of one photograph and one class, as in maps[0, c]")
    if not np.isfinite(values).all():
        raise ValueError("the map holds NaN or infinity: mend what made it")
    top = values.max()
    areas, count = ndimage.label(values >= threshold * top) if top > 0 else (np.ones(values.shape, int), 1)
    largest = 1 + np.argmax(np.bincount(areas.ravel(), minlength=count + 1)[1:])
    y, x = ndimage.find_objects((areas == largest).astype(int))[0]
    return x.start, y.start, x.stop, y.stop


# Part-CAM: a part head's logit is ℓ_c = Σ_p V_cp b_p, so its parts' contributions need not be estimated.


@dataclass(frozen=True)
class PartContributions:
    """κ[n, c, p] = V_cp b_p, what each part adds to each logit, and the `constant` (c,) that a batch norm leaves."""

    values: Float[Tensor, "n c p"]
    constant: Float[Tensor, "c"]

    @property
    def logits(self) -> Float[Tensor, "n c"]:
        """The logits that these contributions explain: their sums, plus the constant."""
        return self.values.sum(2) + self.constant


@torch.no_grad()
def part_contributions(head: PartHead, maps: Float[Tensor, "n d h w"]) -> PartContributions:
    """What each part adds to each logit; without a part, a logit is less by exactly this."""
    weights, constant = _decides(head).folded()
    return PartContributions(weights[None] * head.bag(check_maps(maps))[:, None], constant)


@torch.no_grad()
def part_maps(head: PartHead, maps: Float[Tensor, "n d h w"], c: int) -> Float[Tensor, "n p h w"]:
    """What each cell adds to the logit of class c by way of each part: V_cp α_pr S_pr of the regions r that cover it.

    A region's share is spread evenly over its cells, so a part's map adds up to its contribution, whatever the pool. Regions that a
    max pool passes over show nothing: they took no part in the decision. For how much each answers, see `evidence_maps`.
    """
    weights = _decides(head).folded()[0][c]
    scores = head.scores(check_maps(maps))
    return _painted(weights[:, None] * head.attention(scores) * scores, head, maps)


@torch.no_grad()
def evidence_maps(head: PartHead, maps: Float[Tensor, "n d h w"], c: int) -> Float[Tensor, "n p h w"]:
    """V_cp S_pr of all regions, whether the pool took them or not: a picture of where evidence is. It adds up to nothing."""
    return _painted(_decides(head).folded()[0][c][:, None] * head.scores(check_maps(maps)), head, maps)


def _decides(head):
    if head.classes is None:
        raise ValueError("this head was learnt without classes, so it decides nothing that could be explained: fit(maps, labels) learns some")
    return head


def _painted(values, head, maps):
    """Values of regions `(n, p, r)`, each spread over its region's cells."""
    h, w = maps.shape[2:]
    cover = torch.zeros(values.shape[2], h, w, dtype=values.dtype, device=values.device)
    for r, (x0, y0, x1, y1) in enumerate(head.boxes(h, w).tolist()):
        cover[r, y0:y1, x0:x1] = 1 / ((x1 - x0) * (y1 - y0))
    return torch.einsum("npr,rhw->nphw", values, cover)
