"""A record of many runs: each a process of its own, written down at once, so that what was stopped goes on where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
