"""Pretext tasks: their questions against independent computations, and that each can be learnt, from nothing and from packaged weights."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from common import close, one_sentence, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage import color
from torch import nn
from torch.nn import functional as F

import partlib as pl
from partlib import training
from partlib.pretext import (
    BatchNorm, Colorization, Crops, Front, Jigsaw, Rotation, Views, alike, apart, codes, colour, convnet, in_memory, tiles_of, turned,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos():
    return pl.data.groceries()[::40]


@pytest.fixture(scope="module")
def small(photos):
    return in_memory(photos, 48)


# ---- photographs in memory ----


def test_small_pictures_are_the_whole_photographs(photos, small):
    assert small.shape == (len(photos), 3, 48, 48) and small.dtype == torch.uint8
    for i in (0, 7, 20):
        plain = np.asarray(photos[i].resize((48, 48), Image.Resampling.BICUBIC), dtype=float).transpose(2, 0, 1)
        assert abs(plain - small[i].numpy()).mean() < 1


def test_a_part_is_the_picture_between_its_pixels():
    x = pictures(2, 3, 10, 14)
    part = torch.tensor([[[-0.5, 0, 0.3], [0, 0.5, -0.2]], [[0.7, 0, -0.1], [0, 0.7, 0.25]]])
    seen = Crops(x).seen(torch.tensor([1, 0]), part)
    for k, row in enumerate((1, 0)):
        down, right = np.mgrid[:10, :14]
        u, v = (2 * right + 1) / 14 - 1, (2 * down + 1) / 10 - 1  # centres of pixels, from −1 to 1
        a = part[k].numpy()
        at = [((a[1, 1] * v + a[1, 2] + 1) * 10 - 1) / 2, ((a[0, 0] * u + a[0, 2] + 1) * 14 - 1) / 2]
        for channel in range(3):
            expected = ndimage.map_coordinates(x[row, channel].numpy() / 255, at, order=1, mode="nearest")
            np.testing.assert_allclose(seen[k, channel], expected, atol=1e-5)


@given(least=st.floats(0.05, 1), seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_parts_lie_inside_and_keep_their_share(least, seed):
    part = Crops(pictures(1, 3, 4, 4), least).draw(50, torch.Generator().manual_seed(seed))
    side = part[:, 1, 1]
    assert (side**2 >= least - 1e-6).all() and (side <= 1).all() and torch.equal(part[:, 0, 0].abs(), side)
    assert (part[:, :, 2].abs() <= 1 - side[:, None] + 1e-6).all()


def test_the_whole_is_seen_as_it_is_or_mirrored():
    crops = Crops(pictures(40, 3, 6, 6), least=1)
    part = crops.draw(40, torch.Generator().manual_seed(0))
    seen, whole = crops.seen(torch.arange(40), part), crops.whole(torch.arange(40))
    mirrored = part[:, 0, 0] < 0
    close(seen[~mirrored], whole[~mirrored], 1e-5)
    close(seen[mirrored], whole[mirrored].flip(3), 1e-5)
    assert 8 < mirrored.sum() < 32


def test_views_are_versions_of_maps():
    maps = [torch.rand(5, 2, 3, 3) for _ in range(3)]
    views = Views(maps)
    version = views.draw(200, torch.Generator().manual_seed(0))
    assert set(version.tolist()) == {0, 1, 2} and len(views) == 5
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(views.seen(rows, torch.tensor([2, 0, 1])), torch.stack([maps[2][4], maps[0][0], maps[1][4]]))
    assert torch.equal(views.whole(rows), maps[0][rows])


# ---- the trunk ----


def test_sobel_is_that_of_scipy(small):
    edges = Front(sobel=True)(small[:2])
    assert edges.shape == (2, 2, 48, 48)
    for i in (0, 1):
        grey = (small[i].double().numpy() / 255 * 4 - 2).mean(0)
        for k, axis in enumerate((1, 0)):
            np.testing.assert_allclose(edges[i, k], ndimage.sobel(grey, axis, mode="nearest") / 4, atol=1e-5)
    close(Front(True)(small[:2] / 255), edges, 1e-6)
    assert Front(True)(torch.full((1, 3, 5, 5), 0.7)).abs().max() < 1e-5


def test_batch_norm_alone_is_torchs():
    own, plain, x = BatchNorm(4), nn.BatchNorm2d(4), torch.randn(6, 4, 3, 3)
    assert torch.equal(own(x), plain(x)) and torch.equal(own.running_var, plain.running_var)
    assert torch.equal(own.eval()(x), plain.eval()(x))


def test_the_small_network_by_layers(small):
    trunk = convnet(seed=3)
    assert [codes(trunk[: 1 + layer], small[:4]).shape[1] for layer in range(1, 6)] == [24, 48, 64, 64, 64]
    assert trunk(small[:1]).shape[2:] == (6, 6)  # the stride is 8
    assert trunk.training and all(module.training for module in trunk.modules())
    same, other = convnet(seed=3), convnet(seed=4)
    assert torch.equal(same[1][0].weight, trunk[1][0].weight) and not torch.equal(other[1][0].weight, trunk[1][0].weight)
    assert convnet(sobel=True)(small[:1]).shape == (1, 64, 6, 6)
    found = codes(trunk, small, batch=7)
    trunk.eval()
    with torch.no_grad():
        close(found, trunk(small).mean((2, 3)), 1e-5)


# ---- rotation ----


def test_turns_are_exact(small):
    assert torch.equal(turned(small), torch.cat([torch.rot90(small, turn, (2, 3)) for turn in range(4)]))
    upright, left, down, right = turned(small[:1])
    picture = Image.fromarray(small[0].permute(1, 2, 0).numpy())
    for turn, tensor in ((Image.Transpose.ROTATE_90, left), (Image.Transpose.ROTATE_180, down), (Image.Transpose.ROTATE_270, right)):
        assert np.array_equal(np.asarray(picture.transpose(turn)), tensor.permute(1, 2, 0).numpy())
    assert torch.equal(turned(turned(small).chunk(4)[3]).chunk(4)[1], small)


def test_rotation_asks_all_four_and_chance_is_a_quarter(small):
    task = Rotation(convnet((8, 8), seed=0), small)
    logits, answers = task.turns(small[:3] / 255)
    assert logits.shape == (12, 4) and answers.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    rows, part = torch.arange(3), Crops(small, 1.0).draw(3, torch.Generator().manual_seed(1))
    logits, _ = task.turns(task.seen.seen(rows, part))
    by_hand = -torch.log_softmax(logits, 1).view(4, 3, 4).diagonal(dim1=0, dim2=2).mean()
    close(task(rows, part)["rotation"], by_hand, 1e-5)
    nn.init.zeros_(task.head.weight)
    assert task.accuracy(small) == 25 == task.chance


# ---- jigsaw ----


def hamming(permutations):
    return (permutations[:, None] != permutations[None]).sum(2)


@pytest.mark.parametrize("tiles, count", [(3, 6), (4, 10), (5, 30)])
def test_permutations_are_the_greedy_ones_of_all(tiles, count):
    found = apart(count, tiles, seed=1)
    every = list(itertools.permutations(range(tiles)))
    chosen = [tuple(found[0])]
    while len(chosen) < count:
        rest = [(min(d), sum(d)) for d in ([sum(a != b for a, b in zip(p, q)) for q in chosen] for p in every)]
        chosen.append(every[max(range(len(every)), key=lambda i: (rest[i], -i))])
    assert [tuple(p) for p in found] == chosen


def test_nine_tiles_are_far_apart():
    found = apart(64)
    distance = hamming(found) + 9 * np.eye(64, dtype=int)
    assert (np.sort(found, 1) == np.arange(9)).all() and distance.min() >= 7
    assert hamming(apart(9))[np.triu_indices(9, 1)].min() >= 8
    drawn = np.array([np.random.default_rng(0).permutation(9) for _ in range(64)])
    assert distance.min() > (hamming(drawn) + 9 * np.eye(64, dtype=int)).min()
    assert np.array_equal(apart(5, seed=2), apart(5, seed=2)) and not np.array_equal(apart(5, seed=2), apart(5, seed=3))
    assert len(np.unique(apart(24, tiles=4), axis=0)) == 24  # all there are


def test_tiles_lie_where_they_are_said_to(small):
    corners = torch.randint(0, 4, (2, 9, 2), generator=torch.Generator().manual_seed(0))
    tiles = tiles_of(small[:2] / 255, corners, 13)
    for i, place in itertools.product(range(2), range(9)):
        down, right = (16 * np.array(divmod(place, 3)) + corners[i, place].numpy()).tolist()
        assert torch.equal(tiles[i, place], small[i, :, down : down + 13, right : right + 13] / 255)


def test_tiles_are_made_alike(small):
    tiles = alike(tiles_of(small[:3] / 255, torch.zeros(3, 9, 2, dtype=torch.long), 14))
    values = tiles.flatten(2)
    close(values.mean(2), torch.full((3, 9), 0.5), 1e-4)
    close(values.std(2), torch.full((3, 9), 0.25), 1e-2)
    close(alike(0.3 * tiles + 0.1), tiles, 1e-3)
    assert alike(torch.full((1, 3, 4, 4), 0.8)).isfinite().all()


def test_the_jigsaw_is_shuffled_as_the_answer_says(small):
    task = Jigsaw(convnet((8, 8), seed=0), small, count=12)
    which, corners = task.puzzle(5, torch.Generator().manual_seed(2))
    plain, shuffled = alike(tiles_of(small[:5] / 255, corners, task.tile)), task.shuffled(small[:5] / 255, which, corners)
    for i, place in itertools.product(range(5), range(9)):
        assert torch.equal(shuffled[i, place], plain[i, task.order[which[i], place]])
    assert task.tile == round(16 * 64 / 75) and corners.max() <= 16 - task.tile and task.chance == pytest.approx(100 / 12)
    drawn = task.draw(torch.arange(5), torch.Generator().manual_seed(3))
    assert [len(each) for each in drawn] == [5] * 5
    assert task(*drawn)["jigsaw"].isfinite()


# ---- colour ----


def test_lab_is_that_of_scikit_image():
    levels = np.linspace(0, 1, 18)
    rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    lab = colour.rgb_to_lab(torch.from_numpy(rgb).permute(0, 2, 1)[..., None])
    np.testing.assert_allclose(lab[0, :, :, 0].T, color.rgb2lab(rgb)[0], atol=1e-3)
    close(colour.lab_to_rgb(lab)[0, :, :, 0].T, torch.from_numpy(rgb[0]), 1e-5)
    outside = torch.tensor([[50.0, 90, -90], [20, -60, 60], [95, 0, 80]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = color.lab2rgb(outside.double().numpy()[None])[0]
    np.testing.assert_allclose(colour.lab_to_rgb(outside.double().T[None, :, :, None])[0, :, :, 0].T, expected, atol=1e-4)


@given(grey=st.floats(0, 1))
def test_grey_has_no_colour(grey):
    lab = colour.rgb_to_lab(torch.full((1, 3, 1, 1), grey)).flatten()
    assert -0.01 < lab[0] < 100.01 and lab[1:].abs().max() < 0.02


def test_bins_are_the_colours_of_the_gamut():
    found = {tuple(point) for point in colour.bins().int().tolist()}
    random = np.random.default_rng(0).integers(0, 256, (1, 300_000, 3)) / 255
    within = np.unique((color.rgb2lab(random)[0, :, 1:] / 10).round().astype(int) * 10, axis=0)
    assert {tuple(point) for point in within.tolist()} <= found and len(within) > 0.97 * len(found)
    levels = np.arange(256) / 255
    one, other = (axis.ravel() for axis in np.meshgrid(levels, levels))
    faces = [np.insert(np.stack([one, other], 1), axis, end, 1) for axis in range(3) for end in (0, 1)]
    by_skimage = np.unique((color.rgb2lab(np.concatenate(faces)[None])[0, :, 1:] / 10).round().astype(int) * 10, axis=0)
    assert {tuple(point) for point in by_skimage.tolist()} == found and len(found) == 261


def test_soft_targets_are_gaussians_of_the_five_nearest():
    centres, ab = colour.bins(), torch.tensor([[3.0, -7.0], [0.0, 0.0], [60.0, 41.0], [-300.0, 20.0]])
    Z = colour.soft(ab, centres)
    for row, point in zip(Z.double().numpy(), ab.double().numpy()):
        distance = ((centres.double().numpy() - point) ** 2).sum(1)
        nearest = set(np.flatnonzero(row))
        assert len(nearest) <= 5 and distance[list(nearest)].max() <= np.sort(distance)[4] + 1e-6
        kernel = np.exp(-(distance - distance.min()) / 50) * np.isin(np.arange(261), list(nearest))
        np.testing.assert_allclose(row, kernel / kernel.sum(), atol=1e-5)
    assert torch.equal(Z.argmax(1), colour.nearest_bin(ab, centres))


@given(seed=st.integers(0, 1000), mixed=st.floats(0, 1))
@settings(max_examples=30)
def test_rare_colours_weigh_more_and_the_mean_is_one(seed, mixed):
    share = torch.rand(20, generator=torch.Generator().manual_seed(seed)) + 0.01
    share = share / share.sum()
    weight = colour.rebalanced(share, mixed)
    assert float(share @ weight) == pytest.approx(1, rel=1e-4)
    order = share.argsort()
    assert (weight[order].diff() <= 1e-5).all()
    if mixed == 1:
        close(weight, torch.ones(20))


def test_the_annealed_mean_lies_between_mean_and_mode():
    centres, logits = colour.bins(), 3 * torch.randn(2, 261, 2, 3, generator=torch.Generator().manual_seed(0))
    mean = torch.einsum("nqhw,qc->nchw", logits.softmax(1), centres)
    close(colour.annealed_mean(logits, centres, 1.0), mean, 1e-3)
    mode = centres[logits.argmax(1)].permute(0, 3, 1, 2)
    close(colour.annealed_mean(logits, centres, 1e-3), mode, 1e-2)
    decided = colour.annealed_mean(logits, centres)
    assert (decided - mode).norm() < (mean - mode).norm()


def test_the_loss_of_colours_written_out(small):
    task = Colorization(convnet((8, 8, 8), seed=0), small)
    lab = colour.rgb_to_lab(small[:4] / 255)
    logits, cells = task.logits(lab), []
    assert torch.equal(task.logits(torch.cat([lab[:, :1], -lab[:, 1:]], 1)), logits)  # it does not see what it must tell
    ab = lab[:, 1:].unflatten(2, (6, 8)).unflatten(4, (6, 8)).mean((3, 5))
    for i, y, x in itertools.product(range(4), range(6), range(6)):
        Z = colour.soft(ab[i, :, y, x][None], task.centres)[0]
        cells.append(-task.weight[Z.argmax()] * (Z * torch.log_softmax(logits[i, :, y, x], 0)).sum())
    close(task.lost(lab), torch.stack(cells).mean(), 1e-4)
    assert float(task.share @ task.weight) == pytest.approx(1, rel=1e-4)


def test_the_best_answer_that_does_not_look(small):
    task = Colorization(convnet((8, 8, 8), seed=0), small)
    nn.init.zeros_(task.head.weight)
    best = nn.Parameter(torch.zeros(len(task.centres)))
    task.head.bias = best
    lab = colour.rgb_to_lab(small / 255)
    search = torch.optim.LBFGS([best], lr=1, max_iter=200, line_search_fn="strong_wolfe")

    def step():
        search.zero_grad()
        loss = task.lost(lab)
        loss.backward(inputs=[best])
        return loss

    search.step(step)
    reached, told = task.losses(small)
    assert reached == pytest.approx(told, abs=2e-3) and reached >= told - 1e-4
    frequent = (task.weight * torch.bincount(colour.nearest_bin(task.true(lab), task.centres), minlength=261)).argmax()
    with torch.no_grad():
        best.copy_(F.one_hot(frequent, 261).float())
    assert task.accuracy(small) == pytest.approx(task.chance, abs=0.01)


def test_a_coloured_picture_keeps_its_lightness(small):
    task = Colorization(convnet((8, 8, 8), seed=0), small)
    nn.init.zeros_(task.head.weight)
    with torch.no_grad():
        task.head.bias.copy_(30.0 * (task.centres == torch.tensor([10.0, 20.0])).all(1))
    painted = task.coloured(small[:6])
    before, after = (color.rgb2lab(some.permute(0, 2, 3, 1).numpy()) for some in (small[:6], painted))
    middle = (before[..., 0] > 30) & (before[..., 0] < 80)
    assert abs(before[..., 0] - after[..., 0])[middle].max() < 1
    np.testing.assert_allclose(after[middle][:, 1:].mean(0), [10, 20], atol=0.5)


# ---- learning ----


def shaded(n, seed=0):
    """Pictures that say where up is, which tile goes where, and which colour goes with which light."""
    draw = torch.Generator().manual_seed(seed)
    noise, ramp = torch.rand(n, 1, 30, 30, generator=draw), torch.linspace(0, 1, 30)
    light = 0.25 * noise + 0.45 * ramp[:, None] + 0.3 * ramp**2
    return (255 * torch.cat([light, 0.6 * light, 1 - light], 1)).to(torch.uint8)


@pytest.mark.parametrize("make, far", [
    (Rotation, 90), (lambda trunk, seen: Jigsaw(trunk, seen, count=4), 55), (Colorization, 20),
], ids=["rotation", "jigsaw", "colour"])  # fmt: skip
def test_what_can_be_told_is_learnt(make, far):
    task = make(convnet((8, 16, 16), seed=0), Crops(shaded(96), 0.9))
    history = training.fit(task, epochs=12, batch=24, rate=5e-3)
    first, last = (next(value for name, value in epoch.items() if name in ("rotation", "jigsaw", "colour")) for epoch in (history[0], history[-1]))
    reached = task.accuracy(shaded(60, seed=1))
    assert last < first and reached > max(far, 2 * task.chance), (first, last, reached, task.chance)
    assert task.training


def test_the_packaged_backbone_as_trunk(small):
    fresh = pl.Backbone(size=64, pretrained=False, trainable=True)
    last = nn.Sequential(pl.Backbone(size=64, layer="_blocks.14"), pl.Backbone(size=64).after("_blocks.14"))
    for trunk in (fresh, last):
        before = {name: value.clone() for name, value in trunk.named_parameters()}
        training.fit(task := Rotation(trunk, small[:8]), epochs=1, batch=8, rate=1e-3)
        moved = {name: not torch.equal(value, before[name]) for name, value in trunk.named_parameters()}
        assert any(moved.values()) and all(moved[name] == value.requires_grad for name, value in trunk.named_parameters() if not value.requires_grad)
        assert 0 <= task.accuracy(small[8:16]) <= 100


@pytest.mark.parametrize("make", [Rotation, Jigsaw, Colorization])
def test_heads_come_from_their_seed(make, small):
    weights = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 5)):
        torch.manual_seed(global_seed)
        task = make(convnet((8, 8, 8), seed=0), small, seed=seed)
        weights.append(torch.cat([p.detach().flatten() for p in task.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


# ---- what is refused ----


@pytest.mark.parametrize("mistake, words", [
    (lambda: Rotation(convnet(), torch.zeros(2, 3, 8, 9, dtype=torch.uint8)), ("8 x 9", "square")),
    (lambda: Rotation(convnet(), torch.zeros(2, 3, 8, 8)), ("float32", "in_memory")),
    (lambda: Rotation(convnet(), pictures(0, 3, 8, 8)), ("no pictures",)),
    (lambda: Rotation(nn.Sequential(convnet(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures(2, 3, 16, 16)), ("(1, 64)", "pooling")),
    (lambda: Jigsaw(convnet(), pictures(2, 3, 16, 16)), ("16 x 16", "nine tiles")),
    (lambda: apart(25, tiles=4), ("25 permutations", "24")),
    (lambda: Crops(pictures(2, 3, 8, 8), least=0), ("least=0",)),
    (lambda: Views([torch.zeros(2, 4, 3, 3), torch.zeros(3, 4, 3, 3)]), ("(2, 4, 3, 3)", "one shape")),
    (lambda: in_memory(pl.data.groceries()[:0]), ("groceries", "no photographs")),
])  # fmt: skip
def test_refused(mistake, words):
    with pytest.raises(ValueError) as caught:
        mistake()
    one_sentence(caught, *words)
