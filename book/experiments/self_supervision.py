"""Features from images alone, with seeds: `python book/experiments/self_supervision.py` (some twenty-five minutes on one core).

Three kinds of runs. From nothing: a small network on small pictures of the groceries, by each pretext task and each loop over own clusters,
measured layer by layer. From the packaged weights: the same pretext tasks, where the last blocks of EfficientNet-Lite0 learn. And its last
block alone, on cached maps, by its own clusters. Learning sees the training photographs and no labels; settings were not chosen by them.
CUB is measured where $PARTLIB_DATA holds it.
"""

import time

from runs import CACHE, RESULTS, command_line
from torch import nn

import partlib as pl
from partlib import data, encoding, evaluation, pretext, retrieval, training
from partlib.pretext import Colorization, Crops, Jigsaw, Rotation, Views
from partlib.selfcluster import DeepCluster, DeepClusterV2, DeeperCluster

RECORD = RESULTS / "self_supervision.json"
SIZE, LAYERS = 64, 5
SETS = {"groceries": data.groceries, "CUB, 20 kinds": data.cub200}
# By name: trunk, what is seen → task; epochs; rate.
QUESTIONS = {"rotation": (Rotation, 5, 1e-3), "jigsaw": (Jigsaw, 20, 1e-3), "colour": (Colorization, 16, 3e-3)}
LOOPS = {
    "DeepCluster, reset": (lambda trunk, seen, **of: DeepCluster(trunk, seen, 50, "reset", **of), 8, 1e-3),
    "DeepCluster, align": (lambda trunk, seen, **of: DeepCluster(trunk, seen, 50, "align", **of), 8, 1e-3),
    "DeepCluster, centroids": (lambda trunk, seen, **of: DeepCluster(trunk, seen, 50, "centroids", **of), 8, 1e-3),
    "DeepCluster-v2": (lambda trunk, seen, **of: DeepClusterV2(trunk, seen, 50, **of), 8, 1e-3),
    "DeeperCluster": (lambda trunk, seen, **of: DeeperCluster(trunk, seen, 4, 12, **of), 8, 1e-3),
}
FRONT, END = "_blocks.7", "_blocks.9"  # on pictures, the packaged network is frozen up to the first and ends with the second
BEFORE = "_blocks.14"  # its last block is what comes after this one
PACKAGED = {f"packaged, {name}": (task, epochs // 2, rate / 2) for name, (task, epochs, rate) in QUESTIONS.items()}
LAST_BLOCK = {"last block, align": "DeepCluster, align", "last block, v2": "DeepCluster-v2"}
METHODS = ["random", *QUESTIONS, *LOOPS, "packaged", *PACKAGED, "last block", *LAST_BLOCK]


def run(method, which, seed):
    """One method on one set: a row of the record."""
    photos = SETS[which]()
    measured = photos.where("val", "test")
    row = {"method": method, "set": which, "seed": seed}
    if method.startswith("last block"):
        return row | last_block(method, photos, photos.train, measured, seed)
    pictures = pretext.in_memory(photos, SIZE)
    if method.startswith("packaged"):
        trunk = nn.Sequential(pl.Backbone(size=SIZE, layer=FRONT), pl.Backbone(size=SIZE, layer=END).after(FRONT))
        layers = {"end": trunk}
    else:
        trunk = pretext.convnet(seed=seed)
        layers = {f"layer {layer}": trunk[: 1 + layer] for layer in range(1, 1 + LAYERS)}
    start, known = time.perf_counter(), photos.labels[photos.train]
    if method in QUESTIONS | PACKAGED:
        make, epochs, rate = (QUESTIONS | PACKAGED)[method]
        task = make(trunk, Crops(pictures[photos.train]), seed=seed)
        training.fit(task, epochs, batch=64, rate=rate, seed=seed)
        row |= {"epochs": epochs, "chance": task.chance, "accuracy": task.accuracy(pictures[measured])}
        if method.endswith("colour"):
            row["loss unseen"], row["loss of the marginal"] = task.losses(pictures[measured])
    elif method in LOOPS:
        make, epochs, rate = LOOPS[method]
        row |= loop(training.fit(make(trunk, Crops(pictures[photos.train]), known=known), epochs, batch=64, rate=rate, seed=seed))
    row["seconds"] = time.perf_counter() - start
    for name, network in layers.items():
        codes = pretext.codes(network, pictures)
        codes = codes - codes[photos.train].mean(0)
        row |= {f"{probe}, {name}": value for probe, value in probes(codes, photos, photos.train, measured, linear=method not in LOOPS).items()}
    return row


def loop(history):
    """What is kept of a loop's log: its end, and where it began."""
    names = ("effective", "largest", "empty", "NMI to last", "NMI to classes")
    return {"epochs": len(history), "first NMI to classes": history[0]["NMI to classes"]} | {name: history[-1][name] for name in names}


def last_block(method, photos, train, measured, seed):
    """The last block, as it is or learning from cached maps of what comes before it; codes are GeM."""
    maps = lambda seen: pl.extract(pl.Backbone(size=320, layer=BEFORE), seen, cache=CACHE)
    plain, block, row = maps(photos), pl.Backbone(size=320).after(BEFORE), {}
    if method in LAST_BLOCK:
        views = Views([plain[train].tensor(), maps(data.mirrored(photos))[train].tensor()])
        start = time.perf_counter()
        task = LOOPS[LAST_BLOCK[method]][0](block, views, pool=encoding.gem, known=photos.labels[train])
        row = loop(training.fit(task, 3, batch=64, rate=1e-4, seed=seed)) | {"seconds": time.perf_counter() - start}
    codes = nn.functional.normalize(pretext.codes(block, plain.tensor(), encoding.gem), dim=1)
    codes = codes - codes[train].mean(0)
    found = retrieval.evaluate(codes[measured], photos.labels[measured])
    return row | probes(codes, photos, train, measured, linear=False) | {"mAP": found["mAP"], "R@1": found["R@1"]}


def probes(codes, photos, train, measured, linear=True):
    """Accuracy of five nearest neighbours and of a linear layer, learnt from the training photographs' codes."""
    told = codes[train], photos.labels[train], codes[measured], photos.labels[measured]
    return {"5-NN": evaluation.knn_accuracy(*told)} | ({"linear": evaluation.linear_probe(*told)} if linear else {})


def wanted(method, set, seed):
    """From scratch on the groceries alone; the packaged weights have no chance in them."""
    return (set == "groceries" or method.startswith("last block")) and (seed == 0 or method not in ("packaged", "last block"))


if __name__ == "__main__":
    command_line(__file__, RECORD, run, ("groceries",), wanted, method=METHODS, set=list(SETS))
