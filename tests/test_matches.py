"""Why two photographs match: the terms add up to the cosine, of bags and of whitened codes, and stand for what they are said to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, normalize

import partlib as pl
from partlib.cam import code_match, cosine_terms, object_box, part_match, strongest
from partlib.heads import POOLS, PartHead

ROOT = Path(__file__).parents[1]


def by_number(sheet, kind="part"):
    """Shares and boxes of the terms of a kind, by their numbers."""
    order = sorted((int(name.split()[1]), i) for i, name in enumerate(sheet.names) if name.startswith(kind))
    rows = [i for _, i in order]
    return sheet.shares[rows], sheet.boxes[:, rows]


@given(d=st.integers(1, 9), dims=st.sampled_from([None, 1, 4]), seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_terms_by_loops_over_the_whitening(d, dims, seed):
    draw = np.random.default_rng(seed)
    x, y, projection = draw.normal(size=d), draw.normal(size=d), np.eye(d) if dims is None else draw.normal(size=(d, dims))
    given_projection = None if dims is None else torch.from_numpy(projection)
    found = cosine_terms(torch.from_numpy(x), torch.from_numpy(y), given_projection)
    mixed = projection @ projection.T
    length = np.linalg.norm(x @ projection) * np.linalg.norm(y @ projection)
    for i in range(d):
        expected = sum((x[i] * mixed[i, j] * y[j] + y[i] * mixed[i, j] * x[j]) / 2 for j in range(d)) / length
        assert abs(found[i].item() - expected) < 1e-9
    cosine = (x @ projection) @ (y @ projection) / length
    assert abs(found.sum().item() - cosine) < 1e-9
    np.testing.assert_allclose(cosine_terms(torch.from_numpy(y), torch.from_numpy(x), given_projection), found, atol=1e-12)


def test_a_code_of_zeros_matches_nothing():
    for projection in (None, torch.eye(3)):
        assert torch.equal(cosine_terms(torch.zeros(3), torch.ones(3), projection), torch.zeros(3))


@given(pool=st.sampled_from(POOLS), presence=st.booleans(), centred=st.booleans(), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_parts_of_a_match_add_up_to_the_cosine_of_bags(pool, presence, centred, seed):
    draw = torch.Generator().manual_seed(seed)
    head = PartHead(5, 6, pool=pool, presence=presence, seed=seed).double().eval().requires_grad_(False)
    maps = torch.randn(2, 5, 3, 4, generator=draw).double()
    mean = 0.3 * torch.randn(6, generator=draw).double() if centred else None
    sheet = part_match(head, maps[:1], maps[1:], mean)
    unit = normalize(head.bag(maps), dim=1)
    a, b = unit if mean is None else unit - mean
    assert abs(sheet.total - cosine_similarity(a, b, dim=0)) < 1e-9 and (sheet.shares.diff() <= 0).all()
    shares, boxes = by_number(sheet)
    np.testing.assert_allclose(shares, a * b / (a.norm() * b.norm()).clamp(min=1e-12), atol=1e-9)
    scores = head.scores(maps)
    for i, p in np.ndindex(2, 6):
        y, x = divmod(int(scores[i, p].argmax()), 4)
        absent = presence and scores[i, p].max() == 0
        assert boxes[i, p].tolist() == ([0, 0, 0, 0] if absent else [x, y, x + 1, y + 1])
    assert torch.equal(boxes, strongest(head, maps)) and sheet.cells == ((3, 4), (3, 4))


@pytest.fixture(scope="module")
def real_maps():
    photos = pl.data.groceries()
    return pl.extract(pl.Backbone(size=256), photos[photos.train[::6]], cache=ROOT / "data" / "cache").tensor()


def small_net(maps, joined):
    """Neighbours among so few photographs are not to be trusted: we say whether they are, and that the joined code is better."""
    better = iter((1.0, 0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("partlib.partnet.estimator.shared_neighbours", lambda *_: next(better))
        patch.setattr("partlib.partnet.estimator.carries_over", lambda *_: 2.0 if joined else 0.5)
        return pl.PartNet(parts=12, landmarks=4, epochs=1, within=64, dims=24).fit(maps)


@pytest.fixture(scope="module")
def learnt(real_maps):
    return small_net(real_maps[:80], joined=True), real_maps[80:]


@pytest.mark.parametrize("joined", [True, False])
def test_terms_of_a_code_add_up_to_its_cosine_on_real_photographs(learnt, real_maps, joined):
    net, maps = learnt
    net = net if joined else small_net(real_maps[:80], joined)
    assert net.code_ == (("landmarks", "R-MAC", "bag") if joined else ("landmarks",))
    codes = net.encode(maps)
    for i, j in [(0, 1), (3, 12), (5, 5)]:
        sheet = code_match(net, maps[[i]], maps[[j]])
        assert abs(sheet.total - codes[i] @ codes[j]) < 1e-5
        kinds = [name.split()[0] for name in sheet.names]
        assert kinds.count("landmark") == 4 and kinds.count("whole") == joined and kinds.count("part") == 12 * joined
        if joined:
            assert sheet.boxes[:, sheet.names.index("whole picture")].tolist() == [[0, 0, 8, 8]] * 2


def test_the_share_of_a_part_is_what_is_lost_when_it_becomes_average(learnt):
    """From either side: the product before norms falls by the term of that side; a share is the mean of the two."""
    net, maps = learnt
    sheet = code_match(net, maps[:1], maps[1:2])
    x, y = normalize(net.joined(maps[:2]), dim=1) - net.whitening_.mean_
    P = net.whitening_.projection_
    length = (x @ P).norm() * (y @ P).norm()
    shares, _ = by_number(sheet)
    for p in (0, 7):
        lost = []
        for a, b in ((x, y), (y, x)):
            average = a.clone()
            average[len(a) - 12 + p] = 0
            lost.append(((a @ P) @ (b @ P) - (average @ P) @ (b @ P)) / length)
        assert abs(shares[p] - sum(lost) / 2) < 1e-6
    marks, boxes = by_number(sheet, "landmark")
    d = maps.shape[1]
    for k in range(4):
        blanked = x.clone()
        blanked[k * d : (k + 1) * d] = 0
        other = y.clone()
        other[k * d : (k + 1) * d] = 0
        lost = (((x - blanked) @ P) @ (y @ P) + ((y - other) @ P) @ (x @ P)) / length / 2
        assert abs(marks[k] - lost) < 1e-6
        for i in (0, 1):
            own = net.landmarks_.shares(maps[[i]])[0, k]
            assert tuple(boxes[i, k].tolist()) == (object_box(own, 0.5) if own.max() > 0 else (0, 0, 0, 0))


def test_a_match_is_of_two_photographs(learnt):
    net, maps = learnt
    assert "maps[i][None], maps[j][None]" in refusal(ValueError, lambda: part_match(net.head_, maps[:1], maps[:2]))
    assert "maps of 3 and 1" in refusal(ValueError, lambda: code_match(net, maps[:3], maps[:1]))
