"""Revisited Oxford and Paris in their authors' layout, made up here, and the pickle that is read without being run."""

import pickle

import numpy as np
import pytest
from PIL import Image

import partlib as pl
from partlib.data.buildings import plain_pickle


class Evil:
    def __reduce__(self):
        return (print, ("run!",))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "jpg").mkdir()
    for i, name in enumerate(["q1", "q2", "a", "b", "c"]):
        Image.new("RGB", (40, 30), (50 * i, 10, 10)).save(tmp_path / "jpg" / f"{name}.jpg")
    answers = [
        {"bbx": [5.0, 4.0, 25.2, 24.0], "easy": np.array([0]), "hard": [2], "junk": []},
        {"bbx": np.array([0, 0, 40, 30]), "easy": [], "hard": np.array([1, 2]), "junk": np.array([0])},
    ]
    truth = {"imlist": ["a", "b", "c"], "qimlist": ["q1", "q2"], "gnd": answers}
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    return tmp_path


def test_queries_are_cut_out_and_answers_are_numbers_of_the_database(folder):
    photos = pl.data.revisited(root=folder)
    assert photos.split.tolist() == ["query"] * 2 + ["database"] * 3 and photos.labels is None
    assert photos[0].size == (20, 20) and photos[1].size == photos[2].size == (40, 30)
    assert [own.tolist() for own in photos.easy] == [[0], []] and photos.hard[1].tolist() == [1, 2] and photos.junk[1].tolist() == [0]
    copy = pickle.loads(pickle.dumps(photos))  # as it travels to a worker process
    assert copy[0].size == (20, 20) and copy.fingerprint == photos.fingerprint


def test_the_protocol_takes_its_answers(folder):
    photos = pl.data.revisited(root=folder)
    found = pl.retrieval.revisited([[0, 2, 1], [2, 0, 1]], photos.easy, photos.hard, photos.junk)
    assert found["M"]["mAP"] == 100 and found["E"]["queries"] == 1 and found["H"]["queries"] == 2


def test_a_box_is_part_of_the_fingerprint(folder):
    before = pl.data.revisited(root=folder).fingerprint
    truth = plain_pickle(folder / "gnd_roxford5k.pkl")
    truth["gnd"][0]["bbx"] = [0, 0, 10, 10]
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    assert pl.data.revisited(root=folder).fingerprint != before


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_things_are_read_whatever_the_protocol(tmp_path, protocol):
    things = {"x": [1, 2.5, "name", (3,), None, True], "y": np.arange(6).reshape(2, 3), "z": np.float64(0.5), "w": np.array([1.5], np.float32)}
    (tmp_path / "file").write_bytes(pickle.dumps(things, protocol))
    read = plain_pickle(tmp_path / "file")
    assert read["x"] == things["x"] and np.array_equal(read["y"], things["y"]) and read["z"] == 0.5 and read["w"].dtype == np.float32


@pytest.mark.parametrize("bad", [Evil(), {"imlist": [Evil()]}, np.array([Evil()], dtype=object), print, np.load])
def test_whatever_would_run_is_refused(tmp_path, bad, capsys):
    (tmp_path / "file").write_bytes(pickle.dumps(bad, protocol=2))
    with pytest.raises(ValueError, match="is not read .it asks for .*fetch it again"):
        plain_pickle(tmp_path / "file")
    assert "run!" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-3]])
def test_a_damaged_file_says_so(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="is not read"):
        plain_pickle(tmp_path / "file")


def test_what_is_missing_is_said(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="roxford5k and rparis6k"):
        pl.data.revisited("oxford")
    with pytest.raises(pl.data.DownloadError, match="says where the photographs are"):
        pl.data.revisited(root=folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="it has no gnd_rparis6k.pkl"):
        pl.data.revisited("rparis6k", root=folder)
    (folder / "jpg" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 5 photographs are missing"):
        pl.data.revisited(root=folder)
