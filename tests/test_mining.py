"""Part learners: parts that were planted are found, and each step is what its definition says, by loops and by hand."""

import json
import math
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from partlib import matching
from partlib.clustering import KMeans
from partlib.mining import (
    AssignedParts, ExemplarParts, JointParts, KMeansParts, NothingFound, Parts, PatchParts, PatternParts, ThreeStreams, UnsupervisedParts,
    joint, patches, patterns, stability, visual_groups,
)  # fmt: skip
from partlib.mining.world import World, check_groups, some_of
from partlib.regions import Regions, grid
from partlib.whitening import lda_filters, moments


class Planted(NamedTuple):
    regions: Regions
    groups: np.ndarray
    cells: np.ndarray  # (n, 2), where the two parts of its group are in each photograph


def planted(sizes=(12, 12), strength=3.0, tint=0.3, side=5, seed=0):
    """Maps of noise; each photograph holds the two parts of its group, a pair of strong channels each, in random cells.

    Group g's parts are channels 4g, 4g + 1 and 4g + 2, 4g + 3; its last channel, of a few more, is a little higher everywhere,
    so that whole photographs of a group look alike.
    """
    draw, groups = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    maps = 0.3 * np.abs(draw.normal(size=(len(groups), 5 * len(sizes) + 10, side, side)))
    cells = np.stack([draw.choice(side * side, 2, replace=False) for _ in groups])
    for i, g in enumerate(groups):
        maps[i, 4 * len(sizes) + g] += tint
        for part, (y, x) in enumerate(zip(*np.divmod(cells[i], side))):
            maps[i, 4 * g + 2 * part : 4 * g + 2 * part + 2, y, x] += strength * draw.uniform(0.8, 1.2, 2)
    return Planted(Regions(torch.from_numpy(maps).float(), grid(side, side)), groups, cells)


def hits(parts, data):
    """(p, g, 2): the share of group g's photographs in which a learnt part's best region is the cell of a planted one."""
    where = parts.best(data.regions)[1]
    return np.array([
        [[np.mean(where[data.groups == g, p] == data.cells[data.groups == g, part]) for part in (0, 1)] for g in np.unique(data.groups)]
        for p in range(len(parts))
    ])  # fmt: skip


def same(a, b):
    weights = a.weights is b.weights is None or torch.equal(a.weights, b.weights)
    return torch.equal(a.filters, b.filters) and torch.equal(a.offsets, b.offsets) and np.array_equal(a.groups, b.groups) and weights


DATA = planted()
LEARNERS = {  # with whether groups are given
    "k-means": (KMeansParts(12), False),
    "exemplars": (ExemplarParts(80, dims=12), False),
    "assigned": (AssignedParts(2, dims=12), True),
    "assigned without groups": (AssignedParts(4, dims=12), False),
    "unsupervised": (UnsupervisedParts(2, parts=2, dims=12), False),
    "patches": (PatchParts(4, clusters=12, dims=12), True),
    "patterns": (PatternParts(2, items=3, dims=12), True),
    "patterns without groups": (PatternParts(4, items=3, support=0.015, dims=12), False),
    "joint, alternating": (JointParts(8, pool=60, rounds=3, dims=12), True),
    "joint, by gradient": (JointParts(8, pool=60, rounds=3, dims=12, how="gradient"), True),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


@pytest.fixture(scope="module")
def learnt():
    """Every learner's parts of `DATA`, learnt once for all tests."""
    kept = {}

    def learnt(name):
        if name not in kept:
            learner, with_groups = LEARNERS[name]
            kept[name] = learner.fit(DATA.regions, DATA.groups if with_groups else None)
        return kept[name]

    return learnt


# ---- what all learners share ----


@every_learner
def test_planted_parts_are_found(name, learnt):
    """Of the 25 cells a part's best region is the planted one in 0.04 of the photographs by chance."""
    share = hits(learnt(name), DATA)
    found = (share.max(0) > 0.7).sum()
    # Baselines cover clutter too; patches may be of one strong channel; joint parts need only what tells the groups apart.
    assert found >= {"k-means": 1, "exemplars": 3, "patches": 3, "joint, alternating": 2, "joint, by gradient": 2}.get(name, 4), share.round(2)


@pytest.mark.parametrize("name", ["assigned", "unsupervised", "patterns", "patches"])
def test_parts_of_a_group_are_of_that_group(name, learnt):
    parts = learnt(name)
    if name == "patches":
        parts = parts[[0, int((parts.groups == 0).sum())]]  # the best of each: asked for four, it finds two more of anything
    of = DATA.groups if name != "unsupervised" else visual_groups(DATA.regions, 2)
    for share, g in zip(hits(parts, DATA), parts.groups):
        own = DATA.groups[of == g][0]
        assert share[own].max() > share[1 - own].max() and share[own].max() > 0.2


@every_learner
def test_the_same_seed_learns_the_same_parts(name, learnt):
    learner, with_groups = LEARNERS[name]
    torch.manual_seed(5)
    np.random.seed(5)  # neither of these may matter
    assert same(learner.fit(DATA.regions, DATA.groups if with_groups else None), learnt(name))


@pytest.mark.parametrize("name", ["k-means", "exemplars", "joint, alternating"])
def test_another_seed_learns_others(name, learnt):
    learner, with_groups = LEARNERS[name]
    other = replace(learner, seed=1).fit(DATA.regions, DATA.groups if with_groups else None)
    assert not torch.equal(other.filters, learnt(name).filters)


@every_learner
def test_shapes_and_what_made_them(name, learnt):
    parts, (learner, with_groups) = learnt(name), LEARNERS[name]
    d = DATA.regions.maps.shape[1]
    p = len(parts)
    assert parts.filters.shape == (p, d) and parts.offsets.shape == (p,) and parts.groups.shape == (p,)
    assert parts.filters.dtype == parts.offsets.dtype == torch.float32 and torch.isfinite(parts.filters).all()
    grouped = name in ("assigned", "unsupervised", "patches", "patterns")
    assert set(parts.groups) == ({0, 1} if grouped else {-1})
    assert max(np.bincount(parts.groups + 1)) <= learner.parts
    assert json.loads(json.dumps(parts.about)) == parts.about
    assert parts.about["learner"] == type(learner).__name__ and parts.about["seed"] == 0 and parts.about["parts"] == learner.parts
    assert (parts.about["photographs"], parts.about["regions"]) == (24, 25)
    assert (parts.weights is None) == ("joint" not in name)
    assert parts.score(DATA.regions).shape == (24, p, 25)


ALIKE = Regions(torch.full((16, 4, 3, 3), 2.0))


@pytest.mark.parametrize(
    "learner", [ExemplarParts(2), AssignedParts(2), UnsupervisedParts(2, parts=2), PatchParts(2), PatternParts(2), JointParts(2)],
    ids=lambda learner: type(learner).__name__,
)  # fmt: skip
def test_constant_maps_hold_nothing(learner):
    said = refusal(NothingFound, lambda: learner.fit(ALIKE, np.arange(16) % 2))
    assert "all regions of these 16 photographs are alike" in said and "are the maps constant" in said


def test_k_means_of_constant_maps_holds_nothing():
    assert "fewer than 2 different regions in these 16 photographs" in refusal(NothingFound, lambda: KMeansParts(2).fit(ALIKE))


def test_copies_of_one_photograph_hold_parts_but_constant_cells_with_rounding_errors_do_not():
    noisy = Regions(torch.full((8, 4, 3, 3), 2.0) * (1 + 1e-7 * torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))))
    refusal(NothingFound, lambda: ExemplarParts(2).fit(noisy))
    copies = Regions(DATA.regions.maps[:1].expand(8, -1, -1, -1), grid(5, 5))
    assert len(ExemplarParts(2).fit(copies)) == 2


GROUPED = [AssignedParts(2, dims=8), PatchParts(2, dims=8), PatternParts(2, dims=8), JointParts(2, dims=8)]
each_grouped = pytest.mark.parametrize("learner", GROUPED, ids=lambda learner: type(learner).__name__)


@each_grouped
def test_two_photographs_one_group_and_groups_of_another_length(learner):
    two = DATA.regions[[0, 12]]
    said = refusal(NothingFound, lambda: learner.fit(two, [0, 1]))
    assert "the largest of the groups has 1 photographs" in said and "make fewer groups" in said
    said = refusal(NothingFound, lambda: learner.fit(DATA.regions, np.zeros(24, int)))
    assert "all photographs are in one group" in said and "two groups or more" in said
    said = refusal(ValueError, lambda: learner.fit(DATA.regions, DATA.groups[:-1]))
    assert "groups of shape (23,)" in said
    assert "24 of the 24 are negative" in refusal(ValueError, lambda: learner.fit(DATA.regions, np.full(24, -1)))


@pytest.mark.parametrize("learner", [PatchParts(2), JointParts(2)], ids=lambda learner: type(learner).__name__)
def test_learners_that_need_groups_say_so(learner):
    assert "give groups, for instance visual_groups(regions, 20)" in refusal(ValueError, lambda: learner.fit(DATA.regions, None))


def test_too_few_photographs_for_unsupervised_parts():
    said = refusal(NothingFound, lambda: UnsupervisedParts().fit(DATA.regions))
    assert "20 groups of 24 photographs" in said and "take from 2 to 12" in said
    for few in (1, 2, 3):
        said = refusal(NothingFound, lambda: UnsupervisedParts(2).fit(DATA.regions[:few]))
        assert f"{few} photograph" in said and "four" in said and "from 2 to" not in said
    assert "1 groups" in refusal(NothingFound, lambda: UnsupervisedParts(1).fit(DATA.regions))


def test_too_few_photographs_for_anything_to_recur():
    assert "one photograph" in refusal(NothingFound, lambda: AssignedParts(2, dims=8).fit(DATA.regions[:1]))
    said = refusal(NothingFound, lambda: PatchParts(2).fit(DATA.regions[[0, 1, 2, 3, 4, 12, 13]], [0] * 5 + [1] * 2))
    assert "has 5 photographs, and a part must recur in 6" in said


def test_fewer_regions_than_parts():
    few = DATA.regions[:2]
    said = refusal(NothingFound, lambda: ExemplarParts(51, dims=4).fit(few))
    assert "51 parts, but only 50 regions" in said and "ask for fewer parts" in said
    assert len(ExemplarParts(50, dims=4).fit(few)) == 50


# ---- the world ----


@pytest.mark.parametrize("dims", [4, 20])
def test_the_world_is_centred_and_white_but_for_the_shrinkage(dims):
    world = World.of(DATA.regions, dims)
    y = world.describe(DATA.regions)
    assert y.shape == (24, 25, dims)
    y = y.flatten(0, 1).double().numpy()
    x = DATA.regions.tensor().flatten(0, 1).double().numpy()
    spread = np.sort(np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True)))[::-1]
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(y, rowvar=False, bias=True), np.diag((spread / (spread + 0.1 * spread.mean()))[:dims]), atol=1e-4)


def test_the_world_has_as_many_directions_as_its_regions_span():
    maps = torch.zeros(4, 6, 3, 3)
    maps[:, :3] = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    assert World.of(Regions(maps), 128).describe(Regions(maps)).shape[2] == 3


@given(p=st.integers(1, 4), dims=st.integers(1, 16), seed=st.integers(0, 999))
@settings(max_examples=15)
def test_the_score_of_a_part_is_a_logarithm_of_likelihoods(p, dims, seed):
    world = World.of(DATA.regions, dims)
    means = torch.randn(p, dims, generator=torch.Generator().manual_seed(seed))
    parts = world.parts(means, np.arange(p), KMeansParts(p), DATA.regions)
    y = world.describe(DATA.regions[:3]).double().numpy()
    normal = lambda mean: multivariate_normal(mean, np.eye(dims)).logpdf(y).reshape(y.shape[:2])
    expected = np.stack([normal(mean) - normal(np.zeros(dims)) for mean in means.double().numpy()], axis=1)
    np.testing.assert_allclose(parts.score(DATA.regions[:3]), expected, atol=2e-3)
    assert parts.groups.tolist() == list(range(p)) and parts.about["learner"] == "KMeansParts"


@given(rows=st.integers(1, 30), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_some_rows_are_different_and_in_order(rows, count, seed):
    given_rows = np.arange(rows) * 3 + 1
    some = some_of(given_rows, count, seed)
    assert len(some) == min(rows, count) and set(some) <= set(given_rows) and (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, some_of(given_rows, count, seed))


def test_rows_are_drawn_by_the_seed():
    assert len({tuple(some_of(np.arange(30), 5, seed)) for seed in range(9)}) == 9


def test_groups_are_checked():
    np.testing.assert_array_equal(check_groups(DATA.groups.tolist(), DATA.regions), DATA.groups)
    np.testing.assert_array_equal(check_groups(9 * DATA.groups, DATA.regions, least=12), 9 * DATA.groups)  # numbers may be left out
    assert "12 photographs, and a part must recur in 13" in refusal(NothingFound, lambda: check_groups(DATA.groups, DATA.regions, 13))


# ---- baselines ----


def test_k_means_parts_score_the_nearest_centroid_highest(learnt):
    parts, x = learnt("k-means"), DATA.regions.tensor().double()
    distances = torch.cdist(x, parts.filters.double().expand(24, -1, -1))
    assert torch.equal(parts.score(DATA.regions).argmax(1), distances.argmin(2))


def test_k_means_wants_as_many_different_regions_as_parts():
    maps = torch.zeros(3, 2, 2, 2)
    maps[:, 0, 0], maps[:, 1, 1] = 1.0, 1.0  # the upper cells and the lower ones: two descriptors
    cells = Regions(maps, grid(2, 2))
    assert len(KMeansParts(2).fit(cells)) == 2
    assert "fewer than 3 different regions" in refusal(NothingFound, lambda: KMeansParts(3).fit(cells))


def test_exemplars_are_lda_filters_of_the_regions_drawn():
    parts = ExemplarParts(10, dims=12, seed=3).fit(DATA.regions)
    expected = lda_filters(DATA.regions.sample(10, 3), moments(DATA.regions.tensor().flatten(0, 1)))
    full = ExemplarParts(10, dims=128, seed=3).fit(DATA.regions)
    np.testing.assert_allclose(full.filters, expected, atol=1e-3 * expected.abs().max())
    assert not np.allclose(parts.filters, full.filters, atol=1e-3)


# ---- assigned and unsupervised parts ----


def test_unsupervised_parts_are_assigned_parts_of_visual_groups(learnt):
    groups = visual_groups(DATA.regions, 2)
    expected = AssignedParts(2, dims=12).fit(DATA.regions, groups)
    found = learnt("unsupervised")
    assert same(found, expected) and found.about["groups"] == 2 and found.about["solver"] == "soft_assign"
    given_groups = UnsupervisedParts(7, parts=2, dims=12).fit(DATA.regions, 1 - DATA.groups)
    assert same(given_groups, AssignedParts(2, dims=12).fit(DATA.regions, 1 - DATA.groups))


def test_visual_groups_are_those_that_look_alike():
    data = planted((10, 10, 10), seed=4)
    found = visual_groups(data.regions, 3)
    assert len({(a, b) for a, b in zip(found, data.groups)}) == len(set(found)) == 3
    np.testing.assert_array_equal(found, visual_groups(data.regions, 3))


@pytest.mark.parametrize("count", [2, 5, 12])
def test_visual_groups_are_of_limited_size(count):
    sizes = np.bincount(visual_groups(DATA.regions, count), minlength=count)
    assert sizes.sum() == 24 and sizes.max() <= math.ceil(1.5 * 24 / count)


def test_a_group_of_one_photograph_is_passed_over():
    groups = DATA.groups.copy()
    groups[5] = 7
    assert set(AssignedParts(2, dims=12).fit(DATA.regions, groups).groups) == {0, 1}


def test_there_are_no_more_assigned_parts_than_regions():
    few = Regions(DATA.regions.maps, grid(5, 5)[:3])
    assert AssignedParts(9, dims=8).fit(few, DATA.groups).groups.tolist() == [0] * 3 + [1] * 3


@pytest.mark.parametrize("solver", [matching.hungarian, matching.gradient_soft_assign, matching.frank_wolfe])
def test_any_solver_serves(solver):
    parts = AssignedParts(2, solver=solver, dims=12).fit(DATA.regions, DATA.groups)
    assert len(parts) == 4 and parts.about["solver"] == solver.__name__
    assert hits(parts, DATA).max() > 0.7  # which of them finds more is a matter of its own


def test_parts_that_are_not_in_every_photograph_are_found_with_a_presence():
    data = planted((20, 20), seed=3)
    maps = data.regions.maps.clone()
    maps[:6, :4] = 0.3 * torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)).abs()  # six photographs lose theirs
    regions = Regions(maps, grid(5, 5))
    parts = AssignedParts(2, presence=0.7, dims=12).fit(regions, data.groups)
    there = Planted(regions[6:], data.groups[6:], data.cells[6:])
    assert (hits(parts, there).max(0) > 0.7).all()


def test_only_so_many_photographs_are_looked_at():
    few = AssignedParts(2, dims=12, photographs=5).fit(DATA.regions, DATA.groups)
    rows = np.concatenate([some_of(np.flatnonzero(DATA.groups == g), 5, 0) for g in (0, 1)])
    world = World.of(DATA.regions, 12)
    x, rest = world.describe(DATA.regions[rows[:5]]), world.describe(DATA.regions[rows[5:]])
    answer = lambda photographs, w: torch.stack([torch.stack([(x_i @ u).max() for u in w]) for x_i in photographs]).mean(0).clamp(min=1e-6)
    found = matching.from_random(matching.soft_assign, x, 2, seed=0, worth=lambda w: answer(x, w) / answer(rest, w)).filters
    np.testing.assert_allclose(few.filters[few.groups == 0], world.whitening.fold(found)[0], atol=1e-3 * found.abs().max())


# ---- discriminative patches ----


def test_a_detector_separates_members_from_the_world():
    draw = torch.Generator().manual_seed(0)
    world, direction = 0.3 * torch.randn(800, 6, generator=draw), torch.tensor([3.0, 0, 0, -3, 0, 0])
    members = direction + 0.2 * torch.randn(5, 6, generator=draw)
    weight, bias = patches.train(members, world)
    assert weight.dtype == bias.dtype == torch.float32 and weight.shape == (6,) and bias.shape == ()
    assert (members @ weight + bias > 0).all() and (world @ weight + bias < 0).all()
    again = patches.train(members, world)
    assert torch.equal(weight, again[0]) and torch.equal(bias, again[1])


def test_a_detector_is_trained_on_the_hardest_of_the_world():
    # Of 2000 regions two look like members but for the second channel: drawn at random they are missed, as hard ones not.
    world = 0.1 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    drawn = np.random.default_rng(0).permutation(2000)
    world[drawn[-2:]] = torch.tensor([3.0, 3.0, 0])
    members = torch.tensor([3.0, 0, 0]) + 0.1 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    weight, bias = patches.train(members, world)
    assert (world[drawn[-2:]] @ weight + bias < 0).all() and (members @ weight + bias > 0).all()


@given(n=st.integers(1, 8), r=st.integers(1, 5), top=st.integers(1, 6), bias=st.floats(-3, 1), seed=st.integers(0, 9999))
def test_firings_are_the_best_region_of_each_photograph_above_the_margin(n, r, top, bias, seed):
    draw = np.random.default_rng(seed)
    x, weight = torch.from_numpy(draw.normal(size=(n, r, 3))).float(), torch.from_numpy(draw.normal(size=3)).float()
    best = []
    for photograph in x:
        scores = [float(region @ weight) + bias for region in photograph]
        best.append((max(scores), photograph[int(np.argmax(scores))]))
    best = [region for score, region in sorted(best, key=lambda pair: -pair[0])[:top] if score > -1]
    found = patches.firings((weight, torch.tensor(bias)), x, top)
    assert found.shape == (len(best), 3)
    np.testing.assert_allclose(found, np.stack(best) if best else np.zeros((0, 3)), atol=1e-6)


@given(n=st.integers(1, 60), p=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_a_detector_fires_in_a_twentieth_of_the_world(n, p, seed):
    draw = torch.Generator().manual_seed(seed)
    rest, weights, biases = (torch.randn(*shape, generator=draw) for shape in ((n, 4, 3), (p, 3), (p,)))
    limits = patches.threshold(weights, biases, rest)
    for w, b, limit in zip(weights, biases, limits):
        best = sorted(max(float(region @ w + b) for region in photograph) for photograph in rest)
        at = 0.95 * (n - 1)
        between = best[math.floor(at)] + (at % 1) * (best[math.ceil(at)] - best[math.floor(at)])
        assert float(limit) == pytest.approx(between, abs=1e-4)
        assert patches.threshold(w, b, rest).shape == () and float(patches.threshold(w, b, rest)) == pytest.approx(between, abs=1e-4)


def test_firings_and_worth_are_counted_above_the_limit_given():
    x, rest = torch.tensor([[[3.0]], [[2.0]], [[1.0]]]), torch.tensor([[[2.5]], [[0.0]]])
    weight, bias = torch.ones(1), torch.tensor(0.0)
    assert patches.firings((weight, bias), x, 3, limit=1.5).flatten().tolist() == [3, 2]
    found = patches.worth(weight[None], bias[None], x, rest, torch.tensor([1.5]), members=2)
    assert found.item() == pytest.approx(2.5 + 2 / 3)


@given(n=st.integers(1, 14), m=st.integers(1, 5), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_worth_is_purity_and_the_share_of_firings_inside(n, m, seed):
    draw = torch.Generator().manual_seed(seed)
    x, rest, weights = (torch.randn(*shape, generator=draw) for shape in ((n, 4, 3), (m, 4, 3), (5, 3)))
    biases = torch.randn(5, generator=draw) - 1.5
    expected = []
    for w, b in zip(weights, biases):
        inside, outside = ([max(float(region @ w + b) for region in photograph) for photograph in set_] for set_ in (x, rest))
        first = sorted(inside, reverse=True)[:10]
        fires, others = sum(s > -1 for s in inside), sum(s > -1 for s in outside)
        expected.append(sum(first) / len(first) + (fires / (fires + others) if fires else 0))
    np.testing.assert_allclose(patches.worth(weights, biases, x, rest), expected, atol=1e-5)


def test_clusters_that_fire_on_fewer_than_three_photographs_die():
    """What is in the one half of the photographs is not in the other: there every region lies on the detectors' far side."""
    draw = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(12, 6, 8, generator=draw)
    x[::2, :, 0] += 5
    x[1::2, :, 0] -= 5
    rest = 0.2 * torch.randn(12, 6, 8, generator=draw)
    learner = PatchParts(2, clusters=4)
    assert learner._of_group(x, rest) == []
    x[1::2, :1, 0] = 5  # one region a photograph, and they live
    assert len(learner._of_group(x, rest)) == 2


def test_noise_fires_less_than_what_recurs():
    """Detectors of a group with planted parts, and of one that is as the rest: purity and discriminativeness."""
    world = World.of(DATA.regions, 12)
    x, rest = (world.describe(DATA.regions[DATA.groups == g]) for g in (0, 1))
    noise = planted((24,), strength=0, tint=0, seed=9).regions
    of_noise = World.of(noise, 12)
    y, other = of_noise.describe(noise[:12]), of_noise.describe(noise[12:])
    learner = PatchParts(3, clusters=12)
    score = lambda found, x, rest: patches.worth(*map(torch.stack, zip(*found)), x, rest).max() if found else -math.inf
    assert score(learner._of_group(x, rest), x, rest) > score(learner._of_group(y, other), y, other) + 0.5


def test_a_small_group_has_no_patches_nor_has_one_with_a_rest_of_one_photograph():
    groups = np.array([0] * 12 + [1] * 4 + [2] * 8)
    assert set(PatchParts(2, clusters=8, dims=12).fit(DATA.regions, groups).groups) == {0, 2}
    said = refusal(NothingFound, lambda: PatchParts(2, clusters=8, dims=12).fit(DATA.regions[:13], [0] * 12 + [1]))
    assert "with 2 or more outside" in said and "take fewer, larger groups" in said


# ---- pattern parts ----


@given(n=st.integers(1, 3), d=st.integers(1, 6), items=st.integers(1, 7), seed=st.integers(0, 999))
def test_transactions_are_the_strongest_channels_over_twice_the_usual(n, d, items, seed):
    draw = np.random.default_rng(seed)
    maps, usual = torch.from_numpy(draw.exponential(size=(n, d, 2, 3))).float(), torch.from_numpy(draw.exponential(size=d)).float() + 0.05
    found = patterns.transactions(maps, usual, items)
    assert found.shape == (n, 2, 3, d)
    for i, y, x in np.ndindex(n, 2, 3):
        ratio = [float(maps[i, c, y, x] / usual[c]) for c in range(d)]
        strongest = sorted(range(d), key=lambda c: -ratio[c])[:items]
        assert found[i, y, x].nonzero().flatten().tolist() == sorted(c for c in strongest if ratio[c] > 2)


def test_what_is_usual_may_be_of_each_photograph():
    draw = torch.Generator().manual_seed(0)
    maps, usual = torch.rand(3, 4, 2, 3, generator=draw), torch.rand(3, 4, generator=draw)
    each = torch.cat([patterns.transactions(one[None], own, 2) for one, own in zip(maps, usual)])
    assert torch.equal(patterns.transactions(maps, usual, 2), each) and each.any() and not each.all()


@given(n=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 999))
def test_the_border_is_the_mean_of_the_cells_along_the_sides(n, h, w, seed):
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 2, h, w)))
    for i, c in np.ndindex(n, 2):
        edge = [float(maps[i, c, y, x]) for y in range(h) for x in range(w) if y in (0, h - 1) or x in (0, w - 1)]
        assert float(patterns.border(maps)[i, c]) == pytest.approx(sum(edge) / len(edge))


def two_backdrops(count=20):
    """One kind of object, a bright square of two channels, on two backdrops; and where it is: its corner's row and column."""
    draw = np.random.default_rng(0)
    maps, corners = 0.1 * draw.random((count, 8, 6, 6)), []
    for i in range(count):
        maps[i, 2 + 2 * (i % 2) : 4 + 2 * (i % 2)] += 1.0  # a backdrop, behind half of the photographs
        y, x = draw.integers(1, 4, 2)
        maps[i, 2:6, y : y + 2, x : x + 2] = 0.0
        maps[i, :2, y : y + 2, x : x + 2] += 1.0
        corners.append((y, x))
    return torch.from_numpy(maps).float(), corners


def test_patterns_are_of_the_object_and_not_of_its_backdrop():
    """Each pair of channels recurs, and only the object's is rarer along the border."""
    maps, _ = two_backdrops()
    regions = Regions(maps, grid(6, 6))
    where = PatternParts(1, items=2, dims=6).fit(regions).best(regions)[1][:, 0]
    assert all(maps[i, 0].flatten()[cell] > 0.5 for i, cell in enumerate(where))


@pytest.mark.parametrize("grouped", [False, True])
def test_three_streams_are_means_over_the_whole_and_the_object_and_the_best_of_each_part(grouped):
    maps, corners = two_backdrops()
    streams = ThreeStreams(PatternParts(2, items=2, dims=6)).fit(maps, np.arange(20) % 2 if grouped else None)
    assert len(streams.parts_) == (4 if grouped else 2)
    scores, rows = streams.parts_.maps(maps).numpy(), []
    for i, (y, x) in enumerate(corners):
        photograph = maps[i].numpy().astype(float)
        assert np.argwhere(streams.objects(maps[[i]])[0].numpy()).tolist() == [[y, x], [y, x + 1], [y + 1, x], [y + 1, x + 1]]
        rows.append((photograph.mean((1, 2)), photograph[:, y : y + 2, x : x + 2].mean((1, 2)), scores[i].max((1, 2))))
    blocks = [np.stack(stream) - np.mean(stream, axis=0) for stream in zip(*rows)]
    unit = lambda values: values / np.linalg.norm(values, axis=1, keepdims=True)
    assert np.allclose(streams.describe(maps), unit(np.concatenate([unit(block) for block in blocks], axis=1)), atol=1e-4)


def test_three_streams_of_nothing_in_particular():
    maps, _ = two_backdrops()
    streams = ThreeStreams(PatternParts(2, items=2, dims=6)).fit(maps)
    assert streams.objects(torch.ones(2, 8, 6, 6)).all() and torch.isfinite(streams.describe(torch.zeros(1, 8, 6, 6))).all()
    refusal(NothingFound, lambda: ThreeStreams(PatternParts(2)).fit(torch.ones(8, 8, 6, 6)))


@given(
    m=st.integers(1, 25), d=st.integers(1, 6), share=st.floats(0.1, 0.9), support=st.floats(0.05, 0.9),
    longest=st.sampled_from([2, 3]), seed=st.integers(0, 9999),
)  # fmt: skip
@settings(max_examples=60)
def test_frequent_patterns_are_counted(m, d, share, support, longest, seed):
    baskets = np.random.default_rng(seed).random((m, d)) < share
    counts = {
        channels: sum(all(basket[c] for c in channels) for basket in baskets)
        for size in range(2, longest + 1)
        for channels in combinations(range(d), size)
    }
    expected = {channels: count for channels, count in counts.items() if count / m >= support}
    found = patterns.frequent_patterns(torch.from_numpy(baskets), support, longest)
    assert found.dtype == torch.bool and found.shape[1] == d
    found = [tuple(row.nonzero().flatten().tolist()) for row in found]
    assert len(found) == len(set(found)) and set(found) == set(expected)
    assert all(expected[a] >= expected[b] for a, b in zip(found, found[1:]))  # the most frequent first


def test_at_most_500_patterns_are_kept_the_most_frequent():
    baskets = torch.ones(10, 40, dtype=torch.bool)
    baskets[0, 2:] = False  # channels 0 and 1 are in all cells together, other pairs in nine of ten
    found = patterns.frequent_patterns(baskets, 0.5, 2)
    assert found.shape == (500, 40) and found[0].nonzero().flatten().tolist() == [0, 1] and (found.sum(1) == 2).all()


def test_support_is_the_share_of_patterns_a_cell_holds():
    baskets = torch.tensor([[[[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], [[0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]]]]).bool()
    held = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]]).bool()
    assert patterns.support_maps(baskets, held).tolist() == [[[0.75, 0.25, 0], [0.25, 0.25, 1]]]


def test_the_object_is_the_largest_connected_set_over_the_mean():
    support = torch.tensor([
        [[1.0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]],  # two sets, of two cells and of three
        [[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]],  # corners do not connect
        [[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],  # nothing is supported
        [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]],  # everything alike: no object stands out
        [[0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.4, 0.3], [0.3, 0.3, 0.3, 0.3]],
    ])  # fmt: skip
    expected = torch.zeros(5, 3, 4, dtype=torch.bool)
    expected[0, :, 3], expected[1, 1, 1:3], expected[4, 1, 2] = True, True, True
    assert torch.equal(patterns.objects(support), expected)


def test_patterns_that_are_nowhere_frequent():
    said = refusal(NothingFound, lambda: PatternParts(2, support=0.9, dims=8).fit(DATA.regions, DATA.groups))
    assert "in 90% of the cells" in said and "lower support" in said


def test_photographs_without_anything_that_stands_out_have_no_pattern_parts():
    """Three kinds of photographs, every one the same in all its cells: patterns are frequent, and are everywhere."""
    groups = np.repeat([0, 1, 2], 4)
    maps = torch.zeros(12, 6, 3, 3)
    for i, g in enumerate(groups):
        maps[i, 2 * g : 2 * g + 2] = 1.0 + 0.1 * (i % 4)
    assert "active together" in refusal(NothingFound, lambda: PatternParts(2, dims=4).fit(Regions(maps), groups))


def test_patterns_are_of_cells_whatever_the_regions():
    windows = Regions(DATA.regions.maps)
    assert len(PatternParts(2, items=3, dims=12).fit(windows, DATA.groups)) == 4


# ---- joint parts ----


def hinge_by_loops(scores, y):
    terms = []
    for s, own in zip(scores, y):
        terms.append(max((own != other) + s[other] - s[own] for other in range(len(s))))
    return sum(terms) / len(terms)


def objective_by_loops(filters, weights, x, y):
    bags = [[max(float(region @ w) for region in photograph) for w in filters] for photograph in x]
    scores = [[sum(v * b for v, b in zip(row, bag)) for row in weights.tolist()] for bag in bags]
    return 1e-2 * (float(filters.square().sum()) + float(weights.square().sum())) + hinge_by_loops(scores, y.tolist())


@given(n=st.integers(1, 8), c=st.integers(2, 4), seed=st.integers(0, 9999))
def test_hinge_is_the_worst_margin(n, c, seed):
    draw = np.random.default_rng(seed)
    scores, y = draw.normal(size=(n, c)), draw.integers(0, c, n)
    found = joint.hinge(torch.from_numpy(scores), torch.from_numpy(y))
    assert float(found) == pytest.approx(hinge_by_loops(scores, y))


def test_hinge_by_hand():
    scores, y = torch.tensor([[2.0, 0, 0.5], [0, 0, 0], [0, 3, 1]]), torch.tensor([0, 1, 2])
    assert joint.hinge(scores, y).item() == pytest.approx((0 + 1 + 3) / 3)


def problem(seed=0, n=15, r=4, d=5, p=3, c=3):
    draw = torch.Generator().manual_seed(seed)
    x, filters, weights = (torch.randn(*shape, generator=draw) for shape in ((n, r, d), (p, d), (c, p)))
    return x, torch.arange(n) % c, filters, weights


@given(seed=st.integers(0, 9999))
@settings(max_examples=20)
def test_the_objective_is_its_definition(seed):
    x, y, filters, weights = problem(seed)
    assert joint.loss(filters, weights, x, y) == pytest.approx(objective_by_loops(filters, weights, x, y), rel=1e-5)


@given(seed=st.integers(0, 9999))
@settings(max_examples=20)
def test_the_bound_is_convex_lies_above_the_objective_and_touches_it(seed):
    x, y, filters, weights = problem(seed)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "descend", lambda function, start: seen.append(function) or start)
        joint.improve_filters(filters, weights, x, y)
    (bound,) = seen
    objective = lambda w: joint.loss(w, weights, x, y) - 1e-2 * float(weights.square().sum())  # V's penalty stays as it is
    assert float(bound(filters)) == pytest.approx(objective(filters), rel=1e-5)
    draw = torch.Generator().manual_seed(seed)
    others = [filters + size * torch.randn(filters.shape, generator=draw) for size in (0.01, 0.3, 1, 3)]
    for w in others:
        assert float(bound(w)) >= objective(w) - 1e-4
        for v in (filters, others[0]):
            assert float(bound((v + w) / 2)) <= (float(bound(v)) + float(bound(w))) / 2 + 1e-4


def test_somewhere_the_bound_is_strictly_above():
    """Else it would be no bound but the objective itself, which is not convex."""
    x, y, filters, weights = problem()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "descend", lambda function, start: seen.append(function) or start)
        joint.improve_filters(filters, weights, x, y)
    far = filters + torch.randn(filters.shape, generator=torch.Generator().manual_seed(1))
    assert float(seen[0](far)) > joint.loss(far, weights, x, y) - 1e-2 * float(weights.square().sum()) + 0.1


@given(seed=st.integers(0, 9999))
@settings(max_examples=10)
def test_filters_improve(seed):
    x, y, filters, weights = problem(seed)
    assert joint.loss(joint.improve_filters(filters, weights, x, y), weights, x, y) < joint.loss(filters, weights, x, y)


@pytest.mark.parametrize("name", ["joint, alternating", "joint, by gradient"])
def test_the_objective_never_rises(name, learnt):
    heights = learnt(name).about["objective"]
    assert len(heights) == 4 and (np.diff(heights) <= 1e-6).all() and heights[-1] < heights[0] - 0.01


@pytest.mark.parametrize("name", ["joint, alternating", "joint, by gradient"])
def test_the_objective_is_that_of_the_parts_returned(name, learnt):
    """Scores on descriptors are those on whitened ones, so the hinge can be had from the parts alone."""
    parts = learnt(name)
    bags = parts.encode(DATA.regions)
    penalty = parts.about["objective"][-1] - joint.hinge(bags @ parts.weights.T, torch.from_numpy(DATA.groups)).item()
    assert penalty > 1e-2 * float(parts.weights.square().sum())  # and the rest of it is the filters'
    assert (bags @ parts.weights.T).argmax(1).tolist() == DATA.groups.tolist()


def test_planted_parts_weigh_for_their_group_and_against_the_other(learnt):
    parts = learnt("joint, alternating")
    share, seen = hits(parts, DATA).max(2), 0
    for own in (0, 1):
        for j in np.flatnonzero((share[:, own] > 0.8) & (share[:, 1 - own] < 0.3)):
            seen += 1
            assert parts.weights[own, j] > 0 > parts.weights[1 - own, j]
    assert seen


def test_joint_parts_of_three_groups_whatever_their_numbers():
    data = planted((8, 8, 8), seed=3)
    parts = JointParts(9, pool=60, rounds=2, dims=12).fit(data.regions, np.array([7, 2, 4])[data.groups])
    assert parts.weights.shape == (3, 9)
    rank = np.array([2, 0, 1])[data.groups]  # rows of V are groups in the order of their numbers
    assert ((parts.encode(data.regions) @ parts.weights.T).argmax(1).numpy() == rank).mean() > 0.9


@pytest.mark.parametrize("informative", [[3, 11, 17], [0, 1, 2], [19, 5, 8]])
def test_selection_puts_informative_filters_first(informative):
    draw, y = np.random.default_rng(0), np.arange(90) % 3
    bags = draw.normal(size=(90, 20))
    for c, j in enumerate(informative):
        bags[:, j] += 3 * (y == c)
    first = joint.select(torch.from_numpy(bags).float(), torch.from_numpy(y), 3)
    assert set(first.tolist()) == set(informative)
    assert sorted(joint.select(torch.from_numpy(bags).float(), torch.from_numpy(y), 20).tolist()) == list(range(20))


def test_a_constant_added_to_a_filters_scores_selects_the_same():
    draw, y = np.random.default_rng(1), torch.arange(60) % 2
    bags = torch.from_numpy(draw.normal(size=(60, 10))).float()
    bags[:, 4] += 2 * y
    assert joint.select(bags, y, 4).tolist() == joint.select(bags + 5 * torch.arange(10), y, 4).tolist()


@pytest.mark.parametrize("c", [2, 3, 5])
def test_no_weights_nearby_have_a_lower_objective_than_the_svms(c):
    draw = torch.Generator().manual_seed(c)
    y = torch.arange(40) % c
    bags = torch.randn(40, 6, generator=draw) + torch.randn(c, 6, generator=draw)[y]
    weights = joint.svm(bags, y)
    assert weights.shape == (c, 6)
    objective = lambda v: joint.objective_of(bags, torch.zeros(1), v, y).item()
    assert objective(weights) < objective(torch.zeros(c, 6)) - 0.1
    for size in (1e-2, 1e-1, 0.5):
        for _ in range(30):
            assert objective(weights + size * torch.randn(c, 6, generator=draw)) >= objective(weights) - 1e-4
    assert objective(1.05 * weights) >= objective(weights) - 1e-4 <= objective(0.95 * weights)


@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_descent_keeps_the_best_it_saw(seed):
    start = torch.randn(3, generator=torch.Generator().manual_seed(seed))
    hill = lambda v: (v * torch.tensor([1.0, 100.0, 10.0])).square().sum()
    (found,) = joint.descend(hill, [start])
    assert hill(found) <= hill(start) and not found.requires_grad and not start.requires_grad
    (stays,) = joint.descend(hill, [torch.zeros(3)])
    assert torch.equal(stays, torch.zeros(3))


def test_joint_parts_have_two_ways():
    said = refusal(ValueError, lambda: JointParts(2, how="both").fit(DATA.regions, DATA.groups))
    assert "how='both'" in said and "'alternating' or by 'gradient'" in said


# ---- how many parts: stability ----


def kinds_of_cells(kinds, seed, n=60, side=4, d=16):
    """Maps of which every cell is of one of so many kinds, all as far from each other, with a little noise; and the kinds."""
    draw = np.random.default_rng(seed)
    prototypes = np.linalg.qr(draw.normal(size=(d, d)))[0][:kinds]
    kind = draw.integers(0, kinds, size=(n, side, side))
    maps = prototypes[kind] + 0.1 * draw.normal(size=(n, side, side, d))
    return Regions(torch.from_numpy(maps).permute(0, 3, 1, 2).float(), grid(side, side)), torch.from_numpy(prototypes).float()


class Clusters(NamedTuple):
    """k-means that begins often enough to find the best clusters, so that chance does not stand in for the number."""

    parts: int

    def fit(self, regions):
        means = KMeans(self.parts, restarts=20, seed=0).fit(regions.tensor().flatten(0, 1)).centroids_
        return Parts(means, -means.square().sum(1) / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halves_agree_most_on_the_true_number_of_parts(seed):
    regions, _ = kinds_of_cells(6, seed)
    agreement = {p: stability(Clusters(p), regions, seed=seed) for p in (3, 6, 12)}
    assert agreement[6] > 99 and agreement[6] > max(agreement[3], agreement[12]) + 10, agreement


class Fixed(NamedTuple):
    """A learner that knows its parts already."""

    known: object

    def fit(self, regions):
        return self.known


class Lottery:
    """Parts that answer at random, each time anew."""

    def __init__(self):
        self.draw = torch.Generator().manual_seed(0)

    def score(self, regions):
        return torch.rand(len(regions), 6, len(regions.boxes), generator=self.draw)


def test_stability_is_100_for_one_who_knows_and_0_for_one_who_guesses():
    regions, prototypes = kinds_of_cells(6, 0)
    assert stability(Fixed(Parts(prototypes, torch.zeros(6))), regions) == pytest.approx(100)
    assert abs(stability(Fixed(Lottery()), regions)) < 2


def test_stability_is_of_its_seed_and_learns_on_halves():
    regions, _ = kinds_of_cells(6, 0)
    assert stability(KMeansParts(3), regions, seed=1) == stability(KMeansParts(3), regions, seed=1)
    seen = []

    class Watched(KMeansParts):
        def fit(self, some):
            seen.append(len(some))
            return super().fit(some)

    stability(Watched(3), regions[:41], splits=2)
    assert seen == [21, 20, 21, 20]
