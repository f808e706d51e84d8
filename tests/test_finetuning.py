"""Fine-tuning: it learns what can be learnt, leaves what it was given alone, and starts from what the block says."""

import numpy as np
import pytest
import torch
from torch import nn

import partlib as pl
from partlib.evaluation import fine_tune


def some(n=90, seed=0):
    """Maps in which one of three channels is larger, in one cell only, and which it is."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, n)
    maps = draw.random((n, 4, 3, 3))
    maps[np.arange(n), labels, 1, 2] += 2.0
    return torch.from_numpy(maps).float(), labels


def block(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU())


def test_it_learns_and_what_it_was_given_stays_as_it_was():
    maps, labels = some()
    given, before = block(), block().state_dict()
    network = fine_tune(given, 6, [maps], labels, epochs=150, rate=1e-2)
    unseen, truth = some(seed=1)
    assert (network(unseen).argmax(1).numpy() == truth).mean() > 0.95
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert not torch.equal(network[0][0].weight, before["0.weight"]) and not any(p.requires_grad for p in network.parameters())
    means = network[0](unseen).numpy().reshape(90, 6, 9).sum(2) / 9
    assert np.allclose(network[:-1](unseen), means, atol=1e-5)
    assert np.allclose(network(unseen), means @ network[-1].weight.numpy().T + network[-1].bias.numpy(), atol=1e-4)


def test_the_same_seed_gives_the_same_network_and_another_order_another_one():
    maps, labels = some()
    flipped = maps.flip(3)
    first, again, other = (fine_tune(block(), 6, [maps, flipped], labels, epochs=2, batch=32, seed=seed)(maps) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_both_views_are_learnt_from():
    """The second view alone tells the classes apart: whoever looks at the first learns nothing."""
    maps, labels = some()
    blank = torch.ones_like(maps)
    blind, seeing = (fine_tune(block(), 6, views, labels, epochs=150, rate=1e-2) for views in ([blank], [blank, maps]))
    assert (seeing(maps).argmax(1).numpy() == labels).mean() > 0.85 > 0.7 > (blind(maps).argmax(1).numpy() == labels).mean()


def test_labels_must_fit():
    maps, labels = some()
    with pytest.raises(ValueError, match="labels"):
        fine_tune(block(), 6, [maps], labels[:-1])


def test_the_end_of_a_real_backbone_starts_where_the_backbone_is():
    photos = pl.data.toy_birds(12, classes=3, size=64)
    pictures = torch.stack([pl.Backbone(size=64).prepare(photo) for photo in photos])
    whole, earlier = pl.Backbone(size=64), pl.Backbone(size=64, layer="_blocks.14")
    with torch.no_grad():
        maps, means = earlier(pictures), whole(pictures).mean((2, 3))
    network = fine_tune(whole.after("_blocks.14"), whole.channels, [maps], photos.labels, epochs=1, rate=1e-12)
    assert torch.allclose(network[:-1](maps), means, atol=1e-3)
