"""The part network: what it learns on planted parts, saved and killed and found again, and what it says when there is nothing to learn."""

import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from common import close, one_sentence
from sklearn.metrics import adjusted_rand_score

import partlib as pl
from partlib.mining import NothingFound, Parts
from partlib.partnet import BlockMissing, Landmarks, Subspace, foreground, most_stable

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS, EACH, CHANNELS = 4, 12, 24


def planted(seed=0, n=KINDS * EACH, side=6):
    """Maps of four kinds: in a block inside, two cells of the kind's own two directions; the rest is weak clutter, stronger in common."""
    draw = torch.Generator().manual_seed(seed)
    maps = 0.3 * torch.rand(n, CHANNELS, side, side, generator=draw)
    maps[:, -1] += 1.0  # the surroundings have a channel of their own
    labels = np.arange(n) % KINDS
    for i, kind in enumerate(labels):
        y, x = (int(torch.randint(1, side - 2, (1,), generator=draw)) for _ in range(2))
        maps[i, -1, y : y + 2, x : x + 2] = 0
        maps[i, 2 * kind, y, x] += 3
        maps[i, 2 * kind + 1, y + 1, x + 1] += 3
        maps[i, 10, y : y + 2, x : x + 2] += 1  # what all objects share
    return maps, labels


def small(**options):
    return pl.PartNet(**({"parts": 8, "dims": 8, "epochs": 4, "batch": 16, "within": 16, "clusters": 4, "neighbours": 3} | options))


def knn(net, maps, labels):
    codes = net.encode(maps)
    return pl.evaluation.knn_accuracy(codes[:24], labels[:24], codes[24:], labels[24:], k=3)


@pytest.mark.parametrize("how", ["neighbours", "clusters"])
def test_planted_kinds_are_told_apart_without_labels(how):
    net = small(how=how).fit(planted(seed=1)[0])
    assert knn(net, *planted()) >= 95


def test_training_lowers_the_contrast():
    maps, _ = planted()
    learnt, left = (small(rate=rate, epochs=8).fit(maps).history_[-1]["contrast"] for rate in (3e-3, 1e-9))
    assert learnt < left - 0.01


def test_with_labels_planted_kinds_are_predicted_and_the_logit_is_explained():
    maps, labels = planted()
    net = small(epochs=30, rate=0.01).fit(maps, labels)
    others, truth = planted(seed=2)
    assert (net.predict(others) == truth).mean() > 0.95
    explained = pl.cam.part_contributions(net.head_, others)
    close(explained.logits, net.head_(others), 1e-4)
    # What decides lies on the object: the maps of the right class have their mass on cells that are not surroundings.
    drawn = torch.stack([pl.cam.part_maps(net.head_, others[[i]], int(truth[i]))[0].clamp(min=0).sum(0) for i in range(len(others))])
    on = others[:, -1] < 0.5
    assert float((drawn * on).sum() / drawn.sum()) > 0.8


def test_same_seed_same_filters_other_seed_others():
    maps, _ = planted()
    a, b, c = (small(seed=seed).fit(maps).head_.filters.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_filters_learnt_in_a_subspace_score_the_same_on_all_channels():
    maps, _ = planted()
    subspace = Subspace.of(maps, 10)
    head = pl.heads.PartHead(10, 5)
    within = head.scores(subspace.reduce(maps)).detach()
    assert torch.allclose(subspace.unfold(head).scores(maps), within, atol=1e-5)


def test_foreground_is_what_the_border_has_not():
    maps, _ = planted()
    found = foreground(maps)
    on = maps[:, -1] < 0.5
    assert adjusted_rand_score(on.flatten(), found.flatten()) > 0.8


def test_starts_from_parts_of_any_learner():
    maps, _ = planted()
    start = pl.mining.KMeansParts(8).fit(pl.regions.Regions(maps, pl.regions.grid(6, 6)))
    net = small(epochs=1, rate=1e-9, within=CHANNELS).fit(maps, start=start)
    cosine = torch.cosine_similarity(net.head_.filters.weight[:, :, 0, 0], start.filters)
    assert (cosine > 0.999).all()
    with pytest.raises(ValueError, match="make them as many"):
        small(parts=5).fit(maps, start=start)
    assert isinstance(start, Parts)


def test_other_views_are_learnt_from():
    maps, labels = planted()
    net = small().fit(maps, views=[maps.flip(3)])
    assert knn(net, maps, labels) >= 95 and len(net.history_) == 4


@pytest.mark.parametrize("losses", ["indecision", "imbalance", "spread", "absence", "inequivariance"])
def test_further_terms_are_lowered(losses):
    maps, _ = planted()
    mirrored = maps.flip(3) + 0.2 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(5))  # a network's maps are not quite
    history = small(losses=((losses, 3.0),), epochs=6, rate=0.02).fit(maps, views=[mirrored]).history_
    assert history[-1][losses] < history[0][losses]


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    maps, labels = planted()
    for net in (small(norm=True).fit(maps, labels), small(presence=True, background=True).fit(maps)):
        net.save(tmp_path / "net.safetensors")
        again = pl.PartNet.load(tmp_path / "net.safetensors")
        if net.classes_:
            assert (again.predict(maps) == net.predict(maps)).all()
            with pytest.raises(ValueError, match="learnt with labels"):
                again.encode(maps)
        else:
            close(again.encode(maps), net.encode(maps), 1e-6)


def test_files_that_hold_no_network_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="save.file. writes one"):
        pl.PartNet.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match="holds no part network"):
        pl.PartNet.load(tmp_path / "bad")
    net = small(epochs=1).fit(planted()[0])
    with pytest.raises(OSError, match="room on the disk"):
        net.save(tmp_path / "nowhere" / "net")


MISTAKES = {
    "three photographs": lambda maps: small().fit(maps[:3]),
    "constant maps": lambda maps: small().fit(torch.ones_like(maps)),
    "NaN": lambda maps: small().fit(maps.clone().fill_(float("nan"))),
    "more parts than cells": lambda maps: small(parts=5000).fit(maps),
    "another way": lambda maps: small(how="magic").fit(maps),
    "another loss": lambda maps: small(losses=(("beauty", 1.0),)).fit(maps),
    "no mirrored views": lambda maps: small(losses=(("inequivariance", 1.0),)).fit(maps),
    "not fitted": lambda maps: small().encode(maps),
    "labels of others": lambda maps: small().fit(maps, [0, 1]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_one_sentence(mistake):
    with pytest.raises((ValueError, NothingFound)) as error:
        MISTAKES[mistake](planted()[0])
    one_sentence(error)


def test_a_huge_rate_without_orthogonality_ends_in_a_named_state_not_in_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = small(losses=(), rate=10.0, epochs=3).fit(planted()[0])
    assert torch.isfinite(net.encode(planted()[0])).all()


def test_copies_at_the_end_are_warned_of():
    maps, labels = planted()
    first = torch.rand(1, CHANNELS)
    same = Parts(first.expand(8, -1).clone(), torch.zeros(8))
    with pytest.warns(pl.heads.Collapse, match="copies"):
        small(losses=(), rate=1e-6).fit(maps, start=same)


KILLED = """
import sys, torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
from test_partnet import planted, small
net = small(epochs=60).fit(planted()[0], checkpoint=sys.argv[1])
torch.save(net.head_.state_dict(), sys.argv[2])
"""


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path):
    def started(name):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / f"{name}.ckpt"), str(tmp_path / f"{name}.pt")], env=os.environ | {"TQDM_DISABLE": "1"})

    assert started("whole").wait() == 0
    killed = started("killed")
    while not (tmp_path / "killed.ckpt").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert started("killed").wait() == 0
    whole, again = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


TWO = """
import sys, torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
from test_partnet import planted, small
maps, labels = planted()
for name, net in (("without", small().fit(maps)), ("with", small(losses=(("orthogonality", 0.1), ("shared_use", 0.1))).fit(maps, labels))):
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(net.head_.state_dict(), f"{sys.argv[1]}-{name}.pt")
"""


def test_two_processes_learn_what_one_does(tmp_path):
    (tmp_path / "two.py").write_text(TWO, encoding="utf-8")
    environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "tests"}
    one = [sys.executable, str(tmp_path / "two.py"), str(tmp_path / "one")]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "two.py"), str(tmp_path / "two")]
    for command in (one, two):
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    for name in ("without", "with"):
        alone, shared = (torch.load(tmp_path / f"{which}-{name}.pt", weights_only=True) for which in ("one", "two"))
        for key in alone:
            close(shared[key], alone[key], 1e-5)


# Landmarks, trust in neighbours, and the last block.


def laid_out(seed=0, n=40, side=8, kinds=5):
    """Maps of objects of three parts side by side, each part with a channel of its own over what all of its kind's cells share; and the parts."""
    draw = torch.Generator().manual_seed(seed)
    maps, parts = 0.05 * torch.rand(n, CHANNELS, side, side, generator=draw), torch.full((n, side, side), 3)
    maps[:, -1] += 1.0
    for i in range(n):
        y, x = (int(torch.randint(1, side - 4, (1,), generator=draw)) for _ in range(2))
        maps[i, -1, y : y + 3, x : x + 3] = 0
        maps[i, i % kinds, y : y + 3, x : x + 3] += 2.0  # the kind, in every cell of the object
        for part in range(3):
            maps[i, 10 + part, y + part, x : x + 3] += 1.0
            parts[i, y + part, x : x + 3] = part
    return maps, parts


def test_landmarks_are_the_parts_that_all_kinds_share():
    maps, parts = laid_out()
    found = Landmarks.of(maps, 3)
    on = parts < 3
    assert adjusted_rand_score(on.flatten(), found.foreground(maps).flatten()) > 0.95
    assert adjusted_rand_score(parts[on], found.scores(maps).argmax(1)[on]) > 0.95
    by_kind = pl.mining.KMeansParts(3).fit(pl.regions.Regions(maps, pl.regions.grid(8, 8))).maps(maps)
    assert adjusted_rand_score(parts[on], by_kind.argmax(1)[on]) < 0.5  # without the photograph's mean taken away


def test_shares_and_descriptors_are_what_their_equations_say():
    maps, _ = laid_out(n=12)
    found = Landmarks.of(maps, 3)
    on, shares = found.foreground(maps), found.shares(maps)
    assert torch.allclose(shares.sum(1), on.float(), atol=1e-6)
    for i in range(3):
        cells = torch.nn.functional.normalize(maps[i].flatten(1), dim=0)
        placed = torch.nn.functional.normalize(cells - cells[:, on[i].flatten()].mean(1, keepdim=True), dim=0)
        turned = torch.nn.functional.normalize(found.basis.T @ placed - found.middle[:, None], dim=0)
        share = torch.softmax(found.filters @ turned / 0.1, 0) * on[i].flatten()
        close(shares[i].flatten(1), share, 1e-4)
        expected = torch.stack([(weight * maps[i].flatten(1) ** 3).sum(1) ** (1 / 3) for weight in share])
        close(found.describe(maps[[i]])[0], torch.nn.functional.normalize(expected.flatten(), dim=0), 1e-4)


def test_finer_scores_are_those_of_interpolated_cells():
    maps, _ = laid_out(n=6)
    found = Landmarks.of(maps, 3)
    close(found.maps(maps), found.scores(maps), 1e-6)
    assert found.maps(maps, finer=2).shape == (6, 3, 16, 16)


def test_the_number_of_landmarks_is_found_where_it_is_not_given():
    maps, _ = laid_out(n=60)
    fit = lambda rows, k: Landmarks.of(maps[torch.from_numpy(rows)], k).maps
    assert most_stable((3, 7), fit, maps) == 3
    assert len(small(landmarks=None).fit(planted()[0]).landmarks_) in (4, 8, 16)
    assert len(small(how="clusters", clusters=None).fit(planted()[0]).history_) == 4


def test_the_number_of_parts_is_found_where_it_is_not_given(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.heads.Collapse)  # they are more than there are kinds of cells
        net = small(parts=None, epochs=1).fit(laid_out(n=60)[0])
    assert net.head_.parts == len(net.as_parts()) == 32  # there are four kinds of cells: the fewest agree most
    net.save(tmp_path / "net")
    assert pl.PartNet.load(tmp_path / "net").head_.parts == 32


def kinds_in_noise(seed, n=100):
    """Codes of eight kinds, in noise that is stronger in some directions than in others."""
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(8, 30, generator=draw)[torch.arange(n) % 8] + torch.randn(n, 30, generator=draw) * torch.linspace(3, 0.1, 30)


def test_neighbours_of_one_kind_are_trusted():
    whitening = pl.whitening.NeighbourWhitening(dims=16)
    assert np.mean([pl.whitening.carries_over(kinds_in_noise(seed), whitening) for seed in range(3)]) > 1.01
    with pytest.raises(ValueError, match="six or more"):
        pl.whitening.carries_over(kinds_in_noise(0, n=5), whitening)


def test_trust_is_what_its_equation_says():
    codes = torch.nn.functional.normalize(kinds_in_noise(0, n=40), dim=1)
    draw, ratios = torch.Generator().manual_seed(0), []
    for _ in range(2):
        here, there = torch.randperm(40, generator=draw).tensor_split(2)
        learnt = pl.whitening.NeighbourWhitening(dims=8, neighbours=3, shrinkage=30 / 19).fit(codes[here])
        found = []
        for z in (learnt.transform(codes[there]), codes[there] - codes[here].mean(0)):
            z, out = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True), []
            for i in range(20):
                others = np.array([z[i] @ z[j] for j in range(20) if j != i])
                out.append((np.sort(others)[-3:].mean() - others.mean()) / others.std(ddof=1))
            found.append(np.mean(out))
        ratios.append(found[0] / found[1])
    assert abs(pl.whitening.carries_over(codes, pl.whitening.NeighbourWhitening(dims=8, neighbours=3), splits=2) - np.mean(ratios)) < 1e-4


def test_shared_neighbours_are_what_the_equation_says():
    codes = torch.nn.functional.normalize(kinds_in_noise(0, n=40), dim=1)
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(2):
        here, there = torch.randperm(40, generator=draw).tensor_split(2)
        z = pl.whitening.NeighbourWhitening(dims=8, neighbours=3, shrinkage=30 / 19).fit(codes[here]).transform(codes[there]).numpy()
        sets = [{i, *sorted(set(range(20)) - {i}, key=lambda j: -z[i] @ z[j])[:6]} for i in range(20)]
        found.append(np.mean([len(sets[i] & sets[j]) / 7 for i in range(20) for j in sets[i] - {i}]))
    whitening = pl.whitening.NeighbourWhitening(dims=8, neighbours=3)
    assert abs(pl.whitening.shared_neighbours(codes, whitening, splits=2) - np.mean(found)) < 1e-4


def test_neighbours_of_one_kind_share_theirs():
    whitening = pl.whitening.NeighbourWhitening(dims=16, neighbours=3)
    clear, mixed = kinds_in_noise(0), torch.randn(100, 30, generator=torch.Generator().manual_seed(1))
    assert pl.whitening.shared_neighbours(clear, whitening) > pl.whitening.shared_neighbours(mixed, whitening) + 0.2


@pytest.mark.parametrize("better", [("landmarks",), ("landmarks", "R-MAC")])
def test_the_code_is_what_neighbours_share_more_of(monkeypatch, better, tmp_path):
    monkeypatch.setattr("partlib.partnet.estimator.carries_over", lambda *_: 1.1)
    values = iter([0.0, 1.0] if len(better) == 1 else [1.0, 0.0])
    monkeypatch.setattr("partlib.partnet.estimator.shared_neighbours", lambda *_: next(values))
    maps, _ = planted()
    net = small(epochs=1).fit(maps)
    assert net.adapted_ and net.code_ == (better if len(better) == 1 else (*better, "bag"))
    wanted = {"landmarks": net.landmarks_.describe, "R-MAC": pl.encoding.rmac, "bag": lambda x: torch.nn.functional.normalize(net.bag(x), dim=1)}
    blocks = [wanted[name](maps) for name in net.code_]
    close(net.joined(maps), pl.encoding.join(*(block - block.mean(0) for block in blocks)), 1e-4)
    net.save(tmp_path / "net")
    assert pl.PartNet.load(tmp_path / "net").code_ == net.code_


def test_where_neighbours_are_not_trusted_the_code_is_only_turned(monkeypatch):
    monkeypatch.setattr("partlib.partnet.estimator.carries_over", lambda *_: 0.9)
    noise = torch.rand(40, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(3))
    net = small(dims=39).fit(noise)
    assert not net.adapted_ and net.carried_over_ <= 1 and net.code_ == ("landmarks",)
    plain = net.joined(noise)
    plain, codes = torch.nn.functional.normalize(plain - plain.mean(0), dim=1), net.encode(noise)
    assert torch.allclose(codes @ codes.T, plain @ plain.T, atol=1e-3)


def a_block():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(CHANNELS, 32, 1), torch.nn.ReLU())
    return block.requires_grad_(False)


def test_the_last_block_is_trained_on_a_copy_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("partlib.partnet.estimator.carries_over", lambda *_: 1.1)
    maps, labels = planted()
    block = a_block()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    net = small(epochs=2).fit(maps, views=[maps.flip(3)], block=block, checkpoint=tmp_path / "run")
    assert all(torch.equal(block.state_dict()[name], value) for name, value in before.items())
    assert net.adapted_ and len(net.block_history_) == 2 and (tmp_path / "run.block").exists()
    assert not torch.equal(net.block_[0].weight, block[0].weight) and not net.block_[0].weight.requires_grad
    close(net.through(maps), net.block_(maps), 1e-6)
    net.save(tmp_path / "net")
    close(pl.PartNet.load(tmp_path / "net", block=block).encode(maps), net.encode(maps), 1e-6)
    with pytest.raises(BlockMissing, match="with a last block"):
        pl.PartNet.load(tmp_path / "net")
    small(epochs=1).fit(maps).save(tmp_path / "without")
    with pytest.raises(BlockMissing, match="without a block"):
        pl.PartNet.load(tmp_path / "without", block=block)
