"""Nine tiles of a picture, shuffled: which of a list of permutations was it? [Noroozi and Favaro 2016]"""

from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_count
from .questions import Question
from .views import Crops

SIDE = 3
TILES = SIDE * SIDE
GREY = 0.3  # share of pictures without colour, so that hues at the tiles' borders do not give the answer away


def apart(count: int, tiles=TILES, seed=0) -> Int[np.ndarray, "count tiles"]:
    """Permutations that differ in many places: each is the one, of all there are, whose nearest chosen one is farthest.

    Greedy, as published, in Hamming distance: the number of places in which two differ. Of equally near ones that with the largest sum of
    distances is taken, and of those the first. The first of all is drawn from `seed`.
    """
    every = np.array(list(permutations(range(tiles))), dtype=np.uint8)
    check_count(count, len(every), "permutations", f"{tiles}! permutations")
    chosen = [int(np.random.default_rng(seed).integers(len(every)))]
    nearest, total = np.full(len(every), tiles + 1), np.zeros(len(every), dtype=int)
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(1)
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int((nearest * (tiles * count + 1) + total).argmax()))
    return every[chosen].astype(int)


def tiles_of(pictures: Float[Tensor, "n c H W"], corners: Int[Tensor, "n 9 2"], size: int) -> Float[Tensor, "n 9 c size size"]:
    """A tile of each of nine cells, row by row, whose upper left corner is so many pixels down and to the right of the cell's."""
    n, cell = len(pictures), pictures.shape[2] // SIDE
    cells = pictures[:, :, : SIDE * cell, : SIDE * cell].unfold(2, cell, cell).unfold(3, cell, cell)  # n c 3 3 cell cell
    cells = cells.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    down, right = (corners.flatten(0, 1)[:, axis, None] + torch.arange(size, device=corners.device) for axis in (0, 1))
    which = torch.arange(len(cells), device=corners.device)[:, None, None]
    return cells[which, :, down[:, :, None], right[:, None]].permute(0, 3, 1, 2).unflatten(0, (n, TILES))


def alike(tiles: Float[Tensor, "... c s s"]) -> Float[Tensor, "... c s s"]:
    """Every tile brought to mean ½ and spread ¼ over its pixels, so that light and contrast do not tell which were neighbours."""
    values = tiles.flatten(-3)
    mean, spread = values.mean(-1), values.std(-1)
    return 0.5 + 0.25 * (tiles - mean[..., None, None, None]) / spread.clamp(min=1e-3)[..., None, None, None]


class Jigsaw(Question):
    """The picture's tiles go through one trunk each (siamese), what is said of them is put side by side, and two layers answer.

    Tiles are smaller than their cells by 64 : 75, as published, and lie anywhere in them: the gaps keep lines that cross a border from
    giving the answer away.

    Args:
        count: of permutations; more are harder. The paper has 1000, of 9! = 362 880.
        seed: of the permutations and of the head's first weights.
    """

    def __init__(self, trunk: nn.Module, pictures: UInt8[Tensor, "n 3 s s"] | Crops, count=24, seed=0):
        super().__init__(trunk, pictures)
        height, width = self.seen.pictures.shape[2:]
        self.cell = min(height, width) // SIDE
        self.tile = round(self.cell * 64 / 75)
        if height != width or self.tile < 8:
            raise ValueError(f"pictures of {height} x {width} pixels: a jigsaw of nine tiles needs square ones of 30 pixels at least")
        self.register_buffer("order", torch.from_numpy(apart(count, seed=seed)))
        self.chance = 100 / count
        channels = self.channels(torch.rand(1, 3, self.tile, self.tile))[0]
        with self.drawn_from(seed):
            self.of_a_tile = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 128), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(TILES * 128, 256), nn.ReLU(), nn.Linear(256, count))

    def draw(self, rows, generator):
        return rows, self.seen.draw(len(rows), generator), *self.puzzle(len(rows), generator), torch.rand(len(rows), generator=generator) < GREY

    def puzzle(self, m, generator) -> tuple[Int[Tensor, "m"], Int[Tensor, "m 9 2"]]:
        """For each picture a permutation, and where in its cells the tiles lie."""
        which = torch.randint(len(self.order), (m,), generator=generator)
        return which, torch.randint(self.cell - self.tile + 1, (m, TILES, 2), generator=generator)

    def shuffled(self, pictures: Float[Tensor, "m 3 H W"], which, corners) -> Float[Tensor, "m 9 3 s s"]:
        """The tiles as the trunk gets them: in place j lies tile `order[which, j]`."""
        tiles = alike(tiles_of(pictures, corners, self.tile))
        return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], self.order[which]]

    def logits(self, pictures, which, corners) -> Float[Tensor, "m count"]:
        """What is thought of each permutation."""
        tiles = self.shuffled(pictures, which, corners).flatten(0, 1)
        return self.head(self.of_a_tile(self.trunk(tiles)).unflatten(0, (len(pictures), TILES)).flatten(1))

    def forward(self, rows, part, which, corners, grey):
        pictures = self.seen.seen(rows, part)
        pictures = torch.where(grey[:, None, None, None], pictures.mean(1, keepdim=True), pictures)
        return {"jigsaw": F.cross_entropy(self.logits(pictures, which, corners), which)}

    def right(self, pictures, generator):
        which, corners = (some.to(pictures.device) for some in self.puzzle(len(pictures), generator))
        return (self.logits(pictures, which, corners).argmax(1) == which).float(), torch.ones(len(which), device=pictures.device)
