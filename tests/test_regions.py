"""Regions: every rule against loops that spell it out, every pooled number against a plain slice."""

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.stats import chi2

from partlib import regions
from partlib.features import Maps

sides = st.integers(1, 9)


def some_maps(n, d, h, w, seed=0, offset=0.0):
    draw = np.random.default_rng(seed)
    return torch.from_numpy((draw.normal(size=(n, d, h, w)) + offset).astype(np.float32))


def some_boxes(draw, count, h, w):
    """Boxes by another way than the library's: two distinct borders a side."""
    x = np.sort([draw.choice(w + 1, 2, replace=False) for _ in range(count)], axis=1)
    y = np.sort([draw.choice(h + 1, 2, replace=False) for _ in range(count)], axis=1)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def slices(maps, boxes, reduce):
    """What pooling is, in loops over numpy slices."""
    values = maps.numpy().astype(np.float64)
    n, d = values.shape[:2]
    boxes = np.broadcast_to(np.asarray(boxes), (n, *np.shape(boxes)[-2:]))
    out = np.zeros((n, boxes.shape[1], d))
    for i, r, c in np.ndindex(out.shape):
        x0, y0, x1, y1 = boxes[i, r]
        out[i, r, c] = reduce(values[i, c, y0:y1, x0:x1])
    return out


# ---- windows ----


@given(h=sides, w=sides, step=st.integers(1, 3), wanted=st.sets(st.integers(1, 11), min_size=1))
def test_windows_are_all_squares_of_these_sides_at_this_step(h, w, step, wanted):
    expected = [
        (x, y, x + side, y + side)
        for side, y, x in product(sorted(wanted), range(h), range(w))
        if x + side <= w and y + side <= h and x % step == 0 and y % step == 0
    ]
    if expected:
        assert list(map(tuple, regions.windows(h, w, tuple(sorted(wanted)), step).tolist())) == expected
    else:
        with pytest.raises(ValueError, match=f"fits a map of {h} x {w} cells"):
            regions.windows(h, w, tuple(wanted), step)


@given(h=sides, w=sides)
def test_a_grid_is_every_cell_once_row_by_row(h, w):
    assert regions.grid(h, w).tolist() == [[x, y, x + 1, y + 1] for y in range(h) for x in range(w)]


# ---- R-MAC windows ----


def windows_of_the_paper(h, w, levels):
    """Section 3.2 of the R-MAC paper, in exact fractions.

    On the first level, squares as large as fit lie along the longer side, two to seven of them (one, if the map is
    square), so many that neighbours overlap by as near 40 % as can be. Level l has l + m − 1 along the longer side,
    where the first has m, and l along the other, of side 2 min(h, w) / (l + 1), spread evenly, all rounded down.
    """
    short, long = min(h, w), max(h, w)
    m = 1
    if long > short:
        apart = {m: Fraction(long - short, m - 1) for m in range(2, 8)}  # from one start to the next
        m = min(apart, key=lambda m: abs(1 - apart[m] / short - Fraction(2, 5)))
    found = []
    for l in range(1, levels + 1):
        side = (2 * short) // (l + 1)
        if side < 1:
            break
        down, across = (l + m - 1, l) if h > w else (l, l + m - 1)
        starts = [
            [0] if count == 1 else [int(Fraction(i * (length - side), count - 1)) for i in range(count)]
            for length, count in ((h, down), (w, across))
        ]
        found += [(x, y, x + side, y + side) for y in starts[0] for x in starts[1]]
    return found


def test_rmac_windows_are_the_papers_on_every_map_up_to_40_cells():
    for h, w in product(range(1, 41), repeat=2):
        assert list(map(tuple, regions.rmac(h, w).tolist())) == windows_of_the_paper(h, w, 3), (h, w)


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_rmac_windows_of_other_numbers_of_levels(levels):
    for h, w in [(1, 1), (1, 9), (2, 3), (7, 7), (8, 8), (13, 9), (24, 32)]:
        assert list(map(tuple, regions.rmac(h, w, levels).tolist())) == windows_of_the_paper(h, w, levels)


@pytest.mark.parametrize(("h", "w", "count"), [(14, 14, 14), (32, 24, 20), (24, 32, 20), (7, 7, 14), (1, 1, 1), (2, 2, 14)])
def test_rmac_has_the_known_numbers_of_windows(h, w, count):
    assert len(regions.rmac(h, w)) == count  # 14 = 1 + 4 + 9; 20 = 2 + 6 + 12


def test_rmac_windows_by_hand():
    assert regions.rmac(2, 3, levels=1).tolist() == [[0, 0, 2, 2], [1, 0, 3, 2]]
    assert regions.rmac(4, 4, levels=2).tolist() == [[0, 0, 4, 4], [0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 2, 4], [2, 2, 4, 4]]
    # One row of cells has windows on the first level only: on the second they would be 2/3 of a cell. Three windows
    # overlap by half, which is nearer to 40 % than the nothing of two; rounded down, two of them coincide.
    assert regions.rmac(1, 2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 2, 1]]
    # On 5 x 9 cells two windows overlap by 20 % and three by 60 %, both as near: the fewer.
    assert regions.rmac(5, 9, levels=1).tolist() == [[0, 0, 5, 5], [4, 0, 9, 5]]


@given(h=st.integers(1, 60), w=st.integers(1, 60), levels=st.integers(1, 5))
def test_rmac_windows_are_squares_inside_the_map_and_turn_with_it(h, w, levels):
    boxes = regions.rmac(h, w, levels)
    x0, y0, x1, y1 = boxes.unbind(1)
    assert (x1 - x0 == y1 - y0).all() and (x1 > x0).all()
    assert x0.min() == 0 and y0.min() == 0 and x1.max() == w and y1.max() == h
    turned = regions.rmac(w, h, levels)[:, [1, 0, 3, 2]]
    assert sorted(turned.tolist()) == sorted(boxes.tolist())


# ---- random boxes ----


@pytest.mark.parametrize(("h", "w", "smallest"), [(3, 4, 1), (5, 4, 2), (1, 6, 1), (4, 4, 4)])
def test_random_boxes_are_uniform_over_all_boxes(h, w, smallest):
    every = [
        (x0, y0, x1, y1)
        for x0, y0, x1, y1 in product(range(w + 1), range(h + 1), range(w + 1), range(h + 1))
        if x1 - x0 >= smallest and y1 - y0 >= smallest
    ]
    count = 300 * len(every)
    drawn = [tuple(box) for box in regions.random_boxes(h, w, count, seed=1, smallest=smallest).tolist()]
    seen = np.array([drawn.count(box) for box in every])
    assert seen.sum() == count  # no box from elsewhere
    assert ((seen - 300) ** 2 / 300).sum() <= chi2.ppf(0.999, max(len(every) - 1, 1))


def test_random_boxes_come_from_their_seed():
    first = regions.random_boxes(9, 7, 50, seed=3)
    assert torch.equal(first, regions.random_boxes(9, 7, 50, seed=3))
    assert not torch.equal(first, regions.random_boxes(9, 7, 50, seed=4))
    assert first.shape == (50, 4) and regions.random_boxes(9, 7, 0).shape == (0, 4)


# ---- selective search ----


def overlap(a, b):
    """Intersection over union of two boxes by counting pixels."""
    cells = [set(product(range(x0, x1), range(y0, y1))) for x0, y0, x1, y1 in (a, b)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def painted(size, squares, ground="gray"):
    picture = Image.new("RGB", size, ground)
    for (x0, y0, x1, y1), colour in squares.items():
        ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    return picture


SQUARES = {(10, 12, 40, 42): "red", (70, 8, 110, 48): "blue", (30, 60, 60, 90): "green", (90, 64, 116, 90): "yellow"}


def test_selective_search_finds_the_squares():
    picture = painted((128, 100), SQUARES)
    boxes = regions.selective_search(picture).tolist()
    assert boxes[0] == [0, 0, 128, 100]  # what took most merging
    assert len({tuple(box) for box in boxes}) == len(boxes)
    for square in SQUARES:
        assert max(overlap(square, box) for box in boxes) > 0.9


def test_selective_search_is_the_same_each_time_and_keeps_to_its_count():
    picture = painted((128, 100), SQUARES)
    boxes = regions.selective_search(picture)
    assert torch.equal(boxes, regions.selective_search(picture))
    assert torch.equal(regions.selective_search(picture, count=3), boxes[:3])


def merged_by_hand(pixels, segments):
    """The boxes of section 3 of the paper, last merged first: a region is its list of segments, all else is counted anew."""
    h, w = segments.shape
    grey = pixels.mean(2) / 255
    at = lambda y, x: grey[min(max(y, 0), h - 1), min(max(x, 0), w - 1)]
    sobel = ((-1, 1), (0, 2), (1, 1))  # place across, weight

    def features(number):
        colour, texture, inside = np.zeros((3, 25)), np.zeros(8), [(y, x) for y, x in np.ndindex(h, w) if segments[y, x] == number]
        for y, x in inside:
            for c in range(3):
                colour[c, min(25 * int(pixels[y, x, c]) // 255, 24)] += 1
            down = sum(weight * (at(y + 1, x + i) - at(y - 1, x + i)) for i, weight in sobel)
            across = sum(weight * (at(y + i, x + 1) - at(y + i, x - 1)) for i, weight in sobel)
            texture[min(int((np.arctan2(down, across) / np.pi + 1) * 4), 7)] += np.hypot(down, across)
        return len(inside), colour.ravel() / colour.sum(), texture / texture.sum(), inside

    leaves = [features(number) for number in range(segments.max() + 1)]
    size = lambda region: sum(leaves[i][0] for i in region)
    share = lambda region, what: sum(leaves[i][0] * leaves[i][what] for i in region) / size(region)
    cells = lambda region: [cell for i in region for cell in leaves[i][3]]

    def box(region):
        y, x = zip(*cells(region))
        return (min(x), min(y), max(x) + 1, max(y) + 1)

    def touch(a, b):
        other = set(cells(b))
        return any({(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & other for y, x in cells(a))

    def alike(a, b):
        x0, y0, x1, y1 = box(a + b)
        both = size(a) + size(b)
        return (
            sum(map(min, share(a, 1), share(b, 1))) + sum(map(min, share(a, 2), share(b, 2)))
            + (1 - both / (h * w)) + (1 - ((x1 - x0) * (y1 - y0) - both) / (h * w))
        )  # fmt: skip

    regions_now = [(i,) for i in range(len(leaves))]
    boxes = [box(region) for region in regions_now]
    while len(regions_now) > 1:
        a, b = max(((a, b) for a in regions_now for b in regions_now if a < b and touch(a, b)), key=lambda pair: alike(*pair))
        regions_now = [region for region in regions_now if region not in (a, b)] + [a + b]
        boxes.append(box(a + b))
    return list(dict.fromkeys(reversed(boxes)))


@pytest.mark.parametrize("seed", range(6))
def test_selective_search_merges_the_most_similar_neighbours(seed, monkeypatch):
    draw = np.random.default_rng(seed)
    seeds, cells = draw.uniform(0, 12, (7, 2)), np.stack(np.mgrid[:12, :14], axis=-1)
    nearest = ((cells[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
    segments = np.unique(nearest, return_inverse=True)[1].reshape(12, 14)
    pixels = (draw.integers(0, 200, (7, 3))[nearest] + draw.integers(0, 56, (12, 14, 3))).astype(np.uint8)
    monkeypatch.setattr("skimage.segmentation.felzenszwalb", lambda *_, **__: segments)
    found = regions.selective_search(Image.fromarray(pixels)).tolist()
    assert list(map(tuple, found)) == merged_by_hand(pixels.astype(np.float64), segments)


def test_selective_search_merges_what_is_alike_first(monkeypatch):
    # Two reds and a blue side by side: the reds come together before either joins the blue.
    picture = painted((30, 10), {(0, 0, 10, 10): (230, 40, 40), (10, 0, 20, 10): (225, 40, 40), (20, 0, 30, 10): (40, 40, 230)})
    segments = np.repeat(np.arange(3), 10)[None].repeat(10, axis=0)
    monkeypatch.setattr("skimage.segmentation.felzenszwalb", lambda *_, **__: segments)
    boxes = [[0, 0, 30, 10], [0, 0, 20, 10], [20, 0, 30, 10], [10, 0, 20, 10], [0, 0, 10, 10]]
    assert regions.selective_search(picture).tolist() == boxes


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3), (64, 48)])
def test_selective_search_of_one_colour_is_the_picture(size, mode):
    assert regions.selective_search(Image.new(mode, size, 3)).tolist() == [[0, 0, *size]]


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=15)
def test_selective_search_of_any_picture_gives_boxes_inside_it(width, height, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = regions.selective_search(Image.fromarray(noise), scale=10)
    x0, y0, x1, y1 = boxes.unbind(1)
    assert boxes.tolist()[0] == [0, 0, width, height]
    assert (x0 >= 0).all() and (x0 < x1).all() and (x1 <= width).all()
    assert (y0 >= 0).all() and (y0 < y1).all() and (y1 <= height).all()


# ---- pooling ----


@given(
    n=st.integers(1, 4), d=st.sampled_from([1, 2, 5]), h=sides, w=sides, r=st.integers(1, 6),
    own=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=60)
def test_pooling_is_the_maximum_or_mean_of_a_slice(n, d, h, w, r, own, seed):
    maps, draw = some_maps(n, d, h, w, seed), np.random.default_rng(seed)
    boxes = np.stack([some_boxes(draw, r, h, w) for _ in range(n)]) if own else some_boxes(draw, r, h, w)
    for how, reduce in (("max", np.max), ("mean", np.mean)):
        pooled = regions.pool(maps, torch.from_numpy(boxes), how)
        assert pooled.shape == (n, r, d) and pooled.dtype == torch.float32
        np.testing.assert_allclose(pooled.numpy(), slices(maps, boxes, reduce), atol=1e-6)
    np.testing.assert_array_equal(regions.pool(maps, boxes, "max"), regions.pool(maps, torch.from_numpy(boxes)))  # arrays; the default


def test_means_of_large_numbers_keep_their_digits():
    # Sums over this map reach 4e9, where neighbouring float32 numbers are 256 apart.
    maps, boxes = some_maps(1, 2, 64, 64, offset=1e6), some_boxes(np.random.default_rng(0), 30, 64, 64)
    boxes[0] = 63, 63, 64, 64
    np.testing.assert_allclose(regions.pool(maps, boxes, "mean").numpy(), slices(maps, boxes, np.mean), rtol=1e-7)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_pooling_follows_permutations_of_photographs_channels_and_regions(how):
    maps, draw = some_maps(5, 4, 6, 7), np.random.default_rng(0)
    boxes = torch.from_numpy(np.stack([some_boxes(draw, 8, 6, 7) for _ in range(5)]))
    pooled = regions.pool(maps, boxes, how)
    n, d, r = (torch.randperm(size, generator=torch.Generator().manual_seed(1)) for size in (5, 4, 8))
    assert torch.equal(regions.pool(maps[n], boxes[n], how), pooled[n])
    assert torch.equal(regions.pool(maps[:, d], boxes, how), pooled[:, :, d])
    assert torch.equal(regions.pool(maps, boxes[:, r], how), pooled[:, r])
    np.testing.assert_allclose(regions.pool(-2 * maps, boxes, "mean"), -2 * regions.pool(maps, boxes, "mean"), atol=1e-6)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_pooling_of_constant_maps_and_of_no_photographs(how):
    boxes = regions.windows(3, 5)
    assert torch.equal(regions.pool(torch.full((2, 4, 3, 5), -7.25), boxes, how), torch.full((2, len(boxes), 4), -7.25))
    assert regions.pool(torch.zeros(0, 4, 3, 5), boxes, how).shape == (0, len(boxes), 4)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_gradients_reach_the_maps(how):
    maps = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0, 0, 4, 3], [1, 1, 3, 2], [3, 2, 4, 3]])
    assert torch.autograd.gradcheck(lambda m: regions.pool(m, boxes, how), maps)


# ---- cells and pixels ----


def test_cells_and_pixels_by_hand():
    # A map of 4 x 8 cells on a picture 80 wide and 20 high: cells of 10 x 5 pixels.
    assert regions.to_pixels([[1, 2, 3, 4]], (4, 8), (80, 20)).tolist() == [[10, 10, 30, 20]]
    assert regions.to_cells([[10, 10, 30, 20]], (4, 8), (80, 20)).tolist() == [[1, 2, 3, 4]]
    assert regions.to_cells([[11, 9, 31, 16]], (4, 8), (80, 20)).tolist() == [[1, 1, 4, 4]]
    # Boxes that leave the picture end at its border; one beyond it is in the nearest cell.
    assert regions.to_cells([[-50, -3, 5, 4], [70, 15, 300, 99]], (4, 8), (80, 20)).tolist() == [[0, 0, 1, 1], [7, 3, 8, 4]]
    assert regions.to_cells([[90, 30, 95, 40], [-9, -9, -5, -5]], (4, 8), (80, 20)).tolist() == [[7, 3, 8, 4], [0, 0, 1, 1]]


@given(h=st.integers(1, 40), w=st.integers(1, 40), width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 999))
def test_there_and_back(h, w, width, height, seed):
    boxes = torch.from_numpy(some_boxes(np.random.default_rng(seed), 5, h, w))
    assert torch.equal(regions.to_cells(regions.to_pixels(boxes, (h, w), (width, height)), (h, w), (width, height)), boxes)


@given(h=st.integers(1, 12), w=st.integers(1, 12), width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 999))
def test_cells_are_those_that_a_box_touches(h, w, width, height, seed):
    for box in some_boxes(np.random.default_rng(seed), 3, height, width).tolist():
        borders = [
            [i for i in range(cells) if box[at] < Fraction((i + 1) * pixels, cells) and box[at + 2] > Fraction(i * pixels, cells)]
            for at, cells, pixels in ((0, w, width), (1, h, height))
        ]
        assert all(b == a + 1 for run in borders for a, b in pairwise(run))
        across, down = borders
        expected = [across[0], down[0], across[-1] + 1, down[-1] + 1]
        assert regions.to_cells([box], (h, w), (width, height)).tolist() == [expected]


def test_boxes_of_many_photographs_keep_their_shape():
    boxes = torch.randint(0, 5, (3, 7, 4))
    assert regions.to_pixels(boxes, (5, 5), (50, 50)).shape == regions.to_cells(boxes, (5, 5), (50, 50)).shape == (3, 7, 4)


# ---- intersection over union ----


@given(seed=st.integers(0, 10**6), r=st.integers(1, 4), s=st.integers(1, 4))
def test_iou_is_counted_pixels(seed, r, s):
    draw = np.random.default_rng(seed)
    a, b = some_boxes(draw, r, 9, 8), some_boxes(draw, s, 9, 8)
    expected = [[overlap(one, other) for other in b.tolist()] for one in a.tolist()]
    np.testing.assert_allclose(regions.iou(torch.from_numpy(a), torch.from_numpy(b)), expected, atol=1e-6)
    scaled = regions.iou(torch.from_numpy(a) * 2.5 + 7, torch.from_numpy(b) * 2.5 + 7)  # neither unit nor origin matters
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


def test_iou_by_hand():
    found = regions.iou([[0, 0, 2, 2]], [[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 1, 2]])
    np.testing.assert_allclose(found, [[1, 1 / 7, 0, 1 / 2]], atol=1e-7)
    assert found.dtype == torch.float32


# ---- the regions of a set ----


def unit(x):
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    return x / np.where(length > 0, length, 1)


@given(n=st.integers(1, 4), d=st.sampled_from([1, 2, 5]), h=sides, w=sides, r=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_regions_are_described_by_slices_of_length_1(n, d, h, w, r, seed):
    maps, boxes = some_maps(n, d, h, w, seed), some_boxes(np.random.default_rng(seed), r, h, w)
    for how, reduce in (("max", np.max), ("mean", np.mean)):
        found = regions.Regions(maps, torch.from_numpy(boxes), how)
        assert len(found) == n and found.cells == (h, w) and found.boxes.tolist() == boxes.tolist()
        np.testing.assert_allclose(found.tensor(), unit(slices(maps, boxes, reduce)), atol=1e-5)
    np.testing.assert_allclose(regions.Regions(maps).tensor(), unit(slices(maps, regions.windows(h, w), np.mean)), atol=1e-5)


def test_a_region_without_activation_keeps_the_descriptor_zero():
    maps = torch.zeros(2, 4, 2, 2)
    maps[1, 2, 0, 0] = 7
    found = regions.Regions(maps, regions.grid(2, 2)).tensor()
    assert found[1, 0].tolist() == [0, 0, 1, 0] and found.count_nonzero() == 1


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_batches_are_the_whole_in_order(size):
    maps = some_maps(70, 4, 3, 4)
    found = regions.Regions(maps)
    batches = list(found.batches(size))
    assert [len(batch) for batch in batches] == [min(size, 70 - start) for start in range(0, 70, size)]
    np.testing.assert_allclose(torch.cat(batches), unit(slices(maps, found.boxes, np.mean)), atol=1e-5)


def test_regions_of_maps_on_disk_are_those_of_their_tensor():
    values, rows = some_maps(70, 4, 3, 4).half(), np.random.default_rng(0).permutation(70)[:66]
    on_disk, whole = regions.Regions(Maps(values.numpy(), rows)), regions.Regions(values.float()[rows])
    assert len(on_disk) == 66 and on_disk.cells == whole.cells
    assert torch.equal(on_disk.tensor(), whole.tensor()) and torch.equal(on_disk.sample(50, 3), whole.sample(50, 3))
    assert torch.equal(on_disk[5:9].tensor(), whole.tensor()[5:9])


def test_regions_of_some_photographs():
    whole = regions.Regions(some_maps(6, 4, 3, 4), regions.grid(3, 4), "max")
    mask = np.array([True, False, True, False, False, True])
    for index, rows in (([4, 1], [4, 1]), (slice(2, 5), [2, 3, 4]), (mask, [0, 2, 5]), (np.array([3]), [3])):
        some = whole[index]
        assert len(some) == len(rows) and some.how == "max" and torch.equal(some.boxes, whole.boxes)
        assert torch.equal(some.tensor(), whole.tensor()[rows])
    for one in (2, np.int64(2)):
        with pytest.raises(IndexError, match=r"regions\[2\] is one photograph's: write regions\[\[2\]\]"):
            whole[one]
    assert repr(whole) == "Regions(6 photographs, 12 regions each)"


def numbered(n, h, w):
    """Maps in which a cell's descriptor tells its number: an angle that grows from cell to cell, photograph by photograph."""
    angle = (torch.arange(n * h * w, dtype=torch.float64) / (n * h * w)).view(n, h, w)
    return torch.stack([angle.cos(), angle.sin()], dim=1).float()


def numbers(sample, total):
    return torch.atan2(sample[:, 1].double(), sample[:, 0].double()).mul(total).round().long().tolist()


@given(n=st.integers(1, 140), count=st.integers(1, 40), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_a_sample_is_of_different_regions_in_order(n, count, seed):
    cells = regions.Regions(numbered(n, 2, 3), regions.grid(2, 3))
    found = numbers(cells.sample(count, seed), 6 * n)
    assert len(found) == min(count, 6 * n) and found == sorted(set(found)) and 0 <= found[0] and found[-1] < 6 * n
    assert found == numbers(cells.sample(count, seed), 6 * n)


def test_every_region_is_sampled_as_often():
    cells = regions.Regions(numbered(3, 2, 2), regions.grid(2, 2))
    drawn = [numbers(cells.sample(4, seed), 12) for seed in range(600)]
    counts = np.bincount(np.concatenate(drawn), minlength=12)
    assert ((counts - 200) ** 2 / 200).sum() < chi2.ppf(0.999, 11) and len(set(map(tuple, drawn))) > 200


def test_all_regions_are_sampled_if_there_are_no_more():
    cells = regions.Regions(numbered(3, 2, 2), regions.grid(2, 2))
    assert torch.equal(cells.sample(12), cells.tensor().flatten(0, 1)) and torch.equal(cells.sample(999), cells.sample(12))


def test_what_regions_cannot_be_made_of():
    maps = some_maps(2, 4, 3, 5)
    for wrong, said in (
        (lambda: regions.Regions(maps[:0]), "no photographs at all"),
        (lambda: regions.Regions(Maps(maps.numpy(), np.arange(0))), "no photographs at all"),
        (lambda: regions.Regions(maps, regions.grid(3, 5).expand(2, -1, -1)), r"give them as \(r, 4\)"),
        (lambda: regions.Regions(maps, torch.tensor([[0, 0, 6, 1]])), "leaves a map of 3 x 5 cells"),
        (lambda: regions.Regions(maps).sample(0), "0 sampled regions of"),
        (lambda: next(regions.Regions(maps, how="sum").batches()), "how='sum'"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    with pytest.raises(TypeError, match="not ndarray"):
        regions.Regions(maps.numpy())


# ---- templates ----


@given(n=st.integers(1, 3), d=st.sampled_from([1, 2, 4]), width=st.integers(1, 3), height=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_cells_of_a_template_lie_one_after_the_other(n, d, width, height, seed):
    maps, draw = some_maps(n, d, 4, 5, seed), np.random.default_rng(seed)
    corners = [(int(draw.integers(0, 6 - width)), int(draw.integers(0, 5 - height))) for _ in range(3)]
    found = regions.pool(maps, torch.tensor([[x, y, x + width, y + height] for x, y in corners]), "concat")
    expected = [
        [[maps[i, c, y + j, x + k].item() for c in range(d) for j in range(height) for k in range(width)] for x, y in corners]
        for i in range(n)
    ]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, dtype=np.float32))


def test_templates_are_of_one_size():
    maps = some_maps(2, 4, 4, 5)
    for boxes in (regions.windows(4, 5, (1, 2)), torch.tensor([[0, 0, 1, 2], [0, 0, 2, 1]]), regions.grid(4, 5).expand(2, -1, -1)):
        with pytest.raises(ValueError, match="regions of one size, the same boxes for all maps"):
            regions.pool(maps, boxes, "concat")


# ---- histograms of oriented gradients ----


def stripes(across, size=64, period=16):
    wave = np.uint8(127.5 + 120 * np.sin(2 * np.pi * np.arange(size) / period))
    values = np.tile(wave, (size, 1))
    return Image.fromarray(values if across else values.T).convert("RGB")


def test_hog_tells_directions_apart_and_a_flat_picture_has_none():
    maps = regions.hog([stripes(True), stripes(False), Image.new("RGB", (50, 70), (9, 99, 199))], size=64, cell=8, orientations=8)
    assert maps.shape == (3, 8, 8, 8) and maps.dtype == torch.float32
    strongest = maps.mean((2, 3)).argmax(1)
    assert (strongest[0] - strongest[1]) % 8 == 4  # a quarter turn is half of the bins
    assert (maps.mean((2, 3)).amax(1)[:2] > 0.8).all() and maps[2].abs().max() == 0


def test_each_cell_of_hog_is_normalised_by_itself():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    maps = regions.hog([noise, noise.point(lambda v: v // 4)], size=64)
    np.testing.assert_allclose(maps.norm(dim=1), 1, atol=1e-2)
    assert maps.shape == (2, 9, 8, 8) and (maps[0] - maps[1]).abs().mean() < 0.01  # contrast does not matter
    assert regions.Regions(maps, regions.windows(8, 8, (4,), 2), "concat").tensor().shape == (2, 9, 9 * 16)
