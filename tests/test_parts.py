"""Learnt parts: what they score and what is said of them, by loops over regions, and their files."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from partlib import encoding
from partlib.features import Maps
from partlib.mining import Parts
from partlib.regions import Regions


def some_parts(p=4, d=4, seed=0, weights=None):
    draw = torch.Generator().manual_seed(seed)
    weights = None if weights is None else torch.randn(weights, p, generator=draw)
    filters, offsets = torch.randn(p, d, generator=draw), torch.randn(p, generator=draw)
    return Parts(filters, offsets, np.arange(p) % 2, {"learner": "Hand", "seed": seed}, weights)


def some_regions(n=5, d=4, h=3, w=4, seed=0):
    return Regions(torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d, h, w))).float())


def scores_by_loops(parts, x):
    """(n, p, r) from descriptors, number by number."""
    x, filters, offsets = x.double().numpy(), parts.filters.double().numpy(), parts.offsets.double().numpy()
    return np.array([
        [[sum(u_c * x_c for u_c, x_c in zip(u, region)) + t for region in photograph] for u, t in zip(filters, offsets)] for photograph in x
    ])  # fmt: skip


def overlap(a, b):
    """Shared cells over all cells of two boxes, counted."""
    cells = lambda box: {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}
    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


def equal(a, b):
    weights = a.weights is b.weights is None or torch.equal(a.weights, b.weights)
    arrays = torch.equal(a.filters, b.filters) and torch.equal(a.offsets, b.offsets) and np.array_equal(a.groups, b.groups)
    return arrays and weights and a.about == b.about


# ---- scores ----


@given(n=st.integers(1, 4), p=st.integers(1, 4), d=st.sampled_from([1, 2, 5]), h=st.integers(1, 3), w=st.integers(1, 4), seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_scores_the_best_and_its_region(n, p, d, h, w, seed):
    parts, regions = some_parts(p, d, seed), some_regions(n, d, h, w, seed)
    expected = scores_by_loops(parts, regions.tensor())
    found = parts.score(regions)
    assert found.shape == (n, p, len(regions.boxes)) and found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    values, where = parts.best(regions)
    assert isinstance(values, np.ndarray) and isinstance(where, np.ndarray) and values.shape == where.shape == (n, p)
    for i, j in np.ndindex(n, p):
        assert values[i, j] == pytest.approx(max(expected[i, j]), abs=1e-5)
        assert expected[i, j, where[i, j]] == pytest.approx(max(expected[i, j]), abs=1e-5)


def test_more_photographs_than_a_batch_and_tensors_of_descriptors():
    parts, regions = some_parts(), some_regions(150)
    expected = scores_by_loops(parts, regions.tensor())
    np.testing.assert_allclose(parts.score(regions), expected, atol=1e-5)
    np.testing.assert_allclose(parts.score(regions.tensor()), expected, atol=1e-5)
    assert [len(scores) for scores in parts.scores(regions)] == [64, 64, 22]
    np.testing.assert_allclose(parts.best(regions)[0], expected.max(2), atol=1e-5)


def test_regions_of_other_channels():
    for wrong in (some_regions(d=5), torch.rand(2, 3, 5)):
        said = refusal(ValueError, lambda: some_parts(d=4).score(wrong))
        assert "learnt on 4 channels, the regions have 5" in said and "take the maps they were learnt on" in said


def test_maps_are_the_scores_of_single_cells():
    parts, regions = some_parts(), some_regions(3)
    found = parts.maps(regions.maps)
    assert found.shape == (3, 4, 3, 4)
    for i, y, x in np.ndindex(3, 3, 4):
        cell = regions.maps[i, :, y, x].double()
        expected = scores_by_loops(parts, (cell / cell.norm())[None, None])[0, :, 0]
        np.testing.assert_allclose(found[i, :, y, x], expected, atol=1e-5)
    on_disk = Maps(regions.maps.half().numpy(), np.array([2, 0]))
    np.testing.assert_allclose(parts.maps(on_disk), found[[2, 0]], atol=1e-2)


@pytest.mark.parametrize("how", ["max", "mean", "both", "spatial", "descriptors"])
def test_codes_are_those_of_encoding_however_many_batches(how):
    parts, regions = some_parts(), some_regions(70)
    scores, x = parts.score(regions), regions.tensor()
    expected = {
        "spatial": lambda: encoding.spatial_bag(scores, regions.boxes, (3, 4)),
        "descriptors": lambda: encoding.part_descriptors(x, scores),
    }.get(how, lambda: encoding.bag_of_parts(scores, how))()  # fmt: skip
    np.testing.assert_allclose(parts.encode(regions, how), expected, atol=1e-6)


def test_an_unknown_code():
    said = refusal(ValueError, lambda: some_parts().encode(some_regions(), "sum"))
    assert "how='sum'" in said


# ---- what kind of parts they are ----


@given(n=st.integers(1, 6), p=st.integers(1, 5), shift=st.floats(-2, 2), seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_presence_and_dead_parts_are_counted(n, p, shift, seed):
    parts, regions = some_parts(p, seed=seed), some_regions(n, seed=seed)
    parts = Parts(parts.filters, parts.offsets + shift)
    present = [[any(s > 0 for s in scores) for scores in photograph] for photograph in scores_by_loops(parts, regions.tensor())]
    counts = np.sum(present, axis=0)
    np.testing.assert_allclose(parts.presence(regions), counts / n)
    assert parts.dead(regions).tolist() == [j for j in range(p) if counts[j] < 2]


@given(n=st.integers(1, 5), p=st.integers(2, 5), seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_duplicates_are_counted_pairs(n, p, seed):
    parts, regions = some_parts(p, seed=seed), some_regions(n, seed=seed)
    best = scores_by_loops(parts, regions.tensor()).argmax(2)
    boxes, alike, pairs = regions.boxes.tolist(), 0, 0
    for row in best:
        for a in range(p):
            for b in range(a):
                pairs += 1
                alike += overlap(boxes[row[a]], boxes[row[b]]) > 0.5
    assert parts.duplicates(regions) == pytest.approx(100 * alike / pairs)


def test_duplicates_of_one_part_twice_and_of_a_single_part():
    parts, regions = some_parts(1), some_regions()
    assert parts.duplicates(regions) == 0 and parts[[0, 0]].duplicates(regions) == 100
    # A box of 1 x 1 in one of 1 x 2 overlaps it by exactly a half, which is not over it.
    regions = Regions(torch.eye(2)[None, :, None, :] + 0.0, torch.tensor([[0, 0, 1, 1], [0, 0, 2, 1]]))
    cell, both = Parts(torch.tensor([[1.0, 0], [1.0, 1.0]]), torch.zeros(2)).best(regions)[1][0]
    assert (cell, both) == (0, 1) and Parts(torch.tensor([[1.0, 0], [1.0, 1.0]]), torch.zeros(2)).duplicates(regions) == 0


@given(n=st.integers(1, 8), p=st.integers(1, 4), count=st.integers(1, 10), seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_members_are_the_photographs_that_answer_most(n, p, count, seed):
    parts, regions = some_parts(p, seed=seed), some_regions(n, seed=seed)
    scores = scores_by_loops(parts, regions.tensor())
    which, where, values = parts.members(regions, count)
    assert which.shape == where.shape == values.shape == (p, min(count, n))
    for j in range(p):
        assert which[j].tolist() == sorted(range(n), key=lambda i: -max(scores[i, j]))[:count]
        assert where[j].tolist() == [scores[i, j].argmax() for i in which[j]]
        np.testing.assert_allclose(values[j], [scores[i, j].max() for i in which[j]], atol=1e-5)


def test_members_are_counted():
    assert "0 members of 5 photographs" in refusal(ValueError, lambda: some_parts().members(some_regions(), 0))


# ---- some of them ----


def test_some_of_the_parts():
    parts = some_parts(5, weights=3)
    mask = np.array([True, False, False, True, False])
    several = (([3, 0], [3, 0]), (slice(1, 4), [1, 2, 3]), (mask, [0, 3]), (np.array([4, 4]), [4, 4]))
    for index, rows in ((2, [2]), (-1, [4]), (np.int64(1), [1]), *several):
        some = parts[index]
        assert len(some) == len(rows) and some.about is parts.about
        for j, row in enumerate(rows):
            assert torch.equal(some.filters[j], parts.filters[row]) and some.offsets[j] == parts.offsets[row]
            assert some.groups[j] == parts.groups[row] and torch.equal(some.weights[:, j], parts.weights[:, row])
    np.testing.assert_allclose(parts[[3, 0]].score(some_regions()), parts.score(some_regions())[:, [3, 0]], atol=1e-6)
    assert some_parts()[1].weights is None
    with pytest.raises(IndexError):
        parts[5]


def test_parts_by_hand_have_no_group_and_say_what_they_are():
    parts = Parts(torch.ones(2, 7), torch.zeros(2))
    assert parts.groups.tolist() == [-1, -1] and parts.weights is None and repr(parts) == "Parts(2 by hand, on 7 channels)"
    assert repr(some_parts(4, 3)) == "Parts(4 by Hand, on 3 channels)"


# ---- files ----


@pytest.mark.parametrize("weights", [None, 3])
def test_there_and_back(tmp_path, weights):
    parts = some_parts(weights=weights)
    parts = Parts(parts.filters, parts.offsets, parts.groups, {"learner": "JointParts", "π": 0.5, "objective": [2.5, 1.0]}, parts.weights)
    parts.save(tmp_path / "parts.safetensors")
    found = Parts.load(tmp_path / "parts.safetensors")
    assert equal(found, parts) and found.groups.dtype == parts.groups.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["parts.safetensors"]
    parts[[2, 0]].save(str(tmp_path / "parts.safetensors"))  # over the old one; names as text
    assert equal(Parts.load(str(tmp_path / "parts.safetensors")), parts[[2, 0]])


def test_a_view_of_other_parts_is_saved_too(tmp_path):
    parts = some_parts(6, weights=2)
    Parts(parts.filters[::2], parts.offsets[::2], parts.groups[::2], {}, parts.weights[:, ::2]).save(tmp_path / "p")
    assert equal(Parts.load(tmp_path / "p"), Parts(parts.filters[::2], parts.offsets[::2], parts.groups[::2], {}, parts.weights[:, ::2]))


def test_a_missing_file(tmp_path):
    for missing in (tmp_path / "none", tmp_path):
        assert "save(file) writes one" in refusal(FileNotFoundError, partial(Parts.load, missing))


def test_every_shortened_file_is_damaged(tmp_path):
    some_parts(weights=2).save(tmp_path / "parts")
    whole = (tmp_path / "parts").read_bytes()
    for length in (*range(0, len(whole), 29), len(whole) - 1):
        (tmp_path / "parts").write_bytes(whole[:length])
        assert "holds no parts, or is damaged" in refusal(ValueError, lambda: Parts.load(tmp_path / "parts"))


def test_a_damaged_head_is_one_sentence_whichever_byte_it_is(tmp_path):
    some_parts().save(tmp_path / "parts")
    whole = bytearray((tmp_path / "parts").read_bytes())
    start = int.from_bytes(whole[:8], "little") + 8
    refused = 0
    for at in range(start):
        damaged = whole.copy()
        damaged[at] ^= 0x80
        (tmp_path / "parts").write_bytes(damaged)
        assert "holds no parts, or is damaged" in refusal(ValueError, lambda: Parts.load(tmp_path / "parts"))
        refused += 1
    assert refused == start > 100


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"filters": torch.ones(2, 3), "offsets": torch.ones(2), "groups": torch.ones(2)}, None),
        ({"filters": torch.ones(2, 3), "offsets": torch.ones(2), "groups": torch.ones(2)}, {"format": "pt"}),
        ({"filters": torch.ones(2, 3), "offsets": torch.ones(2), "groups": torch.ones(2)}, {"parts": "{not json"}),
        ({"weight": torch.ones(2, 3)}, {"format": "pt"}),
        ({"filters": torch.ones(2, 3)}, {"parts": "{}"}),
    ],
    ids=["no words", "other words", "no JSON", "a network", "an array missing"],
)
def test_a_foreign_file(tmp_path, tensors, about):
    save_file(tensors, tmp_path / "parts", about)
    assert "holds no parts, or is damaged" in refusal(ValueError, lambda: Parts.load(tmp_path / "parts"))


def test_text_and_numpy_files_are_no_parts(tmp_path):
    (tmp_path / "text").write_text("filters " * 99)
    np.save(tmp_path / "array.npy", np.ones(99))
    for name in ("text", "array.npy"):
        assert name in refusal(ValueError, lambda: Parts.load(tmp_path / name))


def test_where_nothing_can_be_written_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("kept")
    for wrong in ("missing/parts", "folder", "file/parts"):
        said = refusal(OSError, lambda: some_parts().save(tmp_path / wrong))
        assert "could not be written" in said and "is there such a folder" in said
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder", "inside"]


def test_an_old_file_stays_where_the_new_one_could_not_be_written(tmp_path, monkeypatch):
    parts = some_parts()
    parts.save(tmp_path / "parts")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partlib._files.os.replace", full)
    assert "No space left" in refusal(OSError, lambda: some_parts(seed=1).save(tmp_path / "parts"))
    assert equal(Parts.load(tmp_path / "parts"), parts) and [file.name for file in tmp_path.iterdir()] == ["parts"]


def test_what_made_them_is_stored_as_json(tmp_path):
    from safetensors import safe_open

    some_parts().save(tmp_path / "parts")
    with safe_open(tmp_path / "parts", "pt") as stored:
        assert json.loads(stored.metadata()["parts"]) == {"learner": "Hand", "seed": 0}
        assert set(stored.keys()) == {"filters", "offsets", "groups"}
