"""How fast this library is here, beside what one would write first: `python -m partlib.bench` (about a minute).

Of extraction, the plain loop: Pillow, torch's default memory layout, float32, batches of 16 decoded one after the other. Of
matching (`python -m partlib.bench matching`), loops over single photographs, with POT's Sinkhorn and with the library's own. Of
parts (`python -m partlib.bench parts`), how time and memory grow with the photographs. Of the part network (`python -m partlib.bench
network`), what learning and a code cost beside the backbone. Of search (`python -m partlib.bench search`, some minutes
and 5 GB), a million codes in every kind of index, against exact search. Everything runs in this process; where
two are compared it is by turns, and the best of the rounds counts, so that other work on the machine weighs least.
"""

import argparse
import os
import re
import resource
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from .backbones import Backbone
from .data import groceries
from .encoding import gap
from .features import extract, fast_precision
from .matching import sinkhorn
from .mining import UnsupervisedParts
from .partnet import PartNet
from .regions import Regions
from .retrieval import Index


def plain_loop(network, backbone, photos):
    """Maps of all photographs, without any care for speed."""
    maps = []
    with torch.inference_mode():
        for start in range(0, len(photos), 16):
            pictures = [backbone.prepare(photos[i]) for i in range(start, min(start + 16, len(photos)))]
            images = (torch.stack(pictures) / 255 - backbone.mean) / backbone.std
            maps.append(network(images))
    return torch.cat(maps)


def main():
    """Print how fast extraction or matching is beside plain loops, how learning parts grows with the photographs, or what indexes find and cost."""
    parser = argparse.ArgumentParser(prog="python -m partlib.bench", description=main.__doc__)
    parser.add_argument("what", nargs="?", choices=("extraction", "matching", "parts", "network", "search"), default="extraction", help="(default extraction)")
    parser.add_argument("--plain", type=int, default=160, help="photographs for the plain loop, spread over the set (default 160)")
    parser.add_argument("--codes", type=int, default=1_000_000, help="codes to search (default a million)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default 3)")
    options = parser.parse_args()
    if options.what == "matching":
        matching(options.rounds)
    elif options.what == "parts":
        parts()
    elif options.what == "network":
        network(options.rounds)
    elif options.what == "search":
        search(options.codes)
    else:
        extraction(options.plain, options.rounds)


def extraction(plain, rounds):
    """Photographs per second of the plain loop and of `extract`, the cosines between their codes, and the cache."""
    os.environ["TQDM_DISABLE"] = "1"
    photos = groceries()
    some = torch.linspace(0, len(photos) - 1, plain).long().numpy()
    backbone = Backbone()
    network = Backbone(trainable=True).eval().network.to(memory_format=torch.contiguous_format)  # as published, nothing folded
    print(f"{len(photos)} photographs of {photos.name}, {backbone}, {torch.get_num_threads()} threads, {_precision(backbone)}")

    plain_loop(network, backbone, photos[:16])  # the first call of anything is slow
    slow, fast, read = [], [], []
    for _ in range(rounds):
        seconds, expected = _timed(plain_loop, network, backbone, photos[some])
        slow.append(len(some) / seconds)
        with tempfile.TemporaryDirectory() as cache:
            seconds, maps = _timed(extract, backbone, photos, cache)
            fast.append(len(photos) / seconds)
            read += [len(photos) / _timed(_read, backbone, photos, cache)[0] for _ in range(3)]
            cosines = (normalize(gap(expected), dim=1) * normalize(gap(maps[some].tensor()), dim=1)).sum(1)

    slow, fast, read = max(slow), max(fast), max(read)
    print(f"plain loop        {slow:8.0f} photographs/s")
    print(f"extract           {fast:8.0f} photographs/s   {fast / slow:.1f} times the plain loop")
    print(f"reading the cache {read:8.0f} photographs/s   {read / fast:.0f} times extraction")
    print(f"cosine of the two codes over {len(some)} photographs: mean {cosines.mean():.5f}, least {cosines.min():.5f}")


def matching(rounds, n=500, parts=64, r=100, iterations=30):
    """Seconds of Sinkhorn with a slack row on `n` photographs: all at once, one by one, and one by one by POT."""
    try:
        from ot.bregman import sinkhorn_log
    except ImportError:
        raise SystemExit("the comparison needs POT, which comes with the extra: pip install 'partlib[test]'") from None
    scores = torch.randn(n, parts, r, generator=torch.Generator().manual_seed(0))
    mass, ones = np.append(np.ones(parts), r - parts).astype(np.float32), np.ones(r, np.float32)
    costs = -torch.cat([scores, torch.zeros(n, 1, r)], dim=1).numpy()

    def by_pot():
        plans = [sinkhorn_log(mass, ones, one, 1.0, numItermax=iterations, stopThr=0, warn=False)[:parts] for one in costs]
        return torch.from_numpy(np.stack(plans))

    ways = {
        "batched": lambda: sinkhorn(scores, iterations=iterations),
        "one by one": lambda: torch.cat([sinkhorn(one[None], iterations=iterations) for one in scores]),
        "one by one, POT": by_pot,
    }
    print(f"{n} photographs, {parts} parts, {r} regions, {iterations} iterations, float32, {torch.get_num_threads()} threads")
    sinkhorn(scores, iterations=1)  # the first call of anything is slow
    seconds, plans = {way: [] for way in ways}, {}
    for _ in range(rounds):
        for way, run in ways.items():
            taken, plans[way] = _timed(run)
            seconds[way].append(taken)
    for way in ways:
        ratio, apart = min(seconds[way]) / min(seconds["batched"]), (plans[way] - plans["batched"]).abs().max()
        print(f"{way:<16}{min(seconds[way]):8.2f} s  {ratio:5.1f} times the batched, largest difference {apart:.0e}")


def parts(groups=20, each=10):
    """Seconds and peak memory of unsupervised parts from cached maps, on the photographs 1, 4 and 16 times over."""
    os.environ["TQDM_DISABLE"] = "1"
    photos = groceries()
    maps = extract(Backbone(), photos)
    print(f"{groups} groups of {each} parts, {photos.name}, {torch.get_num_threads()} threads")
    UnsupervisedParts(2, each).fit(Regions(maps[:64]))  # the first call of anything is slow
    for times in (1, 4, 16):
        regions = Regions(maps[np.tile(np.arange(len(photos)), times)])
        processor = time.process_time()
        with _own_memory() as held:
            seconds, _ = _timed(UnsupervisedParts(groups, each).fit, regions)
        processor = time.process_time() - processor
        took = f"{seconds:8.1f} s {1000 * seconds / len(regions):6.1f} ms each, {processor:8.1f} s of processor"
        print(f"{len(regions):6d} photographs{took}, peak memory {max(held):6.0f} MB", flush=True)


def network(rounds, some=32):
    """Seconds to learn a part network from cached maps, and milliseconds a photograph of its bag and its code, beside the backbone's."""
    photos, backbone = groceries(), Backbone(size=320)
    maps = extract(backbone, photos, cache="data/cache")
    processor = time.process_time()
    seconds, net = _timed(PartNet().fit, maps)
    processor = time.process_time() - processor
    print(f"{len(maps)} photographs learnt from in {seconds:.1f} s, {processor:.1f} s of processor, {torch.get_num_threads()} threads")
    pictures, seen = torch.stack([backbone.prepare(photos[i]) for i in range(some)]), maps[:some].tensor()
    works = {"backbone": lambda: backbone(pictures), "bag of parts": lambda: net.bag(seen), f"code ({' + '.join(net.code_)})": lambda: net.encode(seen)}
    with torch.inference_mode():
        best = {name: min(_timed(work)[0] for _ in range(rounds + 1)) for name, work in works.items()}
    for name, took in best.items():
        print(f"{name:<32}{1000 * took / some:8.2f} ms a photograph {100 * took / best['backbone']:7.1f} % of the backbone")


KINDS = {
    "exact": {},
    "ivf, 48 of 1000 cells": {"kind": "ivf", "cells": 1000, "probes": 48},
    "ivfpq, 64 bytes": {"kind": "ivfpq", "cells": 1000, "probes": 48, "pieces": 64, "again": 0},
    "ivfpq, 64 + 256 bytes": {"kind": "ivfpq", "cells": 1000, "probes": 48, "pieces": 64, "again": 24},
}


def search(n, d=256, asking=200, k=10):
    """Memory of each index of `n` codes, seconds to build it, milliseconds a query one at a time, and the share of the true ten nearest that it finds."""
    codes, queries = clustered_codes(n, d), clustered_codes(asking, d, seed=1)
    print(f"{n} codes of {d} numbers, {asking} queries, {torch.get_num_threads()} threads", flush=True)
    for name, options in KINDS.items():
        seconds, index = _timed(lambda: Index(codes, **options))
        taken, found = _timed(lambda: np.stack([index.search(query, k)[1] for query in queries]))
        truth = found if name == "exact" else truth
        recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(truth, found)])
        print(f"{name:<24}{index.bytes / 1e6:7.0f} MB {seconds:7.1f} s to build {1000 * taken / asking:8.2f} ms a query   recall@{k} {recall:.3f}", flush=True)
        del index


def clustered_codes(n, d, kinds=20_000, directions=64, seed=0):
    """Made-up codes as real ones are: in kinds of very different sizes, with few strong directions and many weak ones.

    Codes of different seeds are of the same kinds.
    """
    world, draw = np.random.default_rng(99), np.random.default_rng(seed)
    scale = (1 / np.sqrt(1 + np.arange(d) / (directions / 8))).astype(np.float32)
    centres = world.standard_normal((kinds, d), dtype=np.float32) * scale
    sizes = world.pareto(1.5, kinds) + 0.1
    own = draw.choice(kinds, n, p=sizes / sizes.sum())
    codes = np.empty((n, d), np.float32)
    for rows in np.array_split(np.arange(n), max(1, n // 100_000)):
        codes[rows] = centres[own[rows]] + 0.6 * scale * draw.standard_normal((len(rows), d), dtype=np.float32)
    return torch.from_numpy(codes)


@contextmanager
def _own_memory(every=0.01):
    """A list that grows, inside the block, by the MB this process holds now, where /proc tells (elsewhere by its peak so far).

    Pages of the memory-mapped maps are not counted: they are the system's, which drops them when it wants memory.
    """
    status, held, over = Path("/proc/self/status"), [], threading.Event()

    def watch():
        while not over.wait(every):
            held.append(now())

    def now():
        if not status.exists():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return int(re.search(r"RssAnon:\s+(\d+)", status.read_text()).group(1)) / 1024

    held.append(now())
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()


def _timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def _read(backbone, photos, cache):
    """Finds the cache again and reads every number of it."""
    return np.array(extract(backbone, photos, cache).values)


def _precision(backbone):
    with torch.inference_mode(), fast_precision(backbone.mean.device):
        maps = backbone(torch.zeros(1, 3, backbone.size, backbone.size))
    return str(maps.dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
