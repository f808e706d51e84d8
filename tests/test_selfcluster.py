"""Loops over own clusters: each step written out, planted kinds found, the same weights whatever stops a run, and in two processes."""

import warnings

import numpy as np
import pytest
import selfcluster_task
import torch
from common import close, one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import forks, in_two, killed_until_done, same
from selfcluster_task import EACH, KINDS, OPTIONS, long_run, planted, tasks
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.nn import functional as F
from training_task import state

from partlib.encoding import gem
from partlib.pretext import Crops, Views, codes, convnet
from partlib.selfcluster import Collapse, DeepCluster, DeepClusterV2, DeeperCluster, evenly, refilled
from partlib.selfcluster.clusters import grouped, whitened
from partlib.selfcluster.deepcluster import means_of
from partlib.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")
N = KINDS * EACH


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def small(kind=DeepCluster, *arguments, **options):
    return kind(convnet((6, 8, 8)), Crops(planted()[0], 0.8), *arguments, **options)


# ---- groups ----


@given(n=st.integers(1, 60), k=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_an_epoch_is_even_over_clusters_that_have_members(n, k, seed):
    labels = torch.randint(k, (n,), generator=chance(seed)) ** 2 % k
    sample = evenly(labels, chance(seed))
    assert len(sample) == n and sample.min() >= 0 and sample.max() < n
    drawn, found = torch.bincount(labels[sample], minlength=k), labels.unique()
    each = n // len(found) + 1
    assert (drawn <= each).all() and drawn.sum() == n and (drawn > 0).sum() <= len(found)
    assert each * len(found) - n >= each - drawn[found].min()  # what was cut off at the end is all that lacks
    sizes = torch.bincount(labels, minlength=k)
    for cluster in found[sizes[found] > each]:
        members = sample[labels[sample] == cluster]
        assert len(members.unique()) == len(members)  # a large cluster shows nobody twice


@given(n=st.integers(2, 40), k=st.integers(1, 20), distinct=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_empty_clusters_start_anew_where_there_is_something_to_start_from(n, k, distinct, seed):
    x = torch.randn(distinct, 3, generator=chance(seed))[torch.randint(distinct, (n,), generator=chance(seed + 1))]
    centroids = torch.randn(k, 3, generator=chance(seed + 2))
    centroids[: k // 2] = 100  # nobody is near
    labels = torch.cdist(x, centroids).argmin(1).numpy()
    full, count = refilled(x, labels, centroids)
    empty = k - len(np.unique(labels))
    assert count == len(np.unique(full)) - len(np.unique(labels)) <= empty
    if len(x.unique(dim=0)) >= n:
        assert len(np.unique(full)) == min(k, n)
    unmoved = full == labels
    assert unmoved.sum() == n - count
    if count:
        away = (x - centroids[labels]).norm(dim=1)
        first = np.flatnonzero(~unmoved)
        alone = np.bincount(labels, minlength=k)[labels] < 2
        assert away[first].max() == away[~torch.from_numpy(alone)].max()


def test_copies_leave_clusters_empty():
    labels, count = refilled(torch.ones(6, 2), np.zeros(6, dtype=int), torch.ones(3, 2))
    assert count == 0 and not labels.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is mended is not warned of
        labels, count = grouped(torch.cat([torch.zeros(9, 2), torch.eye(2)]), 6, chance())
    assert len(labels.unique()) == 3


def test_whitening_is_that_of_scikit_learn():
    x = torch.randn(60, 5, generator=chance()) @ torch.randn(5, 5, generator=chance(1))
    theirs = torch.from_numpy(PCA(3, whiten=True).fit_transform(x.double().numpy())).float()
    ours = whitened(x, 3)
    close((ours * F.normalize(theirs, dim=1)).sum(0).abs() / (ours**2).sum(0), torch.ones(3), 1e-3)  # up to the sign of each direction
    assert whitened(x, 99).shape == (60, 5)


# ---- DeepCluster ----


def test_the_head_starts_small_and_anew():
    task = small(k=40)
    anew = task.begin(0, chance())
    first = task.head.weight.detach().clone()
    assert [id(p) for p in anew] == [id(task.head.weight), id(task.head.bias)] and not task.head.bias.any()
    assert first.std() == pytest.approx(0.01, rel=0.2) and abs(first.mean()) < 0.003
    task.begin(1, chance(1))
    assert not torch.equal(task.head.weight, first)


def test_aligned_clusters_keep_their_numbers_and_the_head_stays():
    task = small(k=6, head="align")
    task.begin(0, chance())
    head, before = task.head.weight.detach().clone(), task.labels.clone()
    assert task.begin(1, chance(9)) == [] and torch.equal(task.head.weight, head) and torch.equal(task.last, before)
    plain = small(k=6)
    plain.begin(1, chance(9))
    kept = lambda labels: int((labels == before).sum())
    assert normalized_mutual_info_score(plain.labels, task.labels) == pytest.approx(1)  # the same groups
    assert kept(task.labels) > N // 2 and kept(task.labels) >= kept(plain.labels)
    swap = task.labels.clone()
    swap[task.labels == 0], swap[task.labels == 1] = 1, 0
    assert kept(swap) <= kept(task.labels)


def test_centroids_become_the_head():
    task = small(k=5, head="centroids")
    task.begin(0, chance())
    features = codes(task.trunk, planted()[0])
    z = F.normalize(features - features.mean(0), dim=1)
    for cluster in range(5):
        expected = F.normalize(z[task.labels == cluster].mean(0), dim=0)
        close(task.head.weight[cluster], expected, 1e-4)
    assert means_of(z, torch.zeros(N, dtype=torch.long), 2)[1].abs().sum() == 0


def test_the_loss_of_clusters_written_out():
    task = small(k=5, head="centroids")
    task.begin(0, chance())
    rows, part = task.draw(torch.arange(7), chance(1))
    assert torch.equal(rows, task.sample[:7])
    task.eval()
    z = task.trunk(task.seen.seen(rows, part)).mean((2, 3)) - task.mean
    scores = (z / z.norm(dim=1, keepdim=True)) @ task.head.weight.T / 0.1
    expected = (scores.logsumexp(1) - scores.gather(1, task.labels[rows][:, None])[:, 0]).mean()
    close(task(rows, part)["clusters"], expected, 1e-4)


def test_the_head_learns_faster_and_a_frozen_trunk_stays():
    task = small(k=5)
    of_trunk, of_head = task.groups()
    assert of_head["scale"] == 10 and {id(p) for p in of_head["params"]} == {id(p) for p in task.head.parameters()}
    assert len(of_trunk["params"]) + len(of_head["params"]) == len([*task.parameters()])
    task.trunk.requires_grad_(False)
    assert len(task.groups()) == 1


@pytest.mark.parametrize("name", tasks())
def test_looking_leaves_the_batch_norms_alone(name):
    task = tasks()[name]
    if name != "rotation":
        task.begin(0, chance())
    norms = [module for module in task.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 and all(norm.training and not norm.running_mean.any() and not norm.num_batches_tracked for norm in norms)


# ---- DeepCluster-v2 ----


def test_the_bank_holds_what_was_last_seen():
    task = small(DeepClusterV2, 5)
    task.begin(0, chance())
    close(task.bank, codes(task.trunk, planted()[0]), 1e-4)
    before, rows = task.bank.clone(), torch.tensor([3, 8, 1])
    part = task.seen.draw(3, chance(2))
    task.eval()
    task(rows, part)
    with torch.no_grad():
        close(task.bank[rows], task.trunk(task.seen.seen(rows, part)).mean((2, 3)), 1e-5)
    rest = [row for row in range(N) if row not in rows.tolist()]
    assert torch.equal(task.bank[rest], before[rest]) and not torch.equal(task.bank[rows], before[rows])


def test_prototypes_are_the_centroids_of_the_bank():
    task = small(DeepClusterV2, 5)
    task.begin(0, chance())
    task.bank.copy_(torch.rand(task.bank.shape, generator=chance(4)))
    task.begin(1, chance(5))
    z = F.normalize(task.bank - task.bank.mean(0), dim=1)
    close(task.prototypes, torch.stack([F.normalize(z[task.labels == j].sum(0), dim=0) for j in range(5)]), 1e-4)
    assert ((z @ task.prototypes.T).argmax(1) == task.labels).float().mean() > 0.9  # k-means has come to rest, or nearly
    rows, part = task.draw(torch.arange(6), chance(6))
    assert torch.equal(rows, torch.arange(6))  # every photograph once
    task.eval()
    scores = F.normalize(task.trunk(task.seen.seen(rows, part)).mean((2, 3)) - task.mean, dim=1) @ task.prototypes.T / 0.1
    close(task(rows, part)["clusters"], F.cross_entropy(scores, task.labels[rows]), 1e-4)
    assert not task.prototypes.requires_grad


# ---- DeeperCluster ----


def test_super_classes_are_clusters_and_turns():
    task = small(DeeperCluster, 3, 2)
    task.begin(0, chance())
    rows, part, turn = torch.tensor([0, 5, 9, 40]), task.seen.draw(4, chance(1)), torch.tensor([0, 3, 1, 2])
    task.eval()
    pictures = task.seen.seen(rows, part)
    asked = torch.stack([torch.rot90(pictures[i], int(turn[i]), (1, 2)) for i in range(4)])
    z = F.normalize(task.trunk(asked).mean((2, 3)) - task.mean, dim=1) / 0.1
    above = 4 * task.above[rows] + turn
    upper = F.cross_entropy(z @ task.upper.weight.T + task.upper.bias, above)
    lower = torch.stack([F.cross_entropy(task.lower[above[i]] @ z[i], task.below[turn[i], rows[i]]) for i in range(4)]).mean()
    terms = task(rows, part, turn)
    close(terms["super"], upper, 1e-4)
    close(terms["sub"], lower, 1e-4)
    assert torch.equal(task.labels, 2 * task.above + task.below[0]) and task.upper.out_features == 12


def test_clusters_last_for_some_epochs():
    task = small(DeeperCluster, 3, 2)
    begun = [task.begin(epoch, chance(epoch)) for epoch in range(7)]
    assert [bool(anew) for anew in begun] == [True, False, False, True, False, False, True]
    assert set(task.draw(torch.arange(N), chance())[2].tolist()) == {0, 1, 2, 3}


def test_sub_clusters_divide_their_own_super_class():
    task = small(DeeperCluster, 2, 3)
    task.begin(0, chance())
    for upper in range(2):
        for turn in range(4):
            assert len(task.below[turn, task.above == upper].unique()) == 3


# ---- learning ----


@pytest.mark.parametrize("arguments", [
    (DeepCluster, 8, "reset"), (DeepCluster, 8, "align"), (DeepCluster, 8, "centroids"), (DeepClusterV2, 8), (DeeperCluster, 4, 2),
], ids=["reset", "align", "centroids", "v2", "deeper"])  # fmt: skip
def test_the_loop_finds_planted_kinds_and_logs_them(arguments):
    task = small(*arguments, known=planted()[1])
    history = fit(task, epochs=8, batch=16, rate=3e-3, seed=1)
    assert "NMI to last" not in history[0] and all("NMI to last" in epoch for epoch in history[1:])
    last = history[-1]
    assert last["NMI to classes"] == pytest.approx(100 * normalized_mutual_info_score(planted()[1], task.labels), abs=1e-6)
    assert last["NMI to last"] == pytest.approx(100 * normalized_mutual_info_score(task.last, task.labels), abs=1e-6)
    sizes = np.bincount(task.labels)
    share = sizes[sizes > 0] / N
    assert last["effective"] == pytest.approx(np.exp(-(share * np.log(share)).sum())) and last["largest"] == pytest.approx(100 * sizes.max() / N)
    assert last["NMI to classes"] > 40


def test_clusters_that_stay_are_learnt():
    task = small(DeeperCluster, 3, 2, every=100)
    first, *_, last = fit(task, epochs=12, batch=16, rate=3e-3)
    assert last["super"] < 0.7 * first["super"] and last["sub"] < first["sub"] and last["NMI to last"] == pytest.approx(100)


def test_classes_are_for_display_only():
    first, second = small(k=6), small(k=6, known=planted()[1])
    second.head.load_state_dict(first.head.state_dict())
    fit(first, **OPTIONS)
    fit(second, **OPTIONS)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_cached_maps_and_the_last_layers():
    maps, kinds = torch.rand(40, 6, 4, 4, generator=chance()), torch.arange(40) % 4
    maps[torch.arange(40), kinds] += 1.0
    block = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
    task = DeepClusterV2(block, Views([maps, maps.flip(3)]), 4, pool=gem, known=kinds.numpy())
    assert fit(task, epochs=3, batch=20, rate=1e-3)[-1]["NMI to classes"] > 90


def test_collapse_is_named():
    task = small(k=8)
    task.labels.zero_()
    with pytest.warns(Collapse, match="DeepCluster has collapsed: 100 % .* as many as 1.0 .* lower rate"):
        log = task.end(0)
    assert log["effective"] == 1 and log["largest"] == 100
    task.labels.copy_(torch.arange(N) % 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.end(0)


@pytest.mark.parametrize("mistake, kind, words", [
    (lambda: small(k=6, head="copy"), ValueError, ("'copy'", "reset, align, centroids")),
    (lambda: small(k=99), ValueError, ("99 clusters", "44 examples")),
    (lambda: DeeperCluster(nn.Conv2d(4, 4, 1), Views([torch.rand(9, 4, 3, 3)])), TypeError, ("Views", "Crops")),
    (lambda: small(k=6, known=[0, 1]), ValueError, ("44", "(2,)")),
])  # fmt: skip
def test_refused(mistake, kind, words):
    with pytest.raises(kind) as caught:
        mistake()
    one_sentence(caught, *words)


# ---- stopped and started again, and in two processes ----


@pytest.fixture(scope="module")
def server():
    return forks("selfcluster_task")


@pytest.fixture(scope="module")
def alone():
    """What one process gives that is never stopped."""
    return {name: state(task, fit(task, **OPTIONS)) for name, task in tasks().items()}


@pytest.mark.parametrize("name", ["reset", "align", "centroids", "v2", "deeper"])
def test_killed_at_any_moment(server, alone, tmp_path, name):
    steps = OPTIONS["epochs"] * 4
    assert killed_until_done(server, long_run, (tmp_path, name), tmp_path, 4, steps // 2) >= 1
    same(torch.load(tmp_path / "result.pt"), alone[name])


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes gave, the last task after both were killed and started again."""
    return in_two(selfcluster_task.__file__, tmp_path_factory.mktemp("processes"), timeout=240)


@pytest.mark.parametrize("name", [*tasks(), "restarted"])
def test_two_processes_give_what_one_gives(processes, alone, name):
    results = [torch.load(processes / (f"restarted{rank}.pt" if name == "restarted" else f"results{rank}.pt")) for rank in (0, 1)]
    first, second = results if name == "restarted" else [result[name] for result in results]
    expected = alone["v2" if name == "restarted" else name]
    for weight, value in expected["weights"].items():
        assert torch.equal(first["weights"][weight], second["weights"][weight]), weight
        close(first["weights"][weight].float(), value.float(), 2e-3)
    for epoch, other in zip(first["history"], expected["history"], strict=True):
        assert epoch == pytest.approx(other, rel=2e-3, abs=2e-3)
