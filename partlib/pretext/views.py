"""Photographs in memory, and how a step sees them: a random part of each picture, or one of several versions of its map."""

from dataclasses import dataclass
from typing import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from .._checks import check_maps
from .._progress import progress
from ..data import Photos


def in_memory(photos: Photos, size=64) -> UInt8[Tensor, "n 3 size size"]:
    """Small pictures of whole photographs, stretched to `size` x `size` pixels: 12 kB each at 64 pixels."""
    if len(photos) == 0:
        raise ValueError(f"{photos.name} holds no photographs: nothing to learn from")
    small = lambda picture: picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2)
    read = progress(photos, total=len(photos), desc=photos.name, unit="picture", leave=False)
    return torch.stack([pil_to_tensor(small(picture)) for picture in read])


@dataclass(frozen=True, eq=False)
class Crops:
    """Pictures of which a step sees a random part each, enlarged to the whole picture's size and mirrored half the time.

    Args:
        pictures: 8-bit values.
        least: a part has between this share of the picture's area and all of it; its sides are in the picture's proportion.
    """

    pictures: UInt8[Tensor, "n 3 H W"]
    least: float = 0.5

    def __post_init__(self):
        check_pictures(self.pictures)
        if not 0 < self.least <= 1:
            raise ValueError(f"least={self.least}: the smallest part is a share of the picture's area, over 0 and at most 1")

    def __len__(self):
        return len(self.pictures)

    def whole(self, rows: Int[Tensor, "m"]) -> Float[Tensor, "m 3 H W"]:
        """These pictures as they are, from 0 to 1."""
        return self.pictures[rows.to(self.pictures.device)].to(rows.device) / 255

    def draw(self, m: int, generator: torch.Generator) -> Float[Tensor, "m 2 3"]:
        """Which part of each: the affine map from the cells of the view to those of the picture, both from −1 to 1."""
        area, across, down, mirror = torch.rand(4, m, generator=generator)
        side = (self.least + (1 - self.least) * area).sqrt()
        centre = (2 * torch.stack([across, down], 1) - 1) * (1 - side)[:, None]
        scale = torch.diag_embed(torch.stack([torch.where(mirror < 0.5, -side, side), side], 1))
        return torch.cat([scale, centre[:, :, None]], 2)

    def seen(self, rows: Int[Tensor, "m"], drawn: Float[Tensor, "m 2 3"]) -> Float[Tensor, "m 3 H W"]:
        """The parts, from 0 to 1."""
        whole = self.whole(rows)
        return F.grid_sample(whole, F.affine_grid(drawn, whole.shape, align_corners=False), padding_mode="border", align_corners=False)


class Views:
    """Cached maps of the same photographs in several versions (plain, mirrored, …), of which a step sees one each."""

    def __init__(self, maps: Sequence[Float[Tensor, "n d h w"]]):
        self.maps = [check_maps(some) for some in maps]
        if len({some.shape for some in self.maps}) != 1:
            raise ValueError(f"maps of shapes {[tuple(some.shape) for some in self.maps]}: versions of the same photographs have one shape")

    def __len__(self):
        return len(self.maps[0])

    def whole(self, rows: Int[Tensor, "m"]) -> Float[Tensor, "m d h w"]:
        """The first version of each."""
        return self.seen(rows, torch.zeros_like(rows))

    def draw(self, m: int, generator: torch.Generator) -> Int[Tensor, "m"]:
        """Which version of each."""
        return torch.randint(len(self.maps), (m,), generator=generator)

    def seen(self, rows: Int[Tensor, "m"], drawn: Int[Tensor, "m"]) -> Float[Tensor, "m d h w"]:
        """These versions."""
        return torch.stack([self.maps[version][row] for row, version in zip(rows.tolist(), drawn.tolist())]).to(rows.device)


def check_pictures(pictures):
    """8-bit pictures `(n, 3, H, W)`."""
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
        given = f"{pictures.dtype} {tuple(pictures.shape)}" if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"expected pictures as 8-bit values (n, 3, H, W), not {given}: pretext.in_memory(photos, size=64) makes them")
    if len(pictures) == 0:
        raise ValueError("there are no pictures: is the selection of photographs empty?")
    return pictures
