"""Results that anyone can check: a named configuration is run with seeds and written down as one JSON record.

    python -m partlib.results run              every configuration on every set, what is missing from book/results/records
    python -m partlib.results run --method GeM --set groceries --seeds 3
    python -m partlib.results list             the names of all configurations and sets

A record says which method with which settings, on which backbone and photographs (by a digest of their files), how it was measured, every measure of every seed, time,
memory, versions and the command. A run that was stopped goes on where it was. A record of settings or photographs that are no longer
these is run anew.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import time
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import one_hot

from . import configurations, evaluation, retrieval
from ._progress import progress
from .backbones import Backbone
from .configurations import METHODS, SETS, Setting

RECORDS = Path("book/results/records")
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "faiss-cpu", "partlib")


def measure(codes, setting: Setting, seed: int) -> tuple[dict[str, float], dict]:
    """The measures of codes, and views of them: average precision by class, and the queries that did worst with what they found."""
    train, test, labels = setting.train, setting.test, setting.photos.labels
    each = retrieval.evaluate_each(codes[test], labels[test], ks=(1, 5))
    counted = ~np.isnan(each["AP"])
    found = {"mAP": each["AP"], "R@1": each["R@1"], "P@5": each["P@5"]}
    found = {name: 100 * float(values[counted].mean()) for name, values in found.items()}
    if len(setting.queries):
        asked = retrieval.evaluate(codes[test], labels[test], codes[setting.queries], labels[setting.queries])
        found["query mAP"] = asked["mAP"]
    found["5-NN"] = evaluation.knn_accuracy(codes[train], labels[train], codes[test], labels[test])
    for name, shots in {"1 shot": 1, "5 shots": 5}.items():
        found[name] = evaluation.few_shot(codes[test], labels[test], shots=shots, queries=setting.asked, seed=seed)["accuracy"]
    if codes.shape[1] <= 512:
        found["linear probe"] = evaluation.linear_probe(codes[train], labels[train], codes[test], labels[test], seed)
    classes = {setting.photos.classes[c]: 100 * float(each["AP"][counted & (labels[test] == c)].mean()) for c in np.unique(labels[test][counted])}
    worst = np.argsort(np.where(counted, each["AP"], np.inf), kind="stable")[:12]
    answers = retrieval.Index(codes[test]).search(codes[test[worst]], k=6)[1]
    hardest = [
        {"query": int(test[q]), "AP": 100 * float(each["AP"][q]), "found": [int(test[j]) for j in row if j != q][:5]} for q, row in zip(worst, answers)
    ]
    return found, {"classes": classes, "hardest": hardest}


def measure_parts(maps, setting: Setting) -> dict[str, float]:
    """The measures of parts: which part is at which keypoint, with its ceiling, where keypoints lie, and whether a part means one thing.

    Args:
        maps: `(n, p + 1, h, w)` scores of all photographs, the last of them the background's.
    """
    photos, train, test = setting.photos, setting.train, setting.test
    sizes, points = setting.sizes, photos.keypoints
    found = {}
    for row in evaluation.part_agreement(maps[test], points[test], sizes[test], photos.keypoint_names, background=True):
        end = ("" if row["keypoints"] == len(photos.keypoint_names) else f" {row['keypoints']}") + (" without background" if row["background"] == "left out" else "")
        found |= {name + end: row[name] for name in ("NMI", "ARI", "NMI at best", "ARI at best")}
        found["on background"] = row["on background"]
    parts, hard = maps[:, :-1], one_hot(maps.argmax(1), maps.shape[1]).permute(0, 3, 1, 2)[:, :-1].float()
    found["KPR"] = evaluation.keypoint_regression(hard, points, photos.boxes, sizes, train, test)
    merged = evaluation.merge_sides(photos.keypoint_names)
    found["purity"] = evaluation.purity(parts[test], points[test], sizes[test], merged)["purity"]
    found["consistency"] = evaluation.consistency(parts[test], points[test], sizes[test])
    return found


def run(method: str, which: str, seed: int, cache="data/cache") -> dict:
    """One configuration on one set with one seed: its measures, time and memory, and views of them."""
    setting = _setting(which)
    seen = configurations.Seen(setting, Backbone(size=configurations.SIZE), cache)
    seen.prepare(method)  # maps that are not in the cache are not part of the time
    start = time.perf_counter()
    made = METHODS[method].make(seen, seed)
    seconds = time.perf_counter() - start
    row = {"seed": seed, "seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    row |= {"dims": made.dims, "parameters": made.parameters, "notes": made.notes}
    if made.parts is not None:
        return row | {"measures": measure_parts(made.parts, setting), "views": {}}
    measures, views = measure(made.codes, setting, seed)
    if made.answers is not None:
        measures["accuracy"] = 100 * float((made.answers[setting.test] == setting.photos.labels[setting.test]).mean())
    return row | {"measures": measures, "views": views}


@lru_cache(maxsize=None)
def _setting(which):
    return SETS[which]()


@lru_cache(maxsize=None)
def _contents(which):
    return _setting(which).photos.contents


def about(method: str, which: str) -> dict:
    """What a record is of, and what must be the same for it to be of something that still exists."""
    setting = _setting(which)
    return {
        "method": method, "set": which, "task": METHODS[method].task, "uses": METHODS[method].uses, "settings": METHODS[method].settings,
        "photographs": repr(setting.photos), "fingerprint": _contents(which),
        "protocol": setting.protocol if METHODS[method].task == "codes" else configurations.AT_KEYPOINTS,
    }  # fmt: skip


def file_of(method: str, which: str, records=RECORDS) -> Path:
    """Where the record is: <set>/<method>.json, in plain letters."""
    plain = lambda name: re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return Path(records) / plain(which) / f"{plain(method)}.json"


def load(records=RECORDS) -> list[dict]:
    """All records, as `complete` wrote them."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(records).rglob("*.json"))]


def complete(method: str, which: str, seeds: int, records=RECORDS, cache="data/cache"):
    """Run what the record does not hold yet, and write it beside the file and rename into place."""
    os.environ["TQDM_DISABLE"] = "1"
    runs = _on_record(method, which, records)
    for seed in _absent(runs, method, seeds):
        runs.append(run(method, which, seed, cache))
        _write(file_of(method, which, records), about(method, which), runs)


def _on_record(method, which, records):
    """The runs of this configuration as it is now; none, where the record is of other settings or photographs."""
    file = file_of(method, which, records)
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return record["runs"] if record.get("about") == about(method, which) else []


def _absent(runs, method, seeds):
    done = {row["seed"] for row in runs}
    return [seed for seed in range(seeds if METHODS[method].seeded else 1) if seed not in done]


def _write(file, what, runs):
    names = dict.fromkeys(name for row in runs for name in row["measures"])
    values = {name: [row["measures"][name] for row in runs if name in row["measures"]] for name in names}
    measures = {name: {"mean": float(np.mean(own)), "spread": float(np.std(own)), "runs": len(own)} for name, own in values.items()}
    record = {
        "about": what, "backbone": repr(Backbone(size=configurations.SIZE)), "measures": _rounded(measures), "runs": _rounded(runs),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads()},
        "command": f'python -m partlib.results run --method "{what["method"]}" --set "{what["set"]}" --seeds {len(runs)}',
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, file)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_rounded(own) for own in value]
    return round(value, 3) if isinstance(value, float) else value


def missing(methods, sets, seeds: int, records=RECORDS) -> list[tuple[str, str]]:
    """The configurations of which a seed is not on record, method by method."""
    fitting = [(method, which) for method in methods for which in sets if METHODS[method].fits(which)]
    return [(method, which) for method, which in fitting if _absent(_on_record(method, which, records), method, seeds)]


def main():
    """Run configurations and write their records, or list them."""
    parser = argparse.ArgumentParser(prog="python -m partlib.results", description=main.__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("list", help="the names of all configurations and sets")
    run_ = commands.add_parser("run", help="run what is missing")
    run_.add_argument("--method", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD", help="these only")
    run_.add_argument("--set", nargs="*", default=configurations.at_hand(), choices=list(SETS), metavar="SET", help="these only")
    run_.add_argument("--seeds", type=int, default=3, help="of configurations that draw anything (default 3)")
    run_.add_argument("--workers", type=int, default=1, help="processes side by side (default 1)")
    run_.add_argument("--records", type=Path, default=RECORDS, help=f"folder of the records (default {RECORDS})")
    run_.add_argument("--cache", default="data/cache", help="folder of the feature maps (default data/cache)")
    options = parser.parse_args()
    if options.what == "list":
        for name, method in METHODS.items():
            print(f"{name:<28}{method.task:<12}{method.uses}")
        print("\nsets:", ", ".join(SETS))
        return
    wanted = missing(options.method, options.set, options.seeds, options.records)
    jobs = [(method, which, options.seeds, options.records, options.cache) for method, which in wanted]
    # A process for each record, so that its memory is its own: a copy of this one where the system can, which has computed nothing yet.
    start = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    with start.Pool(options.workers, _share_cores, (options.workers,), maxtasksperchild=1) as pool:
        failed = [said for said in progress(pool.imap_unordered(_complete, jobs), total=len(jobs), desc="records", unit="record") if said]
    if failed:
        raise SystemExit("\n".join(failed))


def _share_cores(workers):
    """To each process its share of the threads: more of them than cores wait for one another."""
    threads = max(1, torch.get_num_threads() // workers)
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _complete(job):
    """Nothing, or why there is no record: the others are run all the same."""
    try:
        complete(*job)
    except (ValueError, OSError) as error:
        return f"{job[0]} on {job[1]}: {error}"


if __name__ == "__main__":
    main()
