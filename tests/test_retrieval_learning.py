"""Codes learnt for retrieval: R-MAC as a network, triplets and their mining, against loops over the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from partlib import encoding, retrieval, training
from partlib.regions import pool, rmac
from partlib.retrieval import Index, RegionalCode, Triplets, evaluate, triplet_loss
from partlib.whitening import PCAWhitening


def some_maps(n, d=12, h=6, w=5, seed=0):
    return torch.rand(n, d, h, w, generator=torch.Generator().manual_seed(seed))


def kinds_apart(n, kinds, d=12, seed=0, apart=2.0):
    """Maps of some kinds, each with channels of its own, under noise that is larger in other channels; and their labels."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.rand(kinds, d, generator=torch.Generator().manual_seed(77))
    labels = np.arange(n) % kinds
    noise = torch.rand(n, d, 6, 5, generator=draw) + 2 * torch.rand(n, d, 1, 1, generator=draw) * (torch.arange(d) % 2)[None, :, None, None]
    return apart * centres[labels][:, :, None, None] + noise, labels


def test_it_starts_as_rmac_with_whitened_regions():
    maps, other = some_maps(30), some_maps(8, seed=1)
    code = RegionalCode(12, (6, 5), dims=7).start(maps)
    windows = normalize(pool(maps, rmac(6, 5), "max"), dim=2)
    whitening = PCAWhitening(7, shrinkage=0.01).fit(windows.flatten(0, 1))
    torch.testing.assert_close(code.encode(other), encoding.rmac(other, whitening=whitening), atol=1e-5, rtol=0)


def test_a_single_window_with_the_exponent_it_starts_with_is_gem():
    maps = some_maps(5)
    code = RegionalCode(12, (6, 5), dims=4, pool="gem", windows="whole")
    torch.testing.assert_close(code.describe(maps)[:, 0], normalize(encoding.gem(maps, p=3.0), dim=1), atol=1e-5, rtol=0)
    code.exponent.data.fill_(5.0)
    torch.testing.assert_close(code.describe(maps)[:, 0], normalize(encoding.gem(maps, p=5.0), dim=1), atol=1e-5, rtol=0)
    assert code.describe(0 * maps).isfinite().all()


def test_proposed_windows_weigh_alike_at_first_and_then_as_they_are_preferred():
    maps = some_maps(4)
    code = RegionalCode(12, (6, 5), windows="proposed")
    x = code.describe(maps)
    assert torch.allclose(code.weights(x), torch.tensor(1 / x.shape[1])) and len(code.boxes) > 5
    code.preference.data[3] = 4.0
    assert torch.equal(code.weights(x).argmax(1), x[:, :, 3].argmax(1))
    by_hand = torch.stack([normalize(sum(w * normalize(code.project(v), dim=0) for w, v in zip(*one)), dim=0) for one in zip(code.weights(x), x)])
    torch.testing.assert_close(code.combine(x), by_hand, atol=1e-5, rtol=0)


@given(n=st.integers(1, 8), d=st.integers(1, 5), margin=st.sampled_from([0.0, 0.1, 1.0]), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_the_triplet_loss_is_its_formula(n, d, margin, seed):
    q, a, b = np.random.default_rng(seed).normal(size=(3, n, d))
    by_hand = sum(0.5 * max(0, margin + ((q[i] - a[i]) ** 2).sum() - ((q[i] - b[i]) ** 2).sum()) for i in range(n)) / n
    assert triplet_loss(*map(torch.from_numpy, (q, a, b)), margin).item() == pytest.approx(by_hand, abs=1e-6)


def test_who_is_right_and_who_is_wrong_without_labels():
    maps = some_maps(40)
    code = RegionalCode(12, (6, 5), dims=6).start(maps)
    task = Triplets(code, [maps, maps.flip(3)], neighbours=4, spare=10, hard=5)
    task.begin(0, torch.Generator())
    codes = code.encode(maps).numpy()
    order = [[j for j in np.argsort(-(codes @ codes[i]), kind="stable") if j != i] for i in range(40)]
    for i in range(40):
        mutual = [j for j in order[i][:4] if i in order[j][:4]]
        assert task.right[i].tolist() == mutual + [i] * (4 - len(mutual))
        assert task.wrong[i].tolist() == order[i][4:9]  # a tenth of 40 photographs is spared at most, which are the neighbours


def test_who_is_right_and_who_is_wrong_with_labels():
    maps, labels = kinds_apart(24, 3)
    code = RegionalCode(12, (6, 5), dims=6).start(maps)
    task = Triplets(code, [maps], labels, neighbours=3, hard=4)
    task.begin(0, torch.Generator())
    codes = code.encode(maps)
    for i in range(24):
        order = [j for j in Index(codes).search(codes[i], 24)[1] if j != i]
        assert task.right[i].tolist() == [j for j in order if labels[j] == labels[i]][:3]
        assert task.wrong[i].tolist() == [j for j in order if labels[j] != labels[i]][:4]


def test_a_photograph_is_its_own_like_only_in_another_view():
    maps = some_maps(30)
    code = RegionalCode(12, (6, 5), dims=6)
    task = Triplets(code, [maps, maps.flip(3), maps * 0.9], neighbours=2)
    task.begin(0, torch.Generator())
    for seed in range(20):
        rows, right, view, wrong = task.draw(torch.arange(30), torch.Generator().manual_seed(seed))
        assert (view[right == rows] > 0).all() and (wrong != rows).all() and 0 <= view.min() <= view.max() <= 2
    codes = [code.encode(seen) for seen in (maps, maps.flip(3), maps * 0.9)]
    expected = triplet_loss(codes[0], torch.stack([codes[v][r] for v, r in zip(view, right)]), codes[0][wrong], 1.0)
    assert task(rows, right, view, wrong)["triplet"].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("windows", "how"), [("rmac", "max"), ("proposed", "max"), ("whole", "gem")])
def test_triplets_bring_kinds_together_without_labels(windows, how):
    (maps, _), (test, labels) = kinds_apart(120, 4), kinds_apart(80, 4, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        code = RegionalCode(12, (6, 5), 8, how, windows).start(maps)
    before = evaluate(code.encode(test), labels)["mAP"]
    training.fit(Triplets(code, [maps, maps.flip(3)], spare=12), epochs=8, batch=32, rate=3e-3)
    assert evaluate(code.encode(test), labels)["mAP"] > before + 1
    if windows == "proposed":
        assert code.preference.abs().max() > 0.01
    if how == "gem":
        assert abs(code.exponent.item() - 3) > 0.01


def test_a_run_repeats_and_resumes(tmp_path):
    maps = some_maps(30)

    def train(epochs, **more):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            code = RegionalCode(12, (6, 5), dims=6).start(maps)
        training.fit(Triplets(code, [maps, maps.flip(3)], neighbours=3), epochs, 16, schedule="constant", **more)
        return code.encode(maps)

    assert torch.equal(train(2), train(2))
    assert torch.equal(train(2, checkpoint=tmp_path / "run"), train(2, checkpoint=tmp_path / "run"))


def test_what_cannot_be():
    maps = some_maps(6)
    with pytest.raises(ValueError, match="'max' or 'gem'"):
        RegionalCode(12, (6, 5), pool="sum")
    with pytest.raises(ValueError, match="'rmac', 'whole' or 'proposed'"):
        RegionalCode(12, (6, 5), windows="all")
    with pytest.raises(ValueError, match="views of 6, 5 photographs"):
        Triplets(RegionalCode(12, (6, 5)), [maps, maps[:5]], neighbours=2)
    assert retrieval.learning.RegionalCode is RegionalCode
