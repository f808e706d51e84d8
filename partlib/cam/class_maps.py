"""Class activation maps of a linear layer on the average-pooled map, and what may be done with a map afterwards."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_maps
from ..regions import largest_area


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
    return largest_area(values >= threshold * top if top > 0 else np.ones(values.shape, bool))
