"""The part network beside global poolings, on all sets, with seeds: `python book/experiments/part_network.py` (some two hours on two cores).

Learning and whitening see the training photographs, and labels only where the method says so; everything is measured on the others.
Settings are the same on every set: `PartNet`'s defaults without labels, those of `head` with them. CUB, packages and butterflies are
measured where $PARTLIB_DATA holds them.
"""

import resource
import time
from dataclasses import replace

import numpy as np
from runs import CACHE, RESULTS, command_line
from torch.nn.functional import normalize

import partlib as pl
from partlib import data, encoding, evaluation, retrieval
from partlib.partnet.cells import each
from partlib.whitening import NeighbourWhitening

RECORD = RESULTS / "part_network.json"
# Photographs, those to learn from, those to measure on.
SETS = {
    "groceries": lambda: _split(data.groceries(), "val", "test"),
    "CUB, 20 kinds": lambda: _split(data.cub200(), "test"),
    "packages": lambda: _split(data.packages(), "val", "database"),
    "toy birds, 200 kinds": lambda: _split(data.toy_birds(800, classes=200, size=320), "test"),
    "CUB, 3 of a kind": lambda: _thinned(*_split(data.cub200(), "test")),
    "butterflies": lambda: _split(data.butterflies(), "test"),
    "toy birds": lambda: _split(data.toy_birds(300, size=320), "test"),
}
BUNDLED = ("groceries", "toy birds", "toy birds, 200 kinds")
POOLINGS = {"GAP": encoding.gap, "MAC": encoding.mac, "GeM": encoding.gem, "R-MAC": encoding.rmac}
BLOCK = "_blocks.14"  # what comes after it is trained by "parts, last block"
NETS = {
    "parts": pl.PartNet(),
    "parts, last block": pl.PartNet(),
    "parts, as they start": pl.PartNet(epochs=1, rate=1e-12),
    "parts, clusters": pl.PartNet(how="clusters"),
}
head = lambda parts: pl.PartNet(parts, pool="max", epochs=15, rate=3e-3, losses=(("orthogonality", 0.1),))  # with labels
HEADS = {"head, 64 parts": head(64), "head, 256 parts": head(256)}
METHODS = [*POOLINGS, "landmarks", *NETS, *HEADS]


def _split(photos, *measured):
    return photos, photos.train, photos.where(*measured)


def _thinned(photos, train, test):
    """Three photographs of a kind to learn from."""
    return photos, np.concatenate([train[photos.labels[train] == c][:3] for c in np.unique(photos.labels)]), test


def run(method, which, seed):
    """One method on one set: a row of the record."""
    photos, train, test = SETS[which]()
    row, dims = {"method": method, "set": which, "seed": seed}, min(128, len(train) // 2)
    extract = lambda seen=photos, **of: pl.extract(pl.Backbone(size=320, **of), seen, cache=CACHE)
    measured = lambda codes: measures(codes, photos, train, test)
    whitened = lambda codes: measured(NeighbourWhitening(dims).fit(codes[train]).transform(codes))
    maps = extract(layer=BLOCK) if method == "parts, last block" else extract()
    start = time.perf_counter()
    if method in POOLINGS:
        codes = normalize(pl.encode(maps, POOLINGS[method]), dim=1)
        return row | whitened(codes) | _named("centred", measured(codes - codes[train].mean(0)))
    if method == "landmarks":
        found = pl.partnet.Landmarks.of(maps[train], 8, seed=seed)
        row["seconds"] = time.perf_counter() - start
        codes = each(maps, found.describe)
        row |= whitened(codes) | _named("centred", measured(codes - codes[train].mean(0)))
        return row | against_keypoints(found.maps(maps[test], finer=2), photos[test])
    if method in HEADS:
        views = [extract(data.mirrored(photos))[train]]
        start = time.perf_counter()
        net = replace(HEADS[method], seed=seed).fit(maps[train], photos.labels[train], views)
        row["seconds"] = time.perf_counter() - start
        return row | {"accuracy": 100 * float((net.predict(maps[test]) == photos.labels[test]).mean())} | diagnosis(net)
    block, views = None, []
    if method == "parts, last block":
        block = pl.Backbone(size=320).after(BLOCK)
        views = [extract(data.mirrored(photos), layer=BLOCK)[train]]
    start = time.perf_counter()
    net = replace(NETS[method], seed=seed, dims=dims).fit(maps[train], views=views, block=block)
    row |= {"seconds": time.perf_counter() - start, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024} | diagnosis(net)
    row |= {"carried over": net.carried_over_, "adapted": net.adapted_, "code": " + ".join(net.code_)} | measured(net.encode(maps))
    ends = net.through(maps)
    if block is not None:  # what the block does for codes without parts
        for name, pooling in POOLINGS.items():
            row |= _named(name, whitened(normalize(each(ends, pooling), dim=1)))
    row |= _named("landmarks", whitened(each(ends, net.landmarks_.describe)))
    return row | _named("bag", whitened(each(ends, net.head_.bag)))


def _named(name, values):
    return {f"{name} {measure}": value for measure, value in values.items()}


def measures(codes, photos, train, test):
    """mAP and recall@1, each photograph of the test asking the others; 5-NN and linear probe from test to train."""
    found = retrieval.evaluate(codes[test], photos.labels[test])
    votes = evaluation.knn_accuracy(codes[train], photos.labels[train], codes[test], photos.labels[test], k=min(5, len(train)))
    values = {"mAP": found["mAP"], "R@1": found["R@1"], "5-NN": votes}
    if np.bincount(photos.labels[train]).min() > 3:  # its folds need some of each kind
        values["probe"] = evaluation.linear_probe(codes[train], photos.labels[train], codes[test], photos.labels[test])
    return values


def diagnosis(net):
    """The last epoch's look at the parts."""
    return {name: net.history_[-1][name] for name in ("dead", "duplicates", "copies", "effective", "foreground")}


def against_keypoints(scores, photos):
    """NMI and ARI of the parts at the keypoints, and what a perfect learner of as many would reach."""
    if photos.keypoints is None:
        return {}
    sizes = [(photos.flock.size,) * 2] * len(photos) if hasattr(photos, "flock") else [photos[i].size for i in range(len(photos))]
    found, true = evaluation.parts_at(scores, photos.keypoints, sizes)
    reached, best = evaluation.agreement(found, true), evaluation.agreement(evaluation.ceiling(true, scores.shape[1]), true)
    return {"NMI": reached["NMI"], "ARI": reached["ARI"], "NMI_ceiling": best["NMI"], "ARI_ceiling": best["ARI"]}


def wanted(method, set, seed):
    """Poolings have no chance in them, and some methods are run on some sets only."""
    two = ("groceries", "CUB, 20 kinds")
    trained = {"parts, last block": two, "parts, as they start": two, "parts, clusters": two} | {name: ("CUB, 20 kinds",) for name in HEADS}
    return (seed == 0 or method not in POOLINGS) and set in trained.get(method, SETS)


if __name__ == "__main__":
    command_line(__file__, RECORD, run, BUNDLED, wanted, method=METHODS, set=list(SETS))
