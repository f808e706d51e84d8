"""Regions: rectangles of a feature map, and their descriptors.

A box is x0, y0, x1, y1 in cells of the map, upper ends excluded: (0, 0, w, h) is the whole map. One set of boxes
`(r, 4)` serves all maps, or each map has its own `(n, r, 4)`.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_count, check_maps


def grid(h: int, w: int) -> Int[Tensor, "r 4"]:
    """Every cell a region, row by row: `r = h w`."""
    return windows(h, w, sizes=(1,))


def windows(h: int, w: int, sizes=(1, 2, 3), step=1) -> Int[Tensor, "r 4"]:
    """Square windows of the given sides at every `step` cells, small ones first; sides beyond the map are left out."""
    boxes = [
        (x, y, x + side, y + side)
        for side in sizes
        for y in range(0, h - side + 1, step)
        for x in range(0, w - side + 1, step)
    ]  # fmt: skip
    if not boxes:
        raise ValueError(f"no window of sides {tuple(sizes)} fits a map of {h} x {w} cells")
    return torch.tensor(boxes)


def rmac(h: int, w: int, levels=3) -> Int[Tensor, "r 4"]:
    """The windows of R-MAC [Tolias, Sicre and Jégou 2016, section 3.2].

    At level l the side is 2 min(h, w) / (l + 1), and l windows lie along the shorter side; along the longer one there
    are as many more as make neighbours overlap by as near 40 % as can be, the same number more at every level.
    """
    short, long = min(h, w), max(h, w)
    # With m + 1 windows of side `short` along the longer side, neighbours share 1 − (long − short) / (m short) of their area.
    # Its distance from 2/5, times 5 short, in whole numbers over m: of two as near, the fewer windows, without rounding.
    extra = 0 if long == short else min(range(1, 7), key=lambda m: abs(3 * m * short - 5 * (long - short)) / m)
    boxes = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side == 0:
            break
        for y in _spread(h, side, level + extra * (h > w)):
            for x in _spread(w, side, level + extra * (w > h)):
                boxes.append((x, y, x + side, y + side))
    return torch.tensor(boxes)


def _spread(length, side, count):
    """Starts of `count` windows spread evenly over `length` cells; a single one fills them."""
    return [i * (length - side) // (count - 1) for i in range(count)] if count > 1 else [0]


def random_boxes(h: int, w: int, count: int, seed=0, smallest=1) -> Int[Tensor, "r 4"]:
    """`count` boxes drawn uniformly among all those at least `smallest` cells wide and high."""
    if not 1 <= smallest <= min(h, w):
        raise ValueError(f"smallest={smallest} does not fit a map of {h} x {w} cells: take from 1 to {min(h, w)}")
    draw = np.random.default_rng(seed)
    (x0, x1), (y0, y1) = (_intervals(length, smallest, count, draw) for length in (w, h))
    return torch.from_numpy(np.stack([x0, y0, x1, y1], axis=1))


def _intervals(length, smallest, count, draw):
    every = np.array([(a, b) for a in range(length) for b in range(a + smallest, length + 1)])
    return every[draw.integers(0, len(every), count)].T


def selective_search(picture: Image.Image, count=100, scale=100) -> Int[Tensor, "r 4"]:
    """Boxes of segments of many sizes, in pixels, those that took most merging first [Uijlings et al. 2013, section 3].

    An over-segmentation (Felzenszwalb's, `scale` as in scikit-image: larger is coarser) is merged pair by pair, the most
    similar neighbours first: alike in colour and texture, both small, filling each other's box. One colour space and one
    similarity, where the paper pools over several.

    Args:
        count: at most so many boxes; there are fewer where the picture has few segments.
    """
    from skimage.segmentation import felzenszwalb  # here: it takes a third of a second to import

    values = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    segments = felzenszwalb(values, scale=scale, sigma=0.8, min_size=50, channel_axis=2)
    parts = _segments(values, segments)
    boxes = [part["box"] for part in parts]
    alike = {(a, b): _similarity(parts[a], parts[b], segments.size) for a, b in _neighbours(segments)}
    while alike:
        a, b = max(alike, key=alike.get)
        parts.append(_merge(parts[a], parts[b]))
        boxes.append(parts[-1]["box"])
        touching = {i for pair in alike if a in pair or b in pair for i in pair} - {a, b}
        alike = {pair: value for pair, value in alike.items() if a not in pair and b not in pair}
        for i in sorted(touching):
            alike[i, len(parts) - 1] = _similarity(parts[i], parts[-1], segments.size)
    return torch.tensor(list(dict.fromkeys(reversed(boxes)))[:count])


def _segments(values, segments):
    """Each segment's size, box, and histograms of colour and of edge directions."""
    slopes = [ndimage.sobel(values.mean(2), axis) for axis in (0, 1)]
    direction = np.floor((np.arctan2(*slopes) / np.pi + 1) * 4).clip(0, 7).astype(int)
    parts = []
    for number in range(segments.max() + 1):
        inside = segments == number
        y, x = np.nonzero(inside)
        colour = np.concatenate([np.histogram(values[inside, c], bins=25, range=(0, 1))[0] for c in range(3)])
        texture = np.bincount(direction[inside], weights=np.hypot(*slopes)[inside], minlength=8)
        box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
        parts.append({"size": len(x), "box": box, "colour": _share(colour), "texture": _share(texture)})
    return parts


def _share(histogram):
    return histogram / max(histogram.sum(), 1e-12)


def _neighbours(segments):
    """Pairs (a, b) of segments that touch, a < b."""
    across = np.concatenate([
        np.stack([segments[:, :-1].ravel(), segments[:, 1:].ravel()], 1),
        np.stack([segments[:-1].ravel(), segments[1:].ravel()], 1),
    ])  # fmt: skip
    return np.unique(np.sort(across[across[:, 0] != across[:, 1]], axis=1), axis=0).tolist()


def _similarity(a, b, pixels):
    x0, y0, x1, y1 = _hull(a["box"], b["box"])
    together = a["size"] + b["size"]
    fill = 1 - ((x1 - x0) * (y1 - y0) - together) / pixels
    return np.minimum(a["colour"], b["colour"]).sum() + np.minimum(a["texture"], b["texture"]).sum() + 1 - together / pixels + fill


def _merge(a, b):
    size = a["size"] + b["size"]
    mean = {what: (a["size"] * a[what] + b["size"] * b[what]) / size for what in ("colour", "texture")}
    return {"size": size, "box": _hull(a["box"], b["box"]), **mean}


def _hull(a, b):
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


# From boxes to descriptors, and between cells and pixels.


def pool(maps: Float[Tensor, "n d h w"], boxes: Int[Tensor, "r 4"] | Int[Tensor, "n r 4"], how="max") -> Float[Tensor, "n r d"]:
    """One descriptor a region: the maximum or the mean of each channel over the region's cells.

    "concat" keeps the cells apart, one after the other, for boxes of one size: a template, as HOG patches are.
    """
    n, d, h, w = check_maps(maps).shape
    boxes = _check_boxes(boxes, n, h, w).to(maps.device)
    if how == "mean":
        return _mean_pool(maps, boxes)
    if how == "concat":
        return _side_by_side(maps, boxes)
    if how != "max":
        raise ValueError(f"how={how!r}: regions are pooled by 'max' or 'mean', or described by 'concat'")
    if boxes.ndim == 3:
        return torch.cat([pool(one[None], own) for one, own in zip(maps, boxes)])
    return torch.stack([maps[:, :, y0:y1, x0:x1].amax((2, 3)) for x0, y0, x1, y1 in boxes.tolist()], dim=1)


def _mean_pool(maps, boxes):
    if boxes.ndim == 2:
        # A mean is a linear map: one row of weights a region, 1 / area on its cells. In float64, so that the last digit is right.
        h, w = maps.shape[2:]
        weights = torch.stack([_share_of_cells(box, h, w) for box in boxes.tolist()]).to(maps.device)
        return (weights @ maps.flatten(2).transpose(1, 2).double()).to(maps.dtype)
    return torch.cat([_mean_pool(one[None], own) for one, own in zip(maps, boxes)])


def _share_of_cells(box, h, w):
    x0, y0, x1, y1 = box
    inside = torch.zeros(h, w, dtype=torch.float64)
    inside[y0:y1, x0:x1] = 1 / ((x1 - x0) * (y1 - y0))
    return inside.flatten()


def _side_by_side(maps, boxes):
    sizes = {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.tolist()} if boxes.ndim == 2 else ()
    if len(sizes) != 1:
        raise ValueError("how='concat' describes regions of one size, the same boxes for all maps: windows(h, w, sizes=(4,)), for instance")
    return torch.stack([maps[:, :, y0:y1, x0:x1].flatten(1) for x0, y0, x1, y1 in boxes.tolist()], dim=1)


def _check_boxes(boxes, n, h, w):
    boxes = torch.as_tensor(boxes)
    if boxes.shape[-1:] != (4,) or boxes.ndim not in (2, 3) or boxes.shape[-2] == 0 or (boxes.ndim == 3 and len(boxes) != n):
        raise ValueError(f"expected boxes (r, 4) or ({n}, r, 4) with r of 1 and more, not {tuple(boxes.shape)}")
    if boxes.is_floating_point():
        raise ValueError("expected boxes in whole cells, not floats: regions.to_cells(boxes, …) rounds pixels to cells")
    x0, y0, x1, y1 = boxes.unbind(-1)
    wrong = (x0 < 0) | (y0 < 0) | (x1 > w) | (y1 > h) | (x0 >= x1) | (y0 >= y1)
    if wrong.any():
        raise ValueError(f"box {boxes[wrong][0].tolist()} is empty or leaves a map of {h} x {w} cells: pixels? regions.to_cells converts them")
    return boxes


def to_pixels(boxes, cells: tuple[int, int], picture: tuple[int, int]) -> Float[Tensor, "... 4"]:
    """Boxes in cells of a map of `cells` = (h, w) as boxes in pixels of a picture of (width, height)."""
    return torch.as_tensor(boxes, dtype=torch.float64) * _cell_size(cells, picture)


def to_cells(boxes, cells: tuple[int, int], picture: tuple[int, int]) -> Int[Tensor, "... 4"]:
    """Boxes in pixels of a picture of (width, height), grown to the cells of a map of `cells` = (h, w) that they touch."""
    boxes = torch.as_tensor(boxes, dtype=torch.float64) / _cell_size(cells, picture)
    boxes = boxes.round(decimals=6)  # a rounding error over a border does not touch the next cell
    h, w = cells
    last = torch.tensor([w - 1, h - 1])
    start = torch.minimum(boxes[..., :2].floor().long().clamp(min=0), last)
    end = torch.minimum(boxes[..., 2:].ceil().long(), last + 1)
    return torch.cat([start, torch.maximum(end, start + 1)], dim=-1)


def _cell_size(cells, picture):
    (h, w), (width, height) = cells, picture
    return torch.tensor([width / w, height / h, width / w, height / h], dtype=torch.float64)


def largest_area(found: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The box of the largest connected area of what was found; of the first in reading order if there are several. There must be one."""
    areas, count = ndimage.label(found)
    largest = 1 + np.argmax(np.bincount(areas.ravel(), minlength=count + 1)[1:])
    y, x = ndimage.find_objects((areas == largest).astype(int))[0]
    return x.start, y.start, x.stop, y.stop


def iou(a: Float[Tensor, "r 4"], b: Float[Tensor, "s 4"]) -> Float[Tensor, "r s"]:
    """Intersection over union of every box of `a` with every box of `b`."""
    a, b = torch.as_tensor(a).double()[:, None], torch.as_tensor(b).double()[None]
    area = lambda box: (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return (shared / (area(a) + area(b) - shared)).float()


class Regions:
    """The same boxes in the maps of `n` photographs, described batch by batch when asked for: pooled, and of length 1.

    `regions[photos.train]` is those of fewer photographs; nothing is pooled before it is read, so any number of
    photographs fits into memory. A region without any activation keeps the descriptor zero.

    Args:
        maps: `features.Maps`, or a tensor of maps `(n, d, h, w)`.
        boxes: `(r, 4)`; by default all windows of 1, 2 and 3 cells a side.
        how: as in `pool`.
    """

    def __init__(self, maps, boxes: Int[Tensor, "r 4"] | None = None, how="mean"):
        self.maps, self.how = maps if hasattr(maps, "batches") else check_maps(maps), how
        if len(maps) == 0:
            raise ValueError("regions of no photographs at all: is the selection empty?")
        self.cells = tuple(maps.shape[2:])
        self.boxes = _check_boxes(windows(*self.cells) if boxes is None else boxes, len(maps), *self.cells)
        if self.boxes.ndim != 2:
            raise ValueError("the same boxes serve all photographs here: give them as (r, 4)")

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, index):
        if np.ndim(index) == 0 and not isinstance(index, slice):
            raise IndexError(f"regions[{index}] is one photograph's: write regions[[{index}]] for a set of one")
        return Regions(self.maps[index], self.boxes, self.how)

    def __repr__(self):
        return f"Regions({len(self)} photographs, {len(self.boxes)} regions each)"

    def map_batches(self, size=64):
        """The maps themselves in order, `(up to size, d, h, w)` at a time."""
        return self.maps.batches(size) if hasattr(self.maps, "batches") else self.maps.split(size)

    def batches(self, size=64):
        """Descriptors in order, `(up to size, r, d)` at a time."""
        for maps in self.map_batches(size):
            yield F.normalize(pool(maps, self.boxes, self.how), dim=2)

    def tensor(self) -> Float[Tensor, "n r d"]:
        """All descriptors in memory."""
        return torch.cat(list(self.batches()))

    def sample(self, count: int, seed=0) -> Float[Tensor, "count d"]:
        """Descriptors of `count` different regions drawn at random (all, if there are no more), in the photographs' order."""
        r = len(self.boxes)
        check_count(min(count, len(self) * r), len(self) * r, "sampled regions", "regions")
        drawn = np.random.default_rng(seed).permutation(len(self) * r)[:count]
        photograph, region = np.divmod(np.sort(drawn), r)
        which, start = np.unique(photograph, return_index=True)
        chosen = np.split(region, start[1:])
        parts = []
        for at, batch in zip(range(0, len(which), 64), self[which].batches(64)):
            parts += [one[own] for one, own in zip(batch, chosen[at : at + 64])]
        return torch.cat(parts)


def hog(photos, size=256, cell=8, orientations=9) -> Float[Tensor, "n orientations h w"]:
    """Histograms of oriented gradients as maps, one cell for `cell` pixels of a picture stretched to `size` (scikit-image).

    What part learners took for a map before networks were trained [Dalal and Triggs 2005]. Each cell is normalised by itself;
    `Regions(hog(photos), windows(h, w, (8,), 2), how="concat")` are patches of 8 x 8 cells.
    """
    from skimage.feature import hog as histograms  # here: it takes a third of a second to import

    maps = []
    for picture in photos:
        values = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        options = dict(pixels_per_cell=(cell, cell), cells_per_block=(1, 1), feature_vector=False, channel_axis=2)
        maps.append(torch.from_numpy(histograms(values, orientations, **options)[:, :, 0, 0]).permute(2, 0, 1).float())
    return torch.stack(maps)
