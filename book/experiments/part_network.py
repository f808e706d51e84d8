"""The part network beside global poolings, on all sets, with seeds: `python book/experiments/part_network.py` (some 40 minutes).

Learning and whitening see the training photographs, and labels only where the method says so; everything is measured on the others.
Settings are the same on every set: `PartNet`'s defaults without labels, those of `head` with them. CUB, packages and butterflies are measured where $PARTLIB_DATA holds them.
"""

import argparse
import json
import os
import resource
import time
from dataclasses import replace

import numpy as np
import torch
from runs import CACHE, RESULTS, complete

import partlib as pl
from partlib import encoding, evaluation, retrieval
from partlib.whitening import NeighbourWhitening

RECORD = RESULTS / "part_network.json"
# Photographs, those to learn from, those to measure on.
SETS = {
    "groceries": lambda: _split(pl.data.groceries(), "val", "test"),
    "toy birds": lambda: _split(pl.data.toy_birds(300, size=320), "test"),
    "toy birds, 200 kinds": lambda: _split(pl.data.toy_birds(800, classes=200, size=320), "test"),
    "CUB, 20 kinds": lambda: _split(pl.data.cub200(), "test"),
    "CUB, 3 of a kind": lambda: _thinned(*_split(pl.data.cub200(), "test")),
    "packages": lambda: _split(pl.data.packages(), "val", "database"),
    "butterflies": lambda: _split(pl.data.butterflies(), "test"),
}
BUNDLED = ("groceries", "toy birds", "toy birds, 200 kinds")
POOLINGS = {"GAP": encoding.gap, "MAC": encoding.mac, "GeM": encoding.gem, "R-MAC": encoding.rmac}
NETS = {
    "parts, neighbours": pl.PartNet(),
    "parts, clusters": pl.PartNet(how="clusters"),
    "parts, as they start": pl.PartNet(epochs=1, rate=1e-12),
}
head = lambda parts: pl.PartNet(parts, pool="max", epochs=15, rate=3e-3, losses=(("orthogonality", 0.1),))  # with labels
HEADS = {"head, 64 parts": head(64), "head, 256 parts": head(256)}
METHODS = [*POOLINGS, *NETS, "8 parts", *HEADS]


def _split(photos, *measured):
    return photos, photos.train, photos.where(*measured)


def _thinned(photos, train, test):
    """Three photographs of a kind to learn from."""
    return photos, np.concatenate([train[photos.labels[train] == c][:3] for c in np.unique(photos.labels)]), test


def run(method, which, seed):
    """One method on one set: a row of the record."""
    photos, train, test = SETS[which]()
    maps = pl.extract(pl.Backbone(size=320), photos, cache=CACHE)
    row = {"method": method, "set": which, "seed": seed}
    start = time.perf_counter()
    if method in POOLINGS:
        codes = torch.nn.functional.normalize(pl.encode(maps, POOLINGS[method]), dim=1)
        whitening = NeighbourWhitening(min(128, len(train) // 2)).fit(codes[train])
        row |= {"seconds": time.perf_counter() - start} | measures(whitening.transform(codes), photos, train, test)
        return row | {f"centred {name}": value for name, value in measures(codes - codes[train].mean(0), photos, train, test).items()}
    if method in HEADS:
        net = replace(HEADS[method], seed=seed).fit(maps[train], photos.labels[train])
        row["seconds"] = time.perf_counter() - start
        return row | {"accuracy": 100 * float((net.predict(maps[test]) == photos.labels[test]).mean())} | diagnosis(net)
    net = replace(NETS.get(method, pl.PartNet(8)), seed=seed, dims=min(128, len(train) // 2)).fit(maps[train])
    row |= {"seconds": time.perf_counter() - start, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024} | diagnosis(net)
    if method == "8 parts":
        return row | against_keypoints(net, maps[test], photos[test])
    bags = net.bag(maps)
    alone = NeighbourWhitening(net.dims).fit(bags[train]).transform(bags)
    row |= measures(net.encode(maps), photos, train, test)
    row |= {f"alone {name}": value for name, value in measures(alone, photos, train, test).items()}
    bags = torch.nn.functional.normalize(bags, dim=1) - net.mean_
    return row | {f"centred {name}": value for name, value in measures(bags, photos, train, test).items()}


def measures(codes, photos, train, test):
    """mAP and recall@1, each photograph of the test asking the others; 5-NN from test to train."""
    found = retrieval.evaluate(codes[test], photos.labels[test])
    votes = evaluation.knn_accuracy(codes[train], photos.labels[train], codes[test], photos.labels[test], k=min(5, len(train)))
    return {"mAP": found["mAP"], "R@1": found["R@1"], "5-NN": votes}


def diagnosis(net):
    """The last epoch's look at the parts."""
    return {name: net.history_[-1][name] for name in ("dead", "duplicates", "effective", "foreground")}


def against_keypoints(net, maps, photos):
    """NMI and ARI of the parts at the keypoints, and what a perfect learner of as many would reach."""
    if photos.keypoints is None:
        return {}
    sizes = [(photos.flock.size,) * 2] * len(photos) if hasattr(photos, "flock") else [photos[i].size for i in range(len(photos))]
    found, true = evaluation.parts_at(net.as_parts().maps(maps), photos.keypoints, sizes)
    reached, best = evaluation.agreement(found, true), evaluation.agreement(evaluation.ceiling(true, net.parts), true)
    return {"NMI": reached["NMI"], "ARI": reached["ARI"], "NMI_ceiling": best["NMI"], "ARI_ceiling": best["ARI"]}


def main():
    """Run what is missing from the record."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each run (default 3)")
    parser.add_argument("--method", nargs="*", default=METHODS, help="these methods only")
    parser.add_argument("--set", nargs="*", default=list(SETS), help="these sets only")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "SET", "SEED"), help="a single run, printed as a line of JSON")
    options = parser.parse_args()
    if options.one:
        method, which, seed = options.one
        print(json.dumps(run(method, which, int(seed))))
        return
    known = [which for which in options.set if which in BUNDLED or "PARTLIB_DATA" in os.environ]
    pointed = ("toy birds", "CUB, 20 kinds")  # have keypoints, and enough of each kind for a head
    wanted = [
        (method, which, seed)
        for seed in range(options.seeds)
        for method in options.method
        for which in known
        if (seed == 0 or method not in POOLINGS) and (method not in (*HEADS, "8 parts") or which in pointed)
    ]  # fmt: skip
    complete(__file__, RECORD, wanted, ("method", "set", "seed"))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    main()
