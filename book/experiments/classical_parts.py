"""All classical part learners on all sets, with seeds: `python book/experiments/classical_parts.py` (an hour and a half on two cores).

Each run is a process of its own, so that its time and its peak memory are its own; what is done is written at once to
book/results/classical_parts.json, and a run that was stopped goes on where it was. Learning sees the training photographs and
no labels; what was learnt is measured on others. CUB, packages and butterflies are measured where $PARTLIB_DATA holds them.
"""

import resource
import time

import numpy as np
import torch
from runs import CACHE, RESULTS, command_line

import partlib as pl
from partlib import evaluation, mining, retrieval
from partlib.regions import Regions, grid

RECORD = RESULTS / "classical_parts.json"
# Photographs, the size they are seen in, the parts to learn (groups of photographs, parts of each), the splits to measure on.
SETS = {
    "groceries": (pl.data.groceries, 256, (10, 4), ["test"]),
    "toy birds": (lambda: pl.data.toy_birds(300, size=320), 320, (2, 4), ["test"]),
    "CUB, 20 kinds": (pl.data.cub200, 320, (2, 4), ["test"]),
    "packages": (pl.data.packages, 256, (10, 4), ["val", "database"]),  # without the clean pictures, which are of no shop
    "butterflies": (pl.data.butterflies, 256, (10, 4), ["test"]),
}
BUNDLED = ("groceries", "toy birds")


def learners(groups, each, seed):
    """Name → learner, and how many groups of similar photographs it is given, if any."""
    total = groups * each
    return {
        "k-means": (mining.KMeansParts(total, seed=seed), None),
        "exemplar LDA": (mining.ExemplarParts(total, seed=seed), None),
        "patches": (mining.PatchParts(each, seed=seed), groups),
        # Sixteen directions: of 16, 32, 64 and 128 those in which two halves of the toy birds agree most (`mining.stability`).
        "assignment, one group": (mining.AssignedParts(total, dims=16, photographs=400, seed=seed), None),
        "assignment, by group": (mining.UnsupervisedParts(groups, each, seed=seed), None),
        # Two groups of one kind of object differ by their backdrops: there, as published, patterns are of all photographs.
        "patterns": (mining.PatternParts(each if groups > 2 else total, support=0.02, seed=seed), groups if groups > 2 else None),
        "joint, alternating": (mining.JointParts(total, seed=seed), 10),
        "joint, gradient": (mining.JointParts(total, how="gradient", seed=seed), 10),
    }


def run(name, which, seed):
    """One learner on one set: a row of the record."""
    load, size, (groups, each), measured = SETS[which]
    photos = load()
    maps = pl.extract(pl.Backbone(size=size), photos, cache=CACHE)
    regions = Regions(maps, grid(*maps.shape[2:]))  # single cells: where true parts are small, windows blur them
    learner, grouped = learners(groups, each, seed)[name]
    start = time.perf_counter()
    train = regions[photos.train]
    row = {"learner": name, "set": which, "parts": groups * each, "seed": seed}
    try:
        learnt = learner.fit(train, mining.visual_groups(train, grouped, seed)) if grouped else learner.fit(train)
    except mining.NothingFound as error:
        return row | {"learnt": 0, "nothing": str(error)}
    row |= {"learnt": len(learnt), "seconds": time.perf_counter() - start}
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = torch.from_numpy(learnt.best(regions)[0])
    codes = scores - scores[photos.train].mean(0)
    test = photos.where(*measured)
    answers = retrieval.evaluate(codes[test], photos.labels[test])
    row |= {"mAP": answers["mAP"], "R@1": answers["R@1"]}
    row["5-NN"] = evaluation.knn_accuracy(codes[photos.train], photos.labels[photos.train], codes[test], photos.labels[test])
    present = scores[test] > 0
    row |= {"presence": 100 * float(present.float().mean()), "dead": int((present.sum(0) < 2).sum()), "duplicates": learnt.duplicates(regions[test])}
    some = photos[test]
    if some.keypoints is not None:
        row |= against_truth(learnt.maps(maps[test]), some, groups * each)
    return row


def against_truth(scores, photos, total):
    """NMI and ARI at the keypoints, their ceilings, and the best-match IoU where there are masks of parts."""
    masked = hasattr(photos, "part_masks")
    sizes = [photos[i].size for i in range(len(photos))] if not masked else [(photos.flock.size,) * 2] * len(photos)
    found, true = evaluation.parts_at(scores, photos.keypoints, sizes)
    agreement, best = evaluation.agreement(found, true), evaluation.agreement(evaluation.ceiling(true, total), true)
    row = {"NMI": agreement["NMI"], "ARI": agreement["ARI"], "NMI_ceiling": best["NMI"], "ARI_ceiling": best["ARI"]}
    if masked:
        chosen = range(0, len(photos), 3)
        masks = np.stack([photos.part_masks(i) for i in chosen])
        row["IoU"] = float(evaluation.part_overlap(scores[::3], masks).max(0).mean())
    return row


if __name__ == "__main__":
    command_line(__file__, RECORD, run, BUNDLED, learner=list(learners(1, 1, 0)), set=list(SETS))
