"""The part head: pools written out, exact contributions whatever the weights, losses by their definitions."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from partlib import cam, heads
from partlib.heads import POOLS, Collapse, PartHead, diagnose, warn_of_collapse

pytestmark = pytest.mark.usefixtures("one_thread")


def some_maps(n=3, d=12, h=5, w=6, seed=0):
    return torch.randn(n, d, h, w, generator=torch.Generator().manual_seed(seed))


def a_head(pool="max", d=12, parts=7, classes=4, seed=0, **options):
    """A head as after training: random weights of both signs, batch statistics that are not 0 and 1, a scale, thresholds."""
    head = PartHead(d, parts, classes, pool, seed=seed, **options)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        head.scale.fill_(2.5)
        if head.norm is not None:
            head.norm.running_mean.copy_(torch.randn(parts, generator=draw))
            head.norm.running_var.copy_(torch.rand(parts, generator=draw) + 0.1)
    return head.eval()


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (3,)])
def test_pools_are_what_their_names_say(sizes):
    maps = some_maps()
    for pool in POOLS:
        head = a_head(pool, sizes=sizes)
        filters = head.filters.weight[:, :, 0, 0]
        for i, image in enumerate(maps):
            scores = np.array([
                [float(filters[p].detach() @ image[:, y0:y1, x0:x1].mean((1, 2))) / 2.5 for x0, y0, x1, y1 in head.boxes(5, 6).tolist()]
                for p in range(7)
            ])  # fmt: skip
            relu = scores.clip(0)
            expected = {
                "max": scores.max(1),
                "mean": scores.mean(1),
                "softmax": (np.exp(scores / 0.1 - (scores / 0.1).max(1, keepdims=True)) * scores).sum(1)
                / np.exp(scores / 0.1 - (scores / 0.1).max(1, keepdims=True)).sum(1),
                "gem": (relu**3).mean(1) ** (1 / 3),
            }[pool]
            np.testing.assert_allclose(head.bag(maps[[i]])[0].detach(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    pool=st.sampled_from(POOLS), norm=st.booleans(), presence=st.booleans(), background=st.booleans(), seed=st.integers(0, 10_000),
    sizes=st.sampled_from([(1,), (1, 2), (2, 3)]), shift=st.sampled_from([0.0, -50.0, 3.0]),
)  # fmt: skip
def test_contributions_and_maps_add_up_to_the_logit(pool, norm, presence, background, seed, sizes, shift):
    head = a_head(pool, norm=norm, presence=presence, background=background, seed=seed, sizes=sizes)
    maps = some_maps(seed=seed) + shift  # shifted far down, all scores of some parts are negative
    logits, parts = head(maps).detach(), cam.part_contributions(head, maps)
    size = max(1.0, float(parts.values.abs().sum(2).max()))
    torch.testing.assert_close(parts.logits, logits, rtol=0, atol=1e-5 * size)
    for c in range(4):
        drawn = cam.part_maps(head, maps, c)
        torch.testing.assert_close(drawn.sum((2, 3)), parts.values[:, c], rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("norm", [False, True])
def test_without_a_part_the_logit_is_less_by_its_contribution(pool, norm):
    head, maps = a_head(pool, norm=norm), some_maps()
    logits, parts = head(maps).detach(), cam.part_contributions(head, maps)
    folded, constant = head.folded()
    for p in range(7):
        bag = head.bag(maps).clone()
        bag[:, p] = 0
        without = bag @ folded.T + constant
        torch.testing.assert_close(without, logits - parts.values[:, :, p], rtol=0, atol=1e-4)


def test_of_a_max_pool_only_the_best_region_shows():
    head, maps = a_head("max"), some_maps()
    drawn = cam.part_maps(head, maps, 0)
    assert ((drawn != 0).sum((2, 3)) <= 1).all()
    assert ((cam.evidence_maps(head, maps, 0) != 0).sum((2, 3)) > 1).all()


def test_a_part_under_its_threshold_is_absent_and_says_nothing():
    head = a_head("max", presence=True)
    with torch.no_grad():
        head.thresholds.fill_(1e3)
    assert (head.bag(some_maps()) == 0).all()


def test_heads_answer_mistakes_in_one_sentence():
    with pytest.raises(ValueError, match="pools by max, mean"):
        PartHead(8, pool="median")
    with pytest.raises(ValueError, match="no classes"):
        PartHead(12)(some_maps())
    with pytest.raises(ValueError, match="decides nothing"):
        cam.part_contributions(PartHead(12), some_maps())
    with pytest.raises(ValueError, match="smaller sizes"):
        PartHead(12, sizes=(9,)).bag(some_maps())


# ---- the losses ----


def test_orthogonality_is_the_mean_squared_cosine_of_pairs():
    filters = torch.randn(5, 9)
    pairs = [float(F.cosine_similarity(filters[i], filters[j], dim=0)) ** 2 for i in range(5) for j in range(5) if i != j]
    assert math.isclose(float(heads.orthogonality(filters)), np.mean(pairs), rel_tol=1e-5)
    assert float(heads.orthogonality(torch.eye(4))) == 0
    assert float(heads.orthogonality(torch.ones(1, 4))) < 1e-10


def test_losses_of_assignments_by_their_definitions():
    assigned = torch.softmax(torch.randn(3, 4, 5, 6), dim=1)
    a = assigned.numpy()
    entropy = lambda q: -(q * np.log(q)).sum()
    by_cell = [entropy(a[i, :, y, x]) for i in range(3) for y in range(5) for x in range(6)]
    assert math.isclose(float(heads.indecision(assigned)), np.mean(by_cell), rel_tol=1e-5)
    assert math.isclose(float(heads.imbalance(assigned)), np.log(4) - entropy(a.mean((0, 2, 3))), rel_tol=1e-3, abs_tol=1e-6)
    assert math.isclose(float(heads.absence(assigned)), 1 - np.mean([a[:, p].max() for p in range(4)]), rel_tol=1e-5)
    far = []
    for i in range(3):
        for p in range(4):
            mass = a[i, p] / a[i, p].sum()
            y, x = np.mgrid[0:5, 0:6]
            y, x = (y + 0.5) / 5, (x + 0.5) / 6
            far.append((mass * ((y - (mass * y).sum()) ** 2 + (x - (mass * x).sum()) ** 2)).sum())
    assert math.isclose(float(heads.spread(assigned)), np.mean(far), rel_tol=1e-3)
    assert float(heads.inequivariance(assigned, assigned.flip(3))) == 0
    assert 0 < float(heads.inequivariance(assigned, assigned)) <= 1


def test_ends_of_the_scales():
    one = torch.zeros(2, 3, 4, 4)
    one[:, 0] = 1
    assert float(heads.indecision(one)) == 0
    assert math.isclose(float(heads.imbalance(one)), math.log(3), rel_tol=1e-5)
    even = torch.full((2, 3, 4, 4), 1 / 3)
    assert abs(float(heads.imbalance(even))) < 1e-6
    assert math.isclose(float(heads.indecision(even)), math.log(3), rel_tol=1e-5)
    assert float(heads.shared_use(100 * torch.eye(3))) < 1e-6


def test_contrast_written_out_and_what_is_known_is_not_pushed_apart():
    codes, others = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    known = torch.rand(6, 6) < 0.3
    total = 0.0
    for i in range(6):
        row = [math.exp(float(codes[i] @ others[j]) / 0.2) for j in range(6) if j == i or not known[i, j]]
        column = [math.exp(float(codes[j] @ others[i]) / 0.2) for j in range(6) if j == i or not known[j, i]]
        own = math.exp(float(codes[i] @ others[i]) / 0.2)
        total -= (math.log(own / sum(row)) + math.log(own / sum(column))) / 12
    assert math.isclose(float(heads.contrast(codes, others, known, 0.2)), total, rel_tol=1e-4)


# ---- the diagnosis ----


def test_copies_are_told_by_name():
    head = PartHead(12, 6, 3)
    with torch.no_grad():
        head.filters.weight.copy_(head.filters.weight[:1].expand(6, -1, -1, -1))
    found = diagnose(head, some_maps(n=8))
    assert found["duplicates"] == found["copies"] == 100 and found["alike"] > 0.99 and found["effective"] < 1.01
    with pytest.warns(Collapse, match="same regions.*copies"):
        warn_of_collapse(found)


def test_duplicates_and_copies_are_counted_pairs():
    head, maps = a_head(parts=6), some_maps(n=5)
    where = head.scores(maps).argmax(2)
    together = [np.mean([bool(where[i, p] == where[i, q]) for i in range(5)]) for p in range(6) for q in range(p)]
    found = diagnose(head, maps)
    assert math.isclose(found["duplicates"], 100 * np.mean(together), rel_tol=1e-5)
    assert math.isclose(found["copies"], 100 * np.mean(np.array(together) > 0.5), abs_tol=1e-4)


def test_dead_parts_are_told_by_name():
    head = PartHead(12, 6, 3)
    with torch.no_grad():
        head.filters.weight[2:] = 0
        head.filters.weight[:2] = head.filters.weight[:2].abs()
    found = diagnose(head, some_maps(n=8).abs() + 0.1)
    assert 60 < found["dead"] < 70
    with pytest.warns(Collapse, match="67 % of the parts are dead"):
        warn_of_collapse(found)


def test_sound_parts_are_not_complained_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_of_collapse(diagnose(PartHead(12, 6, 3), some_maps(n=8, h=8, w=8))) is None


def test_share_of_best_regions_on_the_foreground():
    maps, on = some_maps(n=4), torch.rand(4, 5, 6) < 0.5
    head = a_head(parts=3)
    where = head.scores(maps).argmax(2)
    expected = np.mean([bool(on[i].flatten()[where[i, p]]) for i in range(4) for p in range(3)])
    assert math.isclose(diagnose(head, maps, on)["foreground"], 100 * expected, rel_tol=1e-5)
