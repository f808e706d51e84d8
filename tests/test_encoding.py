"""Codes from maps, each against loops over cells in float64."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partlib import encoding
from partlib.features import Maps
from partlib.whitening import PCAWhitening

shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 6), st.integers(1, 6))
POOLINGS = [encoding.gap, encoding.mac, encoding.spoc, encoding.gem, encoding.rmac]


def some_maps(shape, seed=0):
    """Like maps behind a ReLU: half of the cells are 0."""
    return torch.from_numpy(np.maximum(np.random.default_rng(seed).normal(size=shape), 0)).float()


def cell_by_cell(maps, code):
    """`code` of each channel's list of (x, y, value)."""
    n, d, h, w = maps.shape
    values = maps.double().numpy()
    return [[code([(x, y, values[i, c, y, x]) for y, x in product(range(h), range(w))]) for c in range(d)] for i in range(n)]


@given(shape=shapes, seed=st.integers(0, 999))
@settings(max_examples=40)
def test_gap_mac_and_gem_are_their_definitions(shape, seed):
    maps = some_maps(shape, seed)
    cells = shape[2] * shape[3]
    mean = cell_by_cell(maps, lambda values: sum(v for *_, v in values) / cells)
    np.testing.assert_allclose(encoding.gap(maps), mean, atol=1e-6)
    np.testing.assert_array_equal(encoding.mac(maps), np.float32(cell_by_cell(maps, lambda values: max(v for *_, v in values))))
    for p in (0.5, 1.0, 3.0, 10.0):
        expected = cell_by_cell(maps, lambda values: (sum(max(v, 1e-6) ** p for *_, v in values) / cells) ** (1 / p))
        np.testing.assert_allclose(encoding.gem(maps, p=p), expected, rtol=1e-5, atol=1e-6)


@given(shape=shapes, seed=st.integers(0, 999))
@settings(max_examples=40)
def test_spoc_is_a_sum_weighted_by_a_gaussian(shape, seed):
    h, w = shape[2:]
    maps, sigma = some_maps(shape, seed) - 0.5, min(h / 2, w / 2) / 3

    def gaussian_sum(values):
        middle = ((w - 1) / 2, (h - 1) / 2)
        return sum(v * math.exp(-((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / (2 * sigma**2)) for x, y, v in values)

    np.testing.assert_allclose(encoding.spoc(maps), cell_by_cell(maps, gaussian_sum), atol=1e-5)


def test_spoc_by_hand():
    # Three cells in a row: sigma is a sixth of a cell, so that a neighbour of the middle weighs exp(−18).
    np.testing.assert_allclose(encoding.spoc(torch.tensor([[[[5.0, 7.0, 6.0]]]])), [[7 + 11 * math.exp(-18)]], rtol=1e-6)
    assert encoding.spoc(torch.full((1, 1, 1, 1), 4.0)).item() == 4


# ---- GeM ----


def test_gem_lies_between_the_mean_and_the_maximum_and_grows_with_p():
    maps = some_maps((3, 8, 5, 7)) + 0.01
    codes = torch.stack([encoding.gem(maps, p=p) for p in (1.0, 1.5, 3.0, 10.0, 100.0, 10_000.0)])
    assert (codes.diff(dim=0) > 0).all()
    np.testing.assert_allclose(codes[0], maps.double().mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(codes[-1], maps.amax((2, 3)), rtol=1e-3)


@pytest.mark.parametrize("p", [1.0, 3.0, 50.0])
@pytest.mark.parametrize("factor", [1e-2, 1.0, 1e4])
def test_gem_scales_with_its_values_without_overflow(p, factor):
    maps = some_maps((2, 4, 5, 5)) + 1
    np.testing.assert_allclose(encoding.gem(maps * factor, p), encoding.gem(maps, p) * factor, rtol=1e-5)


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 10.0, 60.0])
def test_gem_of_zeros_and_negatives_is_eps_and_constant_maps_stay(p):
    for maps in (torch.zeros(1, 2, 3, 4), torch.full((1, 2, 3, 4), -5.0)):
        np.testing.assert_allclose(encoding.gem(maps, p), [[1e-6, 1e-6]], rtol=1e-5)
        np.testing.assert_allclose(encoding.gem(maps, p, eps=0.25), [[0.25, 0.25]], rtol=1e-5)
    np.testing.assert_allclose(encoding.gem(torch.full((1, 2, 3, 4), 2.5), p), [[2.5, 2.5]], rtol=1e-5)


def test_gem_learns_its_exponent():
    maps = (some_maps((2, 4, 3, 3)) + 0.1).double().requires_grad_()
    p = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoding.gem, (maps, p))  # against finite differences
    one = p.detach()[None].requires_grad_()  # as torch.nn.Parameter(torch.ones(1) * 3) is
    encoding.gem(maps, one).sum().backward()
    assert one.grad.shape == (1,) and one.grad > 0


@pytest.mark.parametrize("p", [3.0, 20.0])
def test_gem_of_zeros_has_a_finite_gradient(p):
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    p = torch.tensor(p, requires_grad=True)
    encoding.gem(maps, p).sum().backward()
    assert torch.isfinite(maps.grad).all() and torch.isfinite(p.grad)


# ---- R-MAC ----


def unit(vector):
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector] if length > 0 else list(vector)


def rmac_of_a_square_map(values, levels, whiten=None):
    """One photograph `(d, s, s)`: l x l windows of side 2 s / (l + 1) on level l, their maxima, and the paper's steps."""
    d, s, _ = values.shape
    total = [0.0] * d
    for l in range(1, levels + 1):
        side = 2 * s // (l + 1)
        starts = [i * (s - side) // max(l - 1, 1) for i in range(l)]
        for y, x in product(starts, starts):
            vector = unit([max(values[c, y + j, x + i] for j in range(side) for i in range(side)) for c in range(d)])
            if whiten:
                vector = unit(whiten(vector))
            total = [t + v for t, v in zip(total, vector)] if len(total) == len(vector) else vector
    return unit(total)


@pytest.mark.parametrize("side", [2, 3, 5, 8])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_rmac_is_a_sum_of_normalised_maxima(side, levels):
    maps = some_maps((3, 4, side, side), seed=side)
    expected = [rmac_of_a_square_map(values, levels) for values in maps.double().numpy()]
    np.testing.assert_allclose(encoding.rmac(maps, levels), expected, atol=1e-6)


def test_rmac_whitens_each_window():
    maps, others = some_maps((3, 4, 6, 6)), some_maps((20, 4, 6, 6), seed=1)
    vectors = encoding.rmac_regions(others).flatten(0, 1)
    x = vectors.double().numpy()
    variances, directions = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    kept = [3, 2]

    def whiten(vector):  # up to the direction's sign, for which the largest entry is to be positive
        turned = [directions[:, j] * np.sign(directions[np.abs(directions[:, j]).argmax(), j]) for j in kept]
        return [e @ (np.array(vector) - x.mean(0)) / math.sqrt(variances[j]) for e, j in zip(turned, kept)]

    expected = [rmac_of_a_square_map(values, 3, whiten) for values in maps.double().numpy()]
    found = encoding.rmac(maps, whitening=PCAWhitening(dims=2).fit(vectors))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rmac_by_hand():
    # Channel 0 is 3 in the first cell, channel 1 is 4 in the last. Level 1: (3, 4) / 5. Level 2, cell by cell: (1, 0),
    # (0, 1) and twice nothing. Level 3 has starts 0, 0, 1: four times (1, 0), once (0, 1). In sum (5.6, 2.8).
    maps = torch.tensor([[[[3.0, 0], [0, 0]], [[0, 0], [0, 4]]]])
    np.testing.assert_allclose(encoding.rmac(maps), [[2 / math.sqrt(5), 1 / math.sqrt(5)]], rtol=1e-6)
    np.testing.assert_allclose(encoding.rmac(maps, levels=1), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(encoding.rmac_regions(maps, 2)[0], [[0.6, 0.8], [1, 0], [0, 0], [0, 0], [0, 1]], rtol=1e-6)


@given(shape=shapes, factor=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_rmac_has_length_1_and_forgets_scale(shape, factor, seed):
    maps = some_maps(shape, seed) + 0.01
    code = encoding.rmac(maps)
    np.testing.assert_allclose(code.norm(dim=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoding.rmac(maps * factor), code, atol=1e-5)


def test_rmac_of_maps_of_zeros_is_zero():
    assert torch.equal(encoding.rmac(torch.zeros(2, 4, 3, 5)), torch.zeros(2, 4))


# ---- what all share ----


@given(shape=shapes, seed=st.integers(0, 999))
@settings(max_examples=30)
def test_codes_follow_permutations_of_photographs_and_channels(shape, seed):
    maps, draw = some_maps(shape, seed), np.random.default_rng(seed)
    n, d = draw.permutation(shape[0]), draw.permutation(shape[1])
    for pooling in POOLINGS:
        code = pooling(maps)
        assert code.shape == shape[:2] and code.dtype == torch.float32
        np.testing.assert_allclose(pooling(maps[n]), code[n], atol=1e-6)
        np.testing.assert_allclose(pooling(maps[:, d]), code[:, d], atol=1e-6)


@pytest.mark.parametrize("pooling", [encoding.gap, encoding.mac, encoding.spoc, encoding.gem])
def test_codes_of_a_mirrored_map_are_the_same(pooling):
    maps = some_maps((2, 4, 6, 7))
    for axes in [(2,), (3,), (2, 3)]:
        np.testing.assert_allclose(pooling(maps.flip(axes)), pooling(maps), rtol=1e-5)


def test_rmac_of_a_mirrored_map_is_the_same_where_windows_are_not_rounded():
    maps = some_maps((2, 4, 6, 6))  # sides 6, 4, 3 at starts 0; 0, 2; 0, 1, 3: only the third level is rounded down
    np.testing.assert_allclose(encoding.rmac(maps.flip(3), levels=2), encoding.rmac(maps, levels=2), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_codes_of_no_photographs_and_of_one_cell(pooling):
    assert pooling(torch.zeros(0, 4, 3, 5)).shape == (0, 4)
    values = torch.tensor([[3.0, 4.0]])
    expected = values / 5 if pooling is encoding.rmac else values
    np.testing.assert_allclose(pooling(values[:, :, None, None]), expected, rtol=1e-5)


# ---- maps on disk ----


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_maps_are_encoded_batch_by_batch_in_their_order(batch):
    values = some_maps((7, 4, 3, 3)).numpy().astype(np.float16)
    rows = np.array([5, 0, 6, 2, 1, 3, 4])
    code = encoding.encode(Maps(values, rows), encoding.gem, batch=batch, p=2.0)
    expected = np.sqrt((np.maximum(values[rows].astype(np.float64), 1e-6) ** 2).mean((2, 3)))
    assert code.dtype == torch.float32
    np.testing.assert_allclose(code, expected, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: that codes stay on their device is not tried")
@pytest.mark.parametrize("pooling", POOLINGS)
def test_codes_stay_on_the_device_of_their_maps(pooling):
    maps = some_maps((2, 4, 6, 7))
    code = pooling(maps.cuda())
    assert code.is_cuda
    np.testing.assert_allclose(code.cpu(), pooling(maps), atol=1e-5)


# ---- codes of parts ----


def some_scores(n, p, r, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, p, r))).float()


def bags_by_loops(scores, how, regions):
    """A code a photograph, of these regions alone."""
    reduce = {"max": max, "mean": lambda values: sum(values) / len(values)}
    codes = []
    for photograph in scores.double().tolist():
        bag = {name: [f([part[r] for r in regions]) if regions else 0.0 for part in photograph] for name, f in reduce.items()}
        codes.append(unit(bag["max"]) + unit(bag["mean"]) if how == "both" else bag[how])
    return codes


parts_and_regions = dict(n=st.integers(1, 4), p=st.integers(1, 4), r=st.integers(1, 7), seed=st.integers(0, 9999))
hows = pytest.mark.parametrize("how", ["max", "mean", "both"])


@hows
@given(**parts_and_regions)
@settings(max_examples=25)
def test_a_bag_of_parts_is_a_number_a_part(how, n, p, r, seed):
    scores = some_scores(n, p, r, seed)
    found = encoding.bag_of_parts(scores, how)
    assert found.shape == (n, 2 * p if how == "both" else p)
    np.testing.assert_allclose(found, bags_by_loops(scores, how, range(r)), atol=1e-5)


@hows
@given(h=st.integers(1, 6), w=st.integers(1, 6), **parts_and_regions)
@settings(max_examples=40)
def test_a_spatial_bag_is_of_the_whole_and_of_four_quarters(how, h, w, n, p, r, seed):
    scores, draw = some_scores(n, p, r, seed), np.random.default_rng(seed)
    x, y = (np.sort([draw.choice(side + 1, 2, replace=False) for _ in range(r)], axis=1) for side in (w, h))
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    quarters = {(below, right): [] for below in (False, True) for right in (False, True)}
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        quarters[(y0 + y1) / 2 >= h / 2, (x0 + x1) / 2 >= w / 2].append(i)
    blocks = [[unit(code) for code in bags_by_loops(scores, how, own)] for own in (list(range(r)), *quarters.values())]
    expected = [sum(codes, []) for codes in zip(*blocks)]
    found = encoding.spatial_bag(scores, torch.from_numpy(boxes), (h, w), how)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_spatial_bag_by_hand():
    # Three by two cells; the middle column is on the border and belongs to the right. No region is in the lower left.
    boxes = [[0, 0, 1, 1], [1, 0, 2, 1], [2, 1, 3, 2], [0, 0, 3, 2]]
    scores = torch.tensor([[[3.0, -4, 2, 1], [4, 3, 0, 1]]])
    expected = [[0.6, 0.8, 0.6, 0.8, -0.8, 0.6, 0, 0, 2 / math.sqrt(5), 1 / math.sqrt(5)]]  # whole: 3, 4; lower right: 2, 1
    np.testing.assert_allclose(encoding.spatial_bag(scores, boxes, (2, 3)), expected, rtol=1e-6)


@given(d=st.integers(1, 4), **parts_and_regions)
@settings(max_examples=30)
def test_part_descriptors_are_those_of_the_best_regions(d, n, p, r, seed):
    scores, x = some_scores(n, p, r, seed), some_scores(n, r, d, seed + 1)
    expected = []
    for photograph, descriptors in zip(scores.tolist(), x.tolist()):
        expected.append(sum((descriptors[max(range(r), key=part.__getitem__)] for part in photograph), []))
    found = encoding.part_descriptors(x, scores)
    assert found.shape == (n, p * d)
    np.testing.assert_array_equal(found.numpy(), np.array(expected, dtype=np.float32))


@given(n=st.integers(1, 4), dims=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 9999))
@settings(max_examples=30)
def test_joined_codes_have_the_same_say(n, dims, seed):
    codes = [some_scores(1, n, d, seed + i)[0] * 10.0**i for i, d in enumerate(dims)]
    expected = [unit(sum((unit(code[i]) for code in (c.double().tolist() for c in codes)), [])) for i in range(n)]
    np.testing.assert_allclose(encoding.join(*codes), expected, atol=1e-5)


def test_what_cannot_be_pooled_or_joined():
    with pytest.raises(ValueError, match="how='sum': a bag of parts is pooled by 'max', 'mean' or 'both'"):
        encoding.bag_of_parts(some_scores(1, 2, 3), "sum")
    with pytest.raises(ValueError, match="codes of 3, 2 photographs: join those of the same ones"):
        encoding.join(torch.ones(3, 4), torch.ones(2, 4))
