"""Keypoint regression, agreement in its variants, purity, consistency, stability and few-shot episodes, each against loops over its definition."""

import math
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import partlib as pl
from partlib.evaluation import agreement, ceiling, consistency, disturb, few_shot, keypoint_regression, merge_sides, part_agreement
from partlib.evaluation import part_centres, parts_at, purity, stability, touched

CUB_NAMES = [
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape", "right eye", "right leg", "right wing",
    "tail", "throat",
]  # fmt: skip


def scene(n, p, k, h=5, w=7, seed=0, seen=0.8):
    """Maps of parts, keypoints, boxes and sizes of n made-up pictures; every keypoint is visible in the first two."""
    draw = np.random.default_rng(seed)
    maps = torch.softmax(torch.from_numpy(3 * draw.normal(size=(n, p + 1, h, w))), 1)[:, :p]
    sizes = draw.integers(50, 200, (n, 2)).astype(float)
    points = np.concatenate([draw.uniform(0, 1, (n, k, 2)) * sizes[:, None], draw.uniform(size=(n, k, 1)) < seen], axis=2)
    points[:2, :, 2] = 1
    boxes = np.concatenate([draw.uniform(0, 0.3, (n, 2)) * sizes, draw.uniform(0.6, 1, (n, 2)) * sizes], axis=1)
    return maps, points, boxes, sizes


# ---- keypoint regression ----


def regression_by_hand(maps, points, boxes, sizes, train, test):
    n, p, h, w = maps.shape
    features, active = np.zeros((n, 2 * p)), np.zeros((n, 2 * p), bool)
    for i in range(n):
        (x0, y0, x1, y1), (width, height) = boxes[i], sizes[i]
        for j in range(p):
            a, x, y = maps[i, j].numpy(), 0.0, 0.0
            for row in range(h):
                for column in range(w):
                    x += a[row, column] * (column + 0.5) * width / w
                    y += a[row, column] * (row + 0.5) * height / h
            features[i, 2 * j : 2 * j + 2] = (x / a.sum() - x0) / (x1 - x0), (y / a.sum() - y0) / (y1 - y0)
            active[i, 2 * j : 2 * j + 2] = a.max() > 0.5
    total, count = 0.0, 0
    for k in range(points.shape[1]):
        goal = np.stack([(points[:, k, 0] - boxes[:, 0]) / (boxes[:, 2] - boxes[:, 0]), (points[:, k, 1] - boxes[:, 1]) / (boxes[:, 3] - boxes[:, 1])], 1)
        a, b = [i for i in train if points[i, k, 2] > 0], [i for i in test if points[i, k, 2] > 0]
        mean, std, middle, reach = features[a].mean(0), features[a].std(0), goal[a].mean(0), goal[a].std(0)
        standard = lambda rows: np.where(active[rows], (features[rows] - mean) / np.where(std > 1e-12, std, 1), 0)
        solution = np.linalg.lstsq(standard(a), (goal[a] - middle) / np.where(reach > 1e-12, reach, 1), rcond=None)[0]
        for i, guess in zip(b, standard(b) @ solution * np.where(reach > 1e-12, reach, 1) + middle):
            total, count = total + math.dist(guess, goal[i]), count + 1
    return 100 * total / count


@given(p=st.integers(1, 3), k=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_keypoint_regression_is_its_definition(p, k, seed):
    data = scene(24, p, k, seed=seed)
    train, test = np.arange(0, 24, 2), np.arange(1, 24, 2)
    assert keypoint_regression(*data, train, test) == pytest.approx(regression_by_hand(*data, train, test), abs=1e-6)


def test_parts_that_are_the_keypoints_regress_them_and_parts_that_are_nowhere_give_the_mean():
    draw = np.random.default_rng(0)
    n, h, w = 40, 10, 10
    cells = draw.integers(0, 10, (n, 2, 2))
    maps = torch.zeros(n, 2, h, w)
    for i in range(n):
        for j in range(2):
            maps[i, j, cells[i, j, 1], cells[i, j, 0]] = 1
    sizes, boxes = np.full((n, 2), 100.0), np.tile([0.0, 0, 100, 100], (n, 1))
    points = np.concatenate([(cells + 0.5) * 10, np.ones((n, 2, 1))], axis=2)
    train, test = np.arange(20), np.arange(20, 40)
    assert keypoint_regression(maps, points, boxes, sizes, train, test) < 1e-6
    absent = keypoint_regression(maps * 0.4, points, boxes, sizes, train, test)  # never above one half
    mean = points[:20, :, :2].mean(0)
    assert absent == pytest.approx(np.linalg.norm(points[20:, :, :2] - mean, axis=2).mean(), abs=1e-6)


def test_keypoints_that_are_nowhere_visible_do_not_count():
    maps, points, boxes, sizes = scene(12, 2, 3)
    train, test = np.arange(6), np.arange(6, 12)
    points[:, 2, 2] = 0
    whole, fewer = (keypoint_regression(maps, some, boxes, sizes, train, test) for some in (points, points[:, :2]))
    assert whole == pytest.approx(fewer)
    points[7, 2, 2] = 1
    with pytest.raises(ValueError, match="keypoint 2 is visible in 1 test photographs and in none for training"):
        keypoint_regression(maps, points, boxes, sizes, train, test)
    points[:, :, 2] = 0
    with pytest.raises(ValueError, match="no keypoint is visible"):
        keypoint_regression(maps, points, boxes, sizes, train, test)


def test_the_middle_of_a_part_is_in_pixels():
    maps = torch.zeros(1, 2, 2, 4)
    maps[0, 0, 1, 3] = 0.6
    maps[0, 1, :, 0] = 0.5
    centres, active = part_centres(maps, [(80, 20)])
    assert centres[0].tolist() == [[70, 15], [10, 10]] and active[0].tolist() == [True, False]


# ---- agreement, in every variant ----


def entropy(values):
    total = len(values)
    return -sum(c / total * math.log(c / total) for c in Counter(values).values())


def nmi_and_ari_by_counting(found, true):
    """NMI over three means of the entropies, and ARI from counting pairs."""
    found, true = list(found), list(true)
    shared = entropy(found) + entropy(true) - entropy(list(zip(found, true)))
    a, b = entropy(found), entropy(true)
    over = lambda mean: 1.0 if a == b == 0 else (0.0 if mean == 0 or shared < 1e-12 else shared / mean)
    pairs = lambda values: sum(math.comb(c, 2) for c in Counter(values).values())
    together, ours, theirs, all_ = pairs(list(zip(found, true))), pairs(found), pairs(true), math.comb(len(true), 2)
    expected = ours * theirs / all_ if all_ else 0
    most = (ours + theirs) / 2
    return over((a + b) / 2), over(math.sqrt(a * b)), over(max(a, b)), 1.0 if most == expected else (together - expected) / (most - expected)


@given(n=st.integers(1, 12), p=st.integers(1, 4), seed=st.integers(0, 999), background=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_variant_of_agreement_is_its_definition(n, p, seed, background):
    draw = np.random.default_rng(seed)
    maps, points, _, sizes = scene(n + 1, p, 4, seed=seed)
    maps = torch.from_numpy(draw.normal(size=(n + 1, p + background, 5, 7)))
    names = ["left eye", "right eye", "tail", "left wing"]
    found, true = parts_at(maps, points, sizes)
    off = (found == p) & background
    rows = part_agreement(maps, points, sizes, names, background)
    merged = np.array([0, 0, 1, 2])
    for row in rows:
        labels, kept = (true if row["keypoints"] == 4 else merged[true]), (~off if row["background"] == "left out" else np.ones_like(off))
        arithmetic, geometric, largest, ari = nmi_and_ari_by_counting(found[kept], labels[kept])
        expected = [100 * arithmetic, 100 * geometric, 100 * largest, 100 * ari, 100 * off.mean()]
        assert [row[m] for m in ("NMI", "NMI geometric", "NMI max", "ARI", "on background")] == pytest.approx(expected, abs=1e-6)
        best = nmi_and_ari_by_counting(ceiling(labels[kept], p), labels[kept])
        assert (row["NMI at best"], row["ARI at best"]) == pytest.approx((100 * best[0], 100 * best[3]), abs=1e-6)
    assert {(row["keypoints"], row["background"]) for row in rows} <= {(k, b) for k in (4, 3) for b in ("none", "as a part", "left out")}
    assert len(rows) == (2 if not background or off.all() else 4)


def test_all_keypoints_on_the_background():
    maps, points, _, sizes = scene(4, 2, 2)
    rows = part_agreement(torch.cat([maps, torch.full((4, 1, 5, 7), 9.0)], 1), points, sizes, ["eye", "tail"], background=True)
    assert len(rows) == 1 and rows[0]["background"] == "as a part" and rows[0]["NMI"] == 0 and rows[0]["on background"] == 100


def test_sides_are_merged_by_name():
    merged = merge_sides(CUB_NAMES)
    assert len(set(merged)) == 12 and merged[6] == merged[10] and merged[7] == merged[11] and merged[8] == merged[12]
    assert merge_sides(["beak", "tail"]).tolist() == [0, 1]


# ---- purity, consistency, stability ----


def box_by_hand(scores, size, kind):
    h, w = scores.shape
    best = max(range(h * w), key=lambda r: (scores[r // w, r % w], -r))
    x, y = best % w, best // w
    if kind == "pipnet":
        side = 32 / 224
        left, top = x * (1 - side) / (w - 1), y * (1 - side) / (h - 1)
    else:
        side = 72 / 224
        left, top = (x + 0.5) / w - side / 2, (y + 0.5) / h - side / 2
    return left * size[0], top * size[1], (left + side) * size[0], (top + side) * size[1]


def inside(point, box):
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def purity_by_hand(maps, points, sizes, groups, top):
    values = []
    for part in range(maps.shape[1]):
        order = sorted(range(len(maps)), key=lambda i: -maps[i, part].max().item())[:top]
        shares = []
        for group in sorted(set(groups)):
            members, flags = [k for k, g in enumerate(groups) if g == group], []
            for i in order:
                visible = [k for k in members if points[i, k, 2] > 0]
                if visible:
                    box = box_by_hand(maps[i, part].numpy(), sizes[i], "pipnet")
                    flags.append(any(inside(points[i, k], box) for k in visible))
            shares.append(sum(flags) / len(flags) if flags else 0)
        values.append(max(shares))
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return {"purity": 100 * mean, "spread": 100 * spread, "pure": 100 * sum(v > 0.5 for v in values) / len(values)}


@given(n=st.integers(1, 15), p=st.integers(1, 3), top=st.integers(1, 10), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_purity_is_its_definition(n, p, top, seed):
    maps, points, _, sizes = scene(n + 1, p, 5, seed=seed, seen=0.5)
    groups = [0, 1, 0, 2, 2]
    expected = purity_by_hand(maps, points, sizes, groups, min(top, n + 1))
    assert purity(maps, points, sizes, groups, top) == pytest.approx(expected, abs=1e-6)
    assert purity(maps, points, sizes, top=top) == pytest.approx(purity_by_hand(maps, points, sizes, range(5), min(top, n + 1)), abs=1e-6)


@given(n=st.integers(1, 12), p=st.integers(1, 3), c=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_consistency_and_stability_are_their_definitions(n, p, c, seed):
    maps, points, _, sizes = scene(n + 1, p, 4, seed=seed, seen=0.6)
    noisy = maps + 0.1 * torch.from_numpy(np.random.default_rng(seed).normal(size=maps.shape))
    labels = np.arange(n + 1) % c
    held = lambda some, i, j: [bool(points[i, k, 2]) and inside(points[i, k], box_by_hand(some[i, j].numpy(), sizes[i], "protopnet")) for k in range(4)]
    verdicts = []
    for label in set(labels):
        rows = [i for i in range(n + 1) if labels[i] == label]
        for j in range(p):
            shares = []
            for k in range(4):
                seen = [held(maps, i, j)[k] for i in rows if points[i, k, 2]]
                shares.append(sum(seen) / len(seen) if seen else 0)
            verdicts.append(max(shares) >= 0.5)
    assert consistency(maps, points, sizes, labels, least=0.5) == pytest.approx(100 * np.mean(verdicts), abs=1e-6)
    same = [[held(maps, i, j) == held(noisy, i, j) for i in range(n + 1)] for j in range(p)]
    assert stability(maps, noisy, points, sizes) == pytest.approx(100 * np.mean(same), abs=1e-6)
    assert stability(maps, maps, points, sizes) == 100


def test_a_part_that_sits_on_a_keypoint_is_pure_and_consistent():
    maps = torch.zeros(20, 2, 8, 8)
    points = np.zeros((20, 2, 3))
    for i in range(20):
        x, y = i % 8, (3 * i) % 8
        maps[i, 0, y, x], maps[i, 1, 7 - y, 7 - x] = 1, 1
        points[i, 0] = (x + 0.5) * 10, (y + 0.5) * 10, 1
        points[i, 1] = 40, 40, i % 2
    sizes = np.full((20, 2), 80.0)
    found = purity(maps[:, :1], points, sizes)
    assert found == {"purity": 100, "spread": 0, "pure": 100} and consistency(maps[:, :1], points, sizes) == 100
    assert purity(maps[:, 1:], points, sizes)["purity"] < 50
    hidden = points.copy()
    hidden[:, :, 2] = 0
    assert purity(maps, hidden, sizes) == {"purity": 0, "spread": 0, "pure": 0} and consistency(maps, hidden, sizes) == 0
    assert touched(torch.zeros(1, 1, 1, 1), np.array([[[40, 40, 1], [1, 1, 1]]]), [(80, 80)]).tolist() == [[[True, False]]]


def test_noise_is_small_and_repeats():
    pictures = torch.zeros(2, 3, 50, 50)
    noise = disturb(pictures)
    assert noise.abs().max() <= 0.25 and 0.12 < noise.std() < 0.2 and torch.equal(noise, disturb(pictures)) and not torch.equal(noise, disturb(pictures, seed=1))


# ---- few shots ----


def few_shot_by_hand(codes, labels, ways, shots, queries, episodes, seed):
    z = codes.numpy() / np.linalg.norm(codes.numpy(), axis=1, keepdims=True)
    rows = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    rows = [own for own in rows if len(own) >= shots + queries]
    draw, accuracies = np.random.default_rng(seed), []
    for _ in range(episodes):
        own = [draw.permutation(rows[c])[: shots + queries] for c in draw.permutation(len(rows))[:ways]]
        means = [z[one[:shots]].mean(0) for one in own]
        right = 0
        for c, one in enumerate(own):
            for q in one[shots:]:
                right += max(range(ways), key=lambda v: z[q] @ means[v] / np.linalg.norm(means[v])) == c
        accuracies.append(right / (ways * queries))
    return 100 * np.mean(accuracies), 100 * 1.96 * np.std(accuracies, ddof=1) / math.sqrt(episodes)


@given(ways=st.integers(1, 4), shots=st.integers(1, 3), queries=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_few_shot_episodes_are_played_one_by_one(ways, shots, queries, seed):
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 8)
    codes = torch.from_numpy(draw.normal(size=(5, 6))[labels] + draw.normal(size=(40, 6)))
    found = few_shot(codes, labels, ways, shots, queries, 12, seed)
    assert (found["accuracy"], found["interval"]) == pytest.approx(few_shot_by_hand(codes, labels, ways, shots, queries, 12, seed), abs=1e-4)


def test_few_shot_limits():
    labels = np.repeat(np.arange(6), 20)
    assert few_shot(torch.eye(6)[labels], labels) == {"accuracy": 100, "interval": 0}
    chance = few_shot(torch.from_numpy(np.random.default_rng(0).normal(size=(120, 30))), labels)
    assert abs(chance["accuracy"] - 20) < 5 and 0 < chance["interval"] < 1
    with pytest.raises(ValueError, match="0 classes have 10 \\+ 15 codes"):
        few_shot(torch.eye(6)[labels], labels, shots=10)


# ---- real birds ----


@pytest.mark.skipif("PARTLIB_DATA" not in os.environ, reason="set PARTLIB_DATA to the folder that holds CUB_200_2011")
def test_on_birds_true_parts_are_the_best_there_is():
    photos = pl.data.cub200()[:240:2]
    sizes = np.array([picture.size for picture in photos], dtype=float)
    maps = torch.zeros(120, 15, 16, 16)  # one part a keypoint, where it is
    for i, (points, size) in enumerate(zip(photos.keypoints, sizes)):
        for k, (x, y, visible) in enumerate(points):
            if visible:
                maps[i, k, min(int(y / size[1] * 16), 15), min(int(x / size[0] * 16), 15)] = 1
    rows = part_agreement(maps, photos.keypoints, sizes, photos.keypoint_names)
    assert rows[0]["keypoints"] == 15 and rows[1]["keypoints"] == 12 and rows[0]["NMI"] > 70 and rows[0]["NMI at best"] == pytest.approx(100)
    assert agreement(*parts_at(maps, photos.keypoints, sizes))["NMI"] == pytest.approx(rows[0]["NMI"])
    noise = torch.rand(120, 15, 16, 16, generator=torch.Generator().manual_seed(0))
    assert part_agreement(noise, photos.keypoints, sizes, photos.keypoint_names)[0]["ARI"] < 5 < rows[0]["ARI"]
    few, train, test = [1, 3, 13], np.arange(80), np.arange(80, 120)  # beak, breast, tail
    where = (photos.keypoints[:, few], photos.boxes, sizes, train, test)
    assert keypoint_regression(maps[:, few], *where) < 8 < 15 < keypoint_regression(0.4 * maps[:, few], *where)
    assert purity(maps, photos.keypoints, sizes)["purity"] > 95 and purity(noise, photos.keypoints, sizes)["purity"] < 50
