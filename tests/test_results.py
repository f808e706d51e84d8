"""Records: of configurations and photographs that still exist, written so that a stopped run goes on, and drawn from runs alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from partlib import configurations, evaluation, results, retrieval
from partlib.configurations import METHODS, SETS, Made, Method, Seen, Setting
from partlib.data import toy_birds

RECORDS = results.load(results.Path(__file__).parents[1] / results.RECORDS)
AT_HAND = configurations.at_hand()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['about']['set']}, {record['about']['method']}")
def test_a_record_is_of_a_configuration_and_photographs_that_still_exist(record):
    about = record["about"]
    assert about["method"] in METHODS and about["set"] in SETS and METHODS[about["method"]].fits(about["set"])
    assert about["settings"] == json.loads(json.dumps(METHODS[about["method"]].settings)), "run it anew: its settings are others now"
    assert (about["task"], about["uses"]) == (METHODS[about["method"]].task, METHODS[about["method"]].uses)
    if about["set"] in AT_HAND:
        assert about == json.loads(json.dumps(results.about(about["method"], about["set"]))), "run it anew: photographs or protocol are others now"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['about']['set']}, {record['about']['method']}")
def test_measures_are_means_over_the_runs(record):
    assert sorted(row["seed"] for row in record["runs"]) == list(range(len(record["runs"])))
    for name, found in record["measures"].items():
        values = [row["measures"][name] for row in record["runs"]]
        assert found["mean"] == pytest.approx(np.mean(values), abs=2e-3) and found["spread"] == pytest.approx(np.std(values), abs=2e-3)
        assert found["runs"] == len(values) and (-100 <= found["mean"] <= 100 or name == "KPR")
    assert all(row["seconds"] > 0 and row["peak_mb"] > 100 for row in record["runs"])


def test_published_numbers_say_where_they_were_read():
    rows = json.loads((results.Path(__file__).parents[1] / results.RECORDS.parent / "published.json").read_text(encoding="utf-8"))
    for row in rows:
        assert row["task"] in ("retrieval", "recognition", "parts") and row["method"] and row["data"] and len(row["source"]) > 10
        assert row["numbers"] and all(isinstance(value, float) for value in row["numbers"].values())
    assert not {row["method"] for row in rows} & set(METHODS)


def test_there_is_a_record_of_every_file():
    root = results.Path(__file__).parents[1] / results.RECORDS
    for record in RECORDS:
        assert results.file_of(record["about"]["method"], record["about"]["set"], root).is_file()
    files = {results.file_of(method, which) for method in METHODS for which in SETS}
    assert len(files) == len(METHODS) * len(SETS)  # no two configurations share a file


@pytest.fixture
def made_up(monkeypatch):
    """One configuration that costs nothing, on a few rendered birds: the kind of bird, with a little noise."""
    photos = toy_birds(60, classes=5, size=64)
    monkeypatch.setitem(SETS, "few birds", lambda: Setting(photos, photos.train, photos.test, asked=1))
    monkeypatch.setattr(configurations, "BUNDLED", ("few birds",))
    calls = []

    def make(seen, seed):
        calls.append(seed)
        noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(seed))
        return Made(torch.eye(5)[seen.setting.photos.labels] + 0.3 * noise, parameters=7, notes={"seed": seed})

    monkeypatch.setitem(METHODS, "labels", Method(make, {"noise": 0.3, "rate": 3e-4}, seeded=True))
    monkeypatch.setattr(Seen, "prepare", lambda self, method: None)
    for cache in (results._setting, results._contents):
        cache.cache_clear()
    yield calls
    for cache in (results._setting, results._contents):
        cache.cache_clear()


def test_a_record_goes_on_where_it_was_and_is_written_anew_when_settings_change(made_up, tmp_path, monkeypatch):
    results.complete("labels", "few birds", 1, tmp_path)
    results.complete("labels", "few birds", 3, tmp_path)
    assert made_up == [0, 1, 2] and results.missing(["labels"], ["few birds"], 3, tmp_path) == []
    (record,) = results.load(tmp_path)
    assert [row["seed"] for row in record["runs"]] == [0, 1, 2] and record["runs"][1]["notes"] == {"seed": 1} and record["runs"][0]["parameters"] == 7
    assert record["about"]["fingerprint"] == SETS["few birds"]().photos.contents and "--seeds 3" in record["command"]
    monkeypatch.setitem(METHODS, "labels", Method(METHODS["labels"].make, {"noise": 0.4}, seeded=True))
    assert results.missing(["labels"], ["few birds"], 1, tmp_path) == [("labels", "few birds")]
    results.complete("labels", "few birds", 1, tmp_path)
    assert made_up == [0, 1, 2, 0] and len(results.load(tmp_path)[0]["runs"]) == 1


def test_what_is_measured_is_what_the_measures_say(made_up, tmp_path):
    results.complete("labels", "few birds", 1, tmp_path)
    row, setting = results.load(tmp_path)[0]["runs"][0], SETS["few birds"]()
    codes = METHODS["labels"].make(Seen(setting, None, ""), 0).codes
    train, test, labels = setting.train, setting.test, setting.photos.labels
    assert row["measures"]["mAP"] == pytest.approx(retrieval.evaluate(codes[test], labels[test])["mAP"], abs=1e-3)
    assert row["measures"]["5-NN"] == pytest.approx(evaluation.knn_accuracy(codes[train], labels[train], codes[test], labels[test]), abs=1e-3)
    each = retrieval.evaluate_each(codes[test], labels[test])["AP"]
    assert row["views"]["hardest"][0]["AP"] == pytest.approx(100 * each.min(), abs=1e-3)
    assert row["views"]["hardest"][0]["query"] == test[each.argmin()]
    assert np.mean(list(row["views"]["classes"].values())) == pytest.approx(row["measures"]["mAP"], abs=1e-2)  # classes are of one size here


def test_parts_that_are_true_measure_as_the_best_there_is():
    photos = toy_birds(40, classes=4, size=64)
    setting = Setting(photos, photos.train, photos.test)
    masks = torch.from_numpy(np.stack([photos.part_masks(i) for i in range(40)])).float()
    found = results.measure_parts(torch.cat([masks, 1 - masks.amax(1, keepdim=True)], 1), setting)
    assert found["NMI"] > 75 and found["NMI at best"] == pytest.approx(100) and found["purity"] > 40 and found["KPR"] < 30
    noise = results.measure_parts(torch.rand(40, 8, 8, 8, generator=torch.Generator().manual_seed(0)), setting)
    assert noise["ARI"] < 10 < found["ARI"] and noise["purity"] < found["purity"] and noise["consistency"] <= found["consistency"]


def test_the_list_names_every_configuration(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["results", "list"])
    results.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*METHODS, *SETS))


def test_sets_that_are_not_bundled_are_run_where_their_folder_is_named(monkeypatch):
    monkeypatch.delenv("PARTLIB_DATA", raising=False)
    assert configurations.at_hand() == ["groceries", "toy birds"]
    monkeypatch.setitem(os.environ, "PARTLIB_DATA", "somewhere")
    assert configurations.at_hand() == list(SETS)


@pytest.mark.parametrize("workers, threads", [(1, 4), (2, 2), (9, 1)])
def test_processes_side_by_side_share_the_threads(workers, threads):
    own = f"""
import torch
from threadpoolctl import threadpool_info
from partlib import results

torch.set_num_threads(4)
results._share_cores({workers})
print(torch.get_num_threads(), max(pool["num_threads"] for pool in threadpool_info()))
"""
    said = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout
    ours, most = map(int, said.split())
    assert ours == threads and most <= threads
