"""A record of many runs: each a process of its own, written down at once, so that what was stopped goes on where it was."""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Callable

import torch
from tqdm import tqdm

RESULTS = Path(__file__).parents[1] / "results"
CACHE = Path(__file__).parents[2] / "data" / "cache"


def complete(script: str, record: Path, wanted: list[tuple], keys: tuple):
    """Run `script --one …` for every wanted run that the record does not hold yet; a row of the record is a run's line of JSON.

    Args:
        wanted: of each run the values of `keys`, which name it in the record.
    """
    rows = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    done = {tuple(row[key] for key in keys) for row in rows}
    for one in tqdm([one for one in wanted if one not in done], desc=record.stem, unit="run"):
        command = [sys.executable, script, "--one", *map(str, one)]
        made = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | {"TQDM_DISABLE": "1"}, check=True, text=True)
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in json.loads(made.stdout).items()})
        part = record.with_suffix(".part")
        part.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, record)


def command_line(script: str, record: Path, run: Callable, bundled: tuple, wanted: Callable = lambda **one: True, **choices: list):
    """An experiment's command line: run what is missing from the record, or a single run, printed as a line of JSON.

    Args:
        run: a run's values, in the order of `choices` and the seed last → its row.
        bundled: sets that need no $PARTLIB_DATA. wanted: whether there is to be such a run, given by name.
        choices: of each key of the record but the seed, the names that there are; `set` is one of them.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    keys = (*choices, "seed")
    parser = argparse.ArgumentParser(description="Run what is missing from the record.")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each run (default 3)")
    for key, names in choices.items():
        parser.add_argument(f"--{key}", nargs="*", default=list(names), help=f"these {key}s only")
    parser.add_argument("--one", nargs=len(keys), metavar=tuple(key.upper() for key in keys), help="a single run, printed as a line of JSON")
    options = parser.parse_args()
    if options.one:
        *names, seed = options.one
        print(json.dumps(run(*names, int(seed))))
        return
    asked = {key: getattr(options, key) for key in choices}
    asked["set"] = [which for which in asked["set"] if which in bundled or "PARTLIB_DATA" in os.environ]
    runs = [(*names, seed) for seed in range(options.seeds) for names in product(*asked.values())]
    complete(script, record, [one for one in runs if wanted(**dict(zip(keys, one)))], keys)
