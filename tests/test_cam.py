"""Class activation maps add up to the logits, cell by cell; boxes on maps drawn by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from partlib.cam import class_maps, enlarge, object_box


def linear(d, c, seed=0, bias=True, scale=1.0):
    layer = nn.Linear(d, c, bias=bias).requires_grad_(False)
    draw = np.random.default_rng(seed)
    layer.weight.copy_(torch.from_numpy(draw.normal(size=(c, d)) * scale))
    if bias:
        layer.bias.copy_(torch.from_numpy(draw.normal(size=c)))
    return layer


def some_maps(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


# ---- contributions ----


@given(
    n=st.integers(1, 3), d=st.sampled_from([1, 2, 7]), h=st.integers(1, 6), w=st.integers(1, 6), c=st.integers(1, 5),
    bias=st.booleans(), negative=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=60)
def test_cells_and_bias_add_up_to_the_logits(n, d, h, w, c, bias, negative, seed):
    maps, layer = some_maps((n, d, h, w), seed), linear(d, c, seed + 1, bias)
    if negative:
        maps = -maps.abs()
    explained = class_maps(maps, layer)
    weights, values = layer.weight.double().numpy(), maps.double().numpy()
    offset = layer.bias.double().numpy() if bias else np.zeros(c)
    logits = [[sum(weights[k, j] * values[i, j].mean() for j in range(d)) + offset[k] for k in range(c)] for i in range(n)]
    np.testing.assert_allclose(explained.maps.double().sum((2, 3)) + explained.bias, logits, atol=1e-5)
    np.testing.assert_allclose(explained.logits, logits, atol=1e-5)
    np.testing.assert_allclose(layer(maps.mean((2, 3))), logits, atol=1e-5)  # what the network itself says
    for i, k, y, x in np.ndindex(n, c, h, w):
        expected = sum(weights[k, j] * values[i, j, y, x] for j in range(d)) / (h * w)
        assert abs(explained.maps[i, k, y, x].item() - expected) < 1e-5


def test_without_a_bias_the_constant_is_zero():
    explained = class_maps(some_maps((1, 4, 2, 2)), linear(4, 5, bias=False))
    assert torch.equal(explained.bias, torch.zeros(5))


def test_switching_a_cell_off_changes_the_logit_by_its_contribution():
    maps, layer = some_maps((2, 6, 3, 4)), linear(6, 5)
    explained = class_maps(maps, layer)
    for y, x in np.ndindex(3, 4):
        without = maps.clone()
        without[:, :, y, x] = 0
        change = layer(maps.mean((2, 3))) - layer(without.mean((2, 3)))
        np.testing.assert_allclose(explained.maps[:, :, y, x], change, atol=1e-5)


def test_maps_are_signed_and_linear():
    maps, layer = some_maps((2, 4, 3, 3)), linear(4, 2)
    explained = class_maps(maps, layer).maps
    assert (explained < 0).any() and (explained > 0).any()
    np.testing.assert_allclose(class_maps(-3 * maps, layer).maps, -3 * explained, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    permuted = linear(4, 2)
    permuted.weight.copy_(layer.weight[:, order])
    np.testing.assert_allclose(class_maps(maps[:, order], permuted).maps, explained, atol=1e-6)
    assert torch.equal(class_maps(torch.zeros(1, 4, 2, 2), layer).maps, torch.zeros(1, 2, 2, 2))


# ---- drawing ----


def bilinear(cells, width, height):
    """Each pixel's middle between the middles of the four cells around it; beyond the outer middles, the outer value."""
    h, w = cells.shape
    out = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        y, x = (i + 0.5) * h / height - 0.5, (j + 0.5) * w / width - 0.5
        y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
        a, b = int(y), int(x)
        below, right = min(a + 1, h - 1), min(b + 1, w - 1)
        top = cells[a, b] * (1 - (x - b)) + cells[a, right] * (x - b)
        bottom = cells[below, b] * (1 - (x - b)) + cells[below, right] * (x - b)
        out[i, j] = top * (1 - (y - a)) + bottom * (y - a)
    return out


@given(h=st.integers(1, 5), w=st.integers(1, 5), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_enlarging_is_bilinear_and_stays_within_the_values(h, w, height, width, seed):
    cells = some_maps((h, w), seed)
    large = enlarge(cells, (width, height))
    assert large.shape == (height, width)
    np.testing.assert_allclose(large, bilinear(cells.double().numpy(), width, height), atol=1e-5)
    assert cells.min() - 1e-6 <= large.min() and large.max() <= cells.max() + 1e-6


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0, 3)])
def test_enlarging_keeps_constants_and_leading_axes(leading):
    large = enlarge(torch.full((*leading, 4, 5), -1.5), (31, 17))
    assert large.shape == (*leading, 17, 31)
    np.testing.assert_allclose(large, -1.5, atol=1e-6)


def test_each_map_is_enlarged_by_itself():
    cells = some_maps((2, 3, 4, 5))
    for i, c in np.ndindex(2, 3):
        np.testing.assert_array_equal(enlarge(cells, (20, 16))[i, c], enlarge(cells[i, c], (20, 16)))


# ---- the object's box ----


def test_the_box_is_that_of_the_larger_of_two_areas():
    values = torch.zeros(10, 12)
    values[1:4, 2:5] = 0.9  # nine cells
    values[6:8, 6:12] = 0.4  # twelve, fainter
    values[0, 11] = 1.0  # one, the strongest
    assert object_box(values) == (6, 6, 12, 8)
    assert object_box(values, threshold=0.5) == (2, 1, 5, 4)
    assert object_box(values, threshold=1) == (11, 0, 12, 1)
    assert object_box(100 * values) == (6, 6, 12, 8)  # a share of the maximum: scale does not matter
    assert object_box(values.T.flip(0)) == (6, 0, 8, 6)


def test_areas_that_meet_at_a_corner_only_are_two():
    values = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert object_box(values) == (2, 1, 4, 3)


def test_a_part_below_the_threshold_or_negative_is_outside():
    values = torch.tensor([[-9.0, 0.1, 0.2, 1.0, 0.5, 0.19, -3.0]])
    assert object_box(values) == (2, 0, 5, 1)


@pytest.mark.parametrize("values", [torch.full((3, 5), -2.0), torch.zeros(3, 5), torch.full((3, 5), 4.0)])
def test_all_negative_nothing_and_a_plateau_are_the_whole_picture(values):
    assert object_box(values) == (0, 0, 5, 3)


def test_one_cell_arrays_and_maps_with_gradients_are_taken():
    assert object_box(torch.tensor([[2.0]])) == (0, 0, 1, 1)
    assert object_box(np.eye(3, dtype=np.float32)[:1]) == (0, 0, 1, 1)
    assert object_box(torch.ones(2, 3, requires_grad=True)) == (0, 0, 3, 2)
    assert all(type(side) is int for side in object_box(torch.ones(2, 3)))


@given(h=st.integers(1, 7), w=st.integers(1, 7), threshold=st.sampled_from([0.2, 0.5, 0.9]), seed=st.integers(0, 10**6))
def test_the_box_is_found_by_walking_from_cell_to_cell(h, w, threshold, seed):
    values = np.random.default_rng(seed).normal(size=(h, w))
    inside = {cell for cell in np.ndindex(h, w) if values[cell] >= threshold * values.max()} if values.max() > 0 else set(np.ndindex(h, w))
    areas = []
    while inside:
        area, edge = set(), [inside.pop()]
        while edge:
            y, x = cell = edge.pop()
            area.add(cell)
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & inside
            inside -= near
            edge += near
        areas.append(area)
    size = max(map(len, areas))
    boxes = {(min(x for _, x in a), min(y for y, _ in a), max(x for _, x in a) + 1, max(y for y, _ in a) + 1) for a in areas if len(a) == size}
    assert object_box(torch.from_numpy(values), threshold) in boxes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: that maps stay on their device is not tried")
def test_maps_stay_on_their_device():
    maps, layer = some_maps((2, 4, 3, 3)), linear(4, 2)
    expected = class_maps(maps, layer).maps
    found = class_maps(maps.cuda(), layer.cuda()).maps
    assert found.is_cuda and enlarge(found, (9, 9)).is_cuda
    np.testing.assert_allclose(found.cpu(), expected, atol=1e-5)
    assert object_box(found[0, 0]) == object_box(expected[0, 0])
