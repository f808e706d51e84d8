"""The records under book/results: made by scripts that still exist, of settings that still exist."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BOOK = Path(__file__).parents[1] / "book"
ROWS = json.loads((BOOK / "results" / "classical_parts.json").read_text(encoding="utf-8"))


def module_of(name):
    """An experiment's script, loaded as a module."""
    sys.path.insert(0, str(BOOK / "experiments"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def script():
    return module_of("classical_parts")


def test_every_row_is_of_a_learner_and_a_set_that_the_script_still_has(script):
    known = set(script.learners(1, 1, 0))
    assert ROWS
    for row in ROWS:
        assert row["learner"] in known and row["set"] in script.SETS
        groups, each = script.SETS[row["set"]][2]
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


def test_a_stopped_record_goes_on_where_it_was(tmp_path):
    (tmp_path / "script.py").write_text("import json, sys\nprint(json.dumps({'name': sys.argv[2], 'seed': int(sys.argv[3]), 'x': 1 / 3}))")
    record = tmp_path / "record.json"
    record.write_text('[{"name": "a", "seed": 0, "x": "kept"}]', encoding="utf-8")
    module_of("runs").complete(str(tmp_path / "script.py"), record, [("a", 0), ("b", 0), ("a", 1)], ("name", "seed"))
    rows = json.loads(record.read_text(encoding="utf-8"))
    assert [(row["name"], row["seed"], row["x"]) for row in rows] == [("a", 0, "kept"), ("b", 0, 0.333), ("a", 1, 0.333)]


def test_the_part_networks_record_is_of_settings_that_still_exist():
    script = module_of("part_network")
    rows = json.loads(script.RECORD.read_text(encoding="utf-8")) if script.RECORD.exists() else []
    for row in rows:
        assert row["method"] in script.METHODS and row["set"] in script.SETS
        assert all(0 <= row[name] <= 100 for name in ("mAP", "5-NN", "accuracy", "NMI", "alone mAP", "centred mAP") if name in row)
    runs = [(row["method"], row["set"], row["seed"]) for row in rows]
    assert len(runs) == len(set(runs))


def test_the_explanations_record_is_of_methods_and_sets_that_still_exist():
    script = module_of("explanations")
    rows = json.loads(script.RECORD.read_text(encoding="utf-8"))
    for row in rows:
        assert row["set"] in script.SETS and [one["method"] for one in row["methods"]] == list(script.METHODS) == list(script.methods(0))
        for one in row["methods"]:
            assert all(0 <= one[name] <= 100 for name in ("accuracy", "insertion", "deletion", "pointing", "energy", "IoU", "deletion check") if name in one)
            assert all(one[name] is None or -1 <= one[name] <= 1 for name in ("sanity", "interventions") if name in one)
            assert ("interventions" in one) == (row["set"] == "toy birds") and ("pointing" in one) == (row["set"] != "groceries")
    runs = [(row["set"], row["seed"]) for row in rows]
    assert sorted(runs) == sorted((which, seed) for which in script.SETS for seed in range(3))
