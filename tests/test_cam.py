"""Class activation maps and contributions of parts add up to the logits, whatever the weights; boxes on maps drawn by hand."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import partlib as pl
from partlib.cam import category_parts, class_maps, enlarge, object_box, part_contributions, part_maps, score_sheet, what_if
from partlib.heads import POOLS, PartHead

ROOT = Path(__file__).parents[1]


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


# ---- part-CAM: the parts of a decision ----


def a_head(pool, d=5, parts=6, classes=4, seed=0, **options):
    """In float64 and as after training: weights of both signs, batch statistics that are not 0 and 1, thresholds, a scale."""
    head = PartHead(d, parts, classes, pool, seed=seed, **options).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        head.scale.fill_(1.7)
        if head.norm is not None:
            head.norm.running_mean.copy_(torch.randn(parts, generator=draw))
            head.norm.running_var.copy_(torch.rand(parts, generator=draw) + 0.1)
    return head


def bags_by_loops(head, maps):
    """b (n, p) and the scores (n, p, r), region by region."""
    filters, maps = head.filters.weight[: head.parts, :, 0, 0].detach().numpy(), maps.numpy()
    boxes = [(x, y, x + s, y + s) for s in head.sizes for y in range(maps.shape[2] - s + 1) for x in range(maps.shape[3] - s + 1)]
    scores = np.zeros((len(maps), head.parts, len(boxes)))
    for i, p, r in np.ndindex(scores.shape):
        x0, y0, x1, y1 = boxes[r]
        scores[i, p, r] = filters[p] @ maps[i, :, y0:y1, x0:x1].mean((1, 2)) / head.scale.item()
        if head.thresholds is not None:
            scores[i, p, r] = max(scores[i, p, r] - head.thresholds[p].item(), 0)
    bags = np.zeros(scores.shape[:2])
    for i, p in np.ndindex(bags.shape):
        s = scores[i, p]
        weigh = np.exp((s - s.max()) / head.temperature)
        pooled = {"max": s.max(), "mean": s.mean(), "softmax": (weigh * s).sum() / weigh.sum(), "gem": (s.clip(0) ** 3).mean() ** (1 / 3)}
        bags[i, p] = pooled[head.pool]
    return bags, scores, boxes


def logits_by_loops(head, bags):
    if head.norm is not None:
        bags = (bags - head.norm.running_mean.numpy()) / np.sqrt(head.norm.running_var.numpy() + head.norm.eps)
    return bags @ head.classes.weight.detach().numpy().T


heads_and_maps = given(
    pool=st.sampled_from(POOLS), norm=st.booleans(), presence=st.booleans(), sizes=st.sampled_from([(1,), (1, 2)]),
    shift=st.sampled_from([0.0, -50.0, 3.0]), seed=st.integers(0, 10**6),
)  # fmt: skip


@heads_and_maps
@settings(max_examples=80)
def test_a_score_sheet_is_the_logit_written_out(pool, norm, presence, sizes, shift, seed):
    head = a_head(pool, norm=norm, presence=presence, sizes=sizes, seed=seed)
    maps = some_maps((1, 5, 3, 4), seed).double() + shift  # far down, all scores of some parts are negative
    bags, scores, boxes = bags_by_loops(head, maps)
    (logits,) = logits_by_loops(head, bags)
    for c, other in [(0, None), (3, None), (1, 2), (2, 1)]:
        sheet = score_sheet(head, maps, c, other)
        expected = logits[c] - (0 if other is None else logits[other])
        assert abs(sheet.total.item() - expected) <= 1e-5 * abs(expected)
        assert sorted(sheet.parts.tolist()) == list(range(6)) and (sheet.contributions.diff() <= 0).all()
        assert (sheet.c, sheet.against, sheet.cells) == (c, other, (3, 4))
        np.testing.assert_allclose(sheet.bag, bags[0, sheet.parts], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(sheet.contributions, sheet.weights * sheet.bag)
        if not norm:
            assert sheet.constant == 0
        for p, box in zip(sheet.parts.tolist(), sheet.boxes.tolist()):
            absent = presence and scores[0, p].max() == 0
            assert tuple(box) == ((0, 0, 0, 0) if absent else boxes[scores[0, p].argmax()])


@heads_and_maps
@settings(max_examples=80)
def test_switching_parts_off_is_zeroing_their_filters_and_moves_logits_by_their_contributions(pool, norm, presence, sizes, shift, seed):
    head = a_head(pool, norm=norm, presence=presence, sizes=sizes, seed=seed)
    maps = some_maps((3, 5, 3, 4), seed).double() + shift
    parts, whole = part_contributions(head, maps), head(maps).detach()
    bags = bags_by_loops(head, maps)[0]
    for off in ([], [0], [4, 1], list(range(6))):
        found = what_if(head, maps, off)
        moved = (found - whole + parts.values[:, :, off].sum(2)).abs()
        assert (moved <= 1e-5 * whole.abs()).all()
        left = np.where(np.isin(range(6), off), 0, bags)
        np.testing.assert_allclose(found, logits_by_loops(head, left), rtol=1e-7, atol=1e-9)
        without = copy.deepcopy(head)
        with torch.no_grad():
            without.filters.weight[off] = 0
            if presence:
                without.thresholds[off] = 0  # below 0, one would let a filter of zeros speak
            np.testing.assert_allclose(found, without(maps), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(what_if(head, maps, range(6)), parts.constant.expand(3, 4), atol=1e-12)


def test_a_negative_threshold_does_not_let_a_part_that_is_off_speak():
    head, maps = a_head("max", presence=True), some_maps((1, 5, 3, 4)).double()
    with torch.no_grad():
        head.thresholds.fill_(-2)
        zeroed = copy.deepcopy(head)
        zeroed.filters.weight[2] = 0
        assert zeroed.bag(maps)[0, 2] == 2
    np.testing.assert_allclose(what_if(head, maps, [2]), head(maps).detach() - part_contributions(head, maps).values[:, :, 2], atol=1e-12)


@given(norm=st.booleans(), pool=st.sampled_from(POOLS), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_contrast_is_the_difference_of_two_sheets(norm, pool, seed):
    head, maps = a_head(pool, norm=norm, seed=seed), some_maps((1, 5, 3, 4), seed).double()
    one, other, lead = score_sheet(head, maps, 0), score_sheet(head, maps, 2), score_sheet(head, maps, 0, against=2)
    by_part = lambda sheet: sheet.contributions[sheet.parts.argsort()]
    np.testing.assert_allclose(by_part(lead), by_part(one) - by_part(other), atol=1e-12)
    np.testing.assert_allclose(by_part(lead), -by_part(score_sheet(head, maps, 2, against=0)), atol=1e-12)
    with torch.no_grad():  # what all classes share, of weights or of a constant, is not in it
        head.classes.weight += torch.randn(6, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(by_part(score_sheet(head, maps, 0, against=2)), by_part(lead), atol=1e-9)
    assert abs(score_sheet(head, maps, 0, against=2).total - lead.total) < 1e-9


@given(norm=st.booleans(), pool=st.sampled_from(POOLS), n=st.integers(4, 12), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_category_parts_by_loops(norm, pool, n, seed):
    head, maps = a_head(pool, norm=norm, seed=seed), some_maps((n, 5, 2, 3), seed).double()
    labels = np.random.default_rng(seed).permutation(np.arange(n) % 4)
    bags = bags_by_loops(head, maps)[0]
    found = category_parts(head, head.bag(maps), labels)
    weights, logits = head.folded()[0].detach().numpy(), logits_by_loops(head, bags)
    for c in range(4):
        own, rest = ([i for i in range(n) if (labels[i] == c) == same] for same in (True, False))
        for p in range(6):
            mean = sum(weights[c, p] * bags[i, p] for i in own) / len(own)
            others = sum(weights[c, p] * bags[i, p] for i in rest) / len(rest)
            assert abs(found.mean[c, p].item() - mean) < 1e-9 and abs(found.minus_rest[c, p].item() - (mean - others)) < 1e-9
        assert abs((found.mean[c].sum() + found.constant[c]).item() - logits[own, c].mean()) < 1e-9
        assert abs(found.minus_rest[c].sum().item() - (logits[own, c].mean() - logits[rest, c].mean())) < 1e-9


def worst_errors(head, maps):
    """Of completeness and of ablation, relative to the largest logit."""
    with torch.no_grad():
        whole, parts = head(maps), part_contributions(head, maps)
        size = whole.abs().max()
        sheets = [score_sheet(head, maps[[i]], int(whole[i].argmax())) for i in range(len(maps))]
        adds_up = max(abs(sheet.total - row.max()) for sheet, row in zip(sheets, whole))
        maps_too = max(
            (part_maps(head, maps[[i]], sheet.c).sum() + sheet.constant - whole[i, sheet.c]).abs() for i, sheet in enumerate(sheets)
        )
        removed = 0
        for p in range(0, head.parts, 9):
            kept = head.filters.weight[p].clone()
            head.filters.weight[p] = 0
            removed = max(removed, (whole - head(maps) - parts.values[:, :, p]).abs().max())
            head.filters.weight[p] = kept
            removed = max(removed, (whole - what_if(head, maps, [p]) - parts.values[:, :, p]).abs().max())
    return float(adds_up / size), float(maps_too / size), float(removed / size)


def of_real_size(pool, norm, maps):
    """64 parts, 14 classes; a batch norm has seen these maps, a scale is that of their cells."""
    head = PartHead(maps.shape[1], 64, 14, pool, norm=norm)
    head.scale.fill_(maps.norm(dim=1).mean())
    with torch.no_grad():
        for _ in range(30 * norm):
            head.train()(maps)
    return head.eval()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_in_float32_sums_and_ablations_are_right_to_the_last_digits(pool, norm):
    maps = some_maps((12, 1280, 10, 10)).abs()
    assert max(worst_errors(of_real_size(pool, norm, maps), maps)) < 1e-5


@pytest.fixture(scope="module")
def real_maps():
    photos = pl.data.groceries()
    return pl.extract(pl.Backbone(size=256), photos[photos.test[::33][:20]], cache=ROOT / "data" / "cache").tensor()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_on_real_photographs_sums_and_ablations_are_right_to_the_last_digits(pool, norm, real_maps):
    assert max(worst_errors(of_real_size(pool, norm, real_maps), real_maps)) < 1e-5


def test_what_explains_parts_answers_mistakes_in_one_sentence():
    head, maps = a_head("max"), some_maps((2, 5, 3, 4)).double()
    bags, labels = head.bag(maps), np.array([0, 1])
    assert "maps of 2: write maps[i][None]" in refusal(ValueError, lambda: score_sheet(head, maps, 0))
    assert "no lead over itself" in refusal(ValueError, lambda: score_sheet(head, maps[:1], 1, against=1))
    for c, other in ((4, None), (-1, None), (0, 9), (1.5, None)):
        assert "4 classes" in refusal(ValueError, lambda: score_sheet(head, maps[:1], c, other))
    for off in ([6], [-1], [0.5], [True, False], list(range(20))):
        assert "6 parts, to be named by whole numbers from 0 to 5" in refusal(ValueError, lambda: what_if(head, maps, off))
    assert "(n, 6)" in refusal(ValueError, lambda: category_parts(head, maps, labels))
    assert "classes [2, 3] have no photographs" in refusal(ValueError, lambda: category_parts(head, bags, labels))
    assert "4 classes" in refusal(ValueError, lambda: category_parts(head, bags, [0, 4]))
    refusal(ValueError, lambda: category_parts(head, bags, [0]))
    for explain in (lambda: score_sheet(PartHead(5), maps, 0), lambda: what_if(PartHead(5), maps, []), lambda: category_parts(PartHead(5), bags, labels)):
        assert "decides nothing" in refusal(ValueError, explain)
