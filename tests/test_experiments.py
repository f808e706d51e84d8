"""The records under book/results: made by scripts that still exist, of settings that still exist."""

import importlib.util
import json
from pathlib import Path

import pytest

BOOK = Path(__file__).parents[1] / "book"
ROWS = json.loads((BOOK / "results" / "classical_parts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("classical_parts", BOOK / "experiments" / "classical_parts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_of_a_learner_and_a_set_that_the_script_still_has(script):
    known = set(script.learners(1, 1, 0))
    assert ROWS
    for row in ROWS:
        assert row["learner"] in known and row["set"] in script.SETS
        groups, each = {"groceries": (10, 4)}.get(row["set"], (2, 4))
        assert row["parts"] == groups * each and 0 <= row["learnt"] <= max(row["parts"], 1)


def test_no_run_is_recorded_twice():
    runs = [(row["learner"], row["set"], row["seed"]) for row in ROWS]
    assert len(runs) == len(set(runs))


def test_every_measure_is_one():
    for row in ROWS:
        if "nothing" in row:
            continue
        assert row["seconds"] > 0 and row["peak_mb"] > 100 and row["dead"] <= row["learnt"]
        for measure in ("mAP", "R@1", "5-NN", "presence", "duplicates"):
            assert 0 <= row[measure] <= 100
        if "NMI" in row:
            assert 0 <= row["NMI"] <= row["NMI_ceiling"] + 1e-9 <= 100.001 and -100 <= row["ARI"] <= row["ARI_ceiling"]
