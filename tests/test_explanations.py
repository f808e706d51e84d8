"""Measures of explanations against brute force: pixel by pixel, cell by cell, picture by picture."""

import numpy as np
import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from partlib import evaluation
from partlib.cam import class_maps, enlarge, object_box, part_contributions
from partlib.heads import PartHead
from partlib.regions import iou, largest_area


def some(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def a_mask(h, w, seed, share=0.4):
    mask = np.random.default_rng(seed).random((h, w)) < share
    mask[seed % h, seed % w] = True
    return mask


# ---- true to the network ----


def test_completeness_and_ablation_by_hand():
    contributions, scores = torch.tensor([[1.0, 2.0, -0.5], [0.0, 1.0, 1.0]]), torch.tensor([3.0, -4.0])
    np.testing.assert_allclose(evaluation.completeness_error(contributions, scores, 0.5), [0, 6.5 / 4])
    np.testing.assert_allclose(evaluation.completeness_error(contributions.view(2, 3, 1), scores), [0.5 / 3, 6 / 4], atol=1e-6)
    without = torch.tensor([[2.0, 1.0, 3.0], [-4.0, -5.0, -4.0]])
    np.testing.assert_allclose(evaluation.ablation_error(contributions, scores, without), [0.5 / 3, 1 / 4], atol=1e-6)


def test_part_contributions_have_no_error_and_wrong_ones_have():
    head = PartHead(8, 5, 3, "max", seed=1).eval()
    maps = some(4, 8, 3, 3)
    parts, scores = part_contributions(head, maps).values[:, 0], head(maps)[:, 0].detach()
    without = scores[:, None] - torch.stack([head.classes.weight[0, p] * head.bag(maps)[:, p] for p in range(5)], 1).detach()
    assert evaluation.completeness_error(parts, scores).max() < 1e-5 and evaluation.ablation_error(parts, scores, without).max() < 1e-5
    assert evaluation.completeness_error(parts[:, :4], scores).min() > 1e-5
    assert evaluation.ablation_error(parts.flip(1), scores, without).min() > 1e-5


@pytest.mark.parametrize("how", ["mean", "grey"])
def test_flat_baselines(how):
    picture = torch.rand(3, 6, 9)
    flat = evaluation.baseline(picture, how)
    for channel in range(3):
        np.testing.assert_allclose(flat[channel], picture[channel].mean() if how == "mean" else 0.5, atol=1e-6)


def test_a_blur_keeps_the_mean_and_loses_detail():
    picture = (torch.arange(40) % 2).float().expand(3, 40, 40)
    blurred = evaluation.baseline(picture)
    assert blurred.shape == picture.shape and abs(blurred.mean() - 0.5) < 0.01
    assert blurred[:, 10:30, 10:30].std() < 0.05 * picture.std()
    assert torch.allclose(evaluation.baseline(torch.full((3, 20, 30), 0.3)), torch.tensor(0.3), atol=1e-5)
    assert evaluation.baseline(torch.rand(3, 4, 4)).shape == (3, 4, 4)  # smaller than the blur is wide


@given(h=st.integers(1, 4), w=st.integers(1, 4), scale=st.integers(1, 3), steps=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_curves_by_removing_one_cell_after_another(h, w, scale, steps, seed):
    steps = min(steps, h * w)
    values, picture = some(h, w, seed=seed).round(), torch.rand(3, h * scale, w * scale)  # rounded: some are equal
    seen = []
    score = lambda pictures: seen.extend(pictures) or pictures.sum((1, 2, 3))
    order = sorted(range(h * w), key=lambda cell: (-values.flatten()[cell].item(), cell))
    deleted, inserted = (evaluate(score, picture, values, "grey", steps) for evaluate in (evaluation.deletion, evaluation.insertion))
    assert len(deleted) == len(inserted) == steps + 1
    for k in range(steps + 1):
        gone = order[: int(np.rint(np.float32(h * w * k / steps)))]
        expected = picture.clone()
        for cell in gone:
            y, x = divmod(cell, w)
            expected[:, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = 0.5
        assert torch.allclose(seen[k], expected, atol=1e-6)
        assert torch.allclose(seen[steps + 1 + k], picture + 0.5 - expected, atol=1e-6)
    assert torch.allclose(deleted[[0, -1]], inserted[[-1, 0]], rtol=1e-4)


def test_the_right_order_falls_sooner_and_rises_sooner():
    """A network that sums one channel, and its own map of it."""
    picture = torch.rand(3, 8, 8)
    score = lambda pictures: pictures[:, 0].sum((1, 2))
    values = torch.nn.functional.avg_pool2d(picture[:1], 2)[0]
    black = lambda curve: evaluation.area(curve)
    deletion = [black(evaluation.deletion(score, picture, v, "mean", 8)) for v in (values, some(4, 4), -values)]
    insertion = [black(evaluation.insertion(score, picture, v, "mean", 8)) for v in (values, some(4, 4), -values)]
    assert deletion == sorted(deletion) and insertion == sorted(insertion, reverse=True)


def test_the_area_is_that_of_trapezoids():
    assert evaluation.area(torch.tensor([1.0, 0.0])) == 0.5
    assert evaluation.area(torch.tensor([0.0, 1.0, 1.0, 0.0])) == pytest.approx(2 / 3)
    curve = some(9)
    assert evaluation.area(curve) == pytest.approx(float(np.trapezoid(curve, np.linspace(0, 1, 9))), abs=1e-6)


# ---- true to the world ----


@given(h=st.integers(1, 5), w=st.integers(1, 5), scale=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_pointing_and_energy_by_pixels(h, w, scale, seed):
    values, mask = some(h, w, seed=seed), a_mask(h * scale, w * scale, seed)
    y, x = np.unravel_index(int(values.argmax()), (h, w))
    assert evaluation.points_at(values, mask) == mask[y * scale + scale // 2, x * scale + scale // 2]
    pixels = values.numpy().clip(0).repeat(scale, 0).repeat(scale, 1)
    expected = (pixels * mask).sum() / pixels.sum() if pixels.sum() > 0 else 0
    assert evaluation.energy(values, mask) == pytest.approx(expected, abs=1e-5)
    cells = [[mask[i * scale : (i + 1) * scale, j * scale : (j + 1) * scale].mean() for j in range(w)] for i in range(h)]
    np.testing.assert_allclose(evaluation.in_cells(mask, (h, w)), cells, atol=1e-6)


def test_energy_of_nothing_and_of_everything():
    mask = np.zeros((6, 6), bool)
    mask[:3] = True
    assert evaluation.energy(-torch.ones(2, 2), mask) == 0
    assert evaluation.energy(torch.ones(2, 2), mask) == 0.5
    assert evaluation.energy(torch.ones(3, 3), np.ones((9, 9), bool)) == 1
    assert evaluation.in_cells(np.stack([mask, ~mask]), (2, 2)).tolist() == [[[1, 1], [0, 0]], [[0, 0], [1, 1]]]


def test_masks_of_boxes_hold_the_pixels_inside():
    for box in [(1, 0, 4, 2), (0, 0, 5, 3), (1.5, 0.2, 3.9, 2.6), (2, 2, 2, 2)]:
        found = evaluation.box_mask(box, (3, 5))
        for y, x in np.ndindex(3, 5):
            assert found[y, x] == (box[0] < x + 0.5 < box[2] and box[1] < y + 0.5 < box[3])


@given(h=st.integers(1, 4), w=st.integers(1, 4), seed=st.integers(0, 10**6), threshold=st.sampled_from([0.2, 0.5]))
@settings(max_examples=40)
def test_localisation_by_sets_of_pixels(h, w, seed, threshold):
    values, mask = some(h, w, seed=seed), a_mask(4 * h, 3 * w, seed)
    large = enlarge(values, (3 * w, 4 * h)).numpy()
    found = {p for p in np.ndindex(*mask.shape) if large.max() <= 0 or large[p] >= np.float32(threshold) * large.max()}
    true = {p for p in np.ndindex(*mask.shape) if mask[p]}
    area, box = evaluation.localisation(values, mask, threshold)
    assert area == pytest.approx(len(found & true) / len(found | true))
    y, x = np.nonzero(mask)
    around = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]])
    assert box == pytest.approx(iou(torch.tensor([object_box(torch.from_numpy(large), threshold)]), around).item())


def test_the_largest_area_is_connected():
    found = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]], bool)
    assert largest_area(found) == (3, 0, 4, 3)


# ---- two explanations ----


def test_rank_correlation_by_ranks():
    a, b = some(5, 3, 4), some(5, 3, 4, seed=1)
    ranks = lambda values: values.flatten(1).argsort(1).argsort(1).double()
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(ranks(a), ranks(b))]
    np.testing.assert_allclose(evaluation.rank_correlation(a, b), expected, atol=1e-9)
    np.testing.assert_allclose(evaluation.rank_correlation(a, a.exp()), 1)
    np.testing.assert_allclose(evaluation.rank_correlation(a, -a), -1)
    flat = evaluation.rank_correlation(torch.zeros(2, 3), torch.rand(2, 3))
    assert np.isnan(flat).all()


# ---- other implementations ----


class OfMaps(nn.Module):
    """Average pooling and a linear layer, as a network of maps; `last` is what others hook into."""

    def __init__(self, layer):
        super().__init__()
        self.last, self.layer = nn.Identity(), layer

    def forward(self, maps):
        return self.layer(self.last(maps).mean((2, 3)))


@pytest.mark.parametrize("negative", [False, True])
def test_grad_cam_of_a_linear_layer_is_the_class_activation_map(negative):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    maps, layer = some(3, 20, 5, 6).abs() * 10, nn.Linear(20, 4)
    if negative:
        layer.weight.data = -layer.weight.data.abs()
    ours = class_maps(maps, layer).maps[:, 2].detach()
    network, targets = OfMaps(layer), [ClassifierOutputTarget(2)] * 3
    with GradCAM(network, [network.last]) as theirs:
        scaled = theirs(maps.clone().requires_grad_(), targets)
        activations, gradients = theirs.activations_and_grads.activations[0].numpy(), theirs.activations_and_grads.gradients[0].numpy()
        before_scaling = theirs.get_cam_image(maps, network.last, targets, activations, gradients)
    np.testing.assert_allclose(before_scaling, ours, atol=1e-4)
    np.testing.assert_allclose(scaled, scale_cam_image(ours.clamp(min=0).numpy()), atol=1e-4)
    positive = ours.clamp(min=0).flatten(1)
    low, high = positive.min(1).values[:, None, None], positive.max(1).values[:, None, None]
    np.testing.assert_allclose(torch.from_numpy(scaled) * (high - low + 1e-7) + low, ours.clamp(min=0), atol=1e-4)  # the scaling undone


def test_a_wrong_baseline_and_too_many_steps_are_refused():
    assert "blur, mean, grey" in refusal(ValueError, lambda: evaluation.baseline(torch.rand(3, 4, 4), "black"))
    assert "steps" in refusal(ValueError, lambda: evaluation.deletion(lambda p: p.sum((1, 2, 3)), torch.rand(3, 4, 4), torch.rand(2, 2), steps=9))
