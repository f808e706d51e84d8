"""Sets of photographs: folders, published sets in their official layouts, and what a reader gets wrong."""

import csv
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import tqdm.notebook
from PIL import Image

from partlib import _progress
from partlib.data import BadPicture, Photos, butterflies, cub200, folder, groceries, groceries_full, imagenet, packages


def picture(path, size=(8, 6), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def one_sentence(error):
    text = str(error.value)
    assert 30 < len(text) < 600 and "\n" not in text, text
    return text


@pytest.fixture
def official():
    """The folder of one of the real sets that PARTLIB_DATA holds."""
    home = os.environ.get("PARTLIB_DATA")
    if not home:
        pytest.skip("PARTLIB_DATA is not set (the folder of CUB_200_2011, GroceryStoreDataset and leeds_butterfly)")
    return lambda name: Path(home) / name


# ---- Photos ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def seven():
    return Photos(
        name="seven",
        names=[f"{i}.png" for i in range(7)],
        read=lambda row: Image.new("RGB", (row + 1, 1)),
        stamps=[str(i) for i in range(7)],
        labels=np.arange(7) % 3,
        classes=["a", "b", "c"],
        split=np.array(["train"] * 4 + ["test"] * 3),
        boxes=np.arange(28.0).reshape(7, 4),
        read_mask=lambda row: np.ones((1, row + 1), bool),
    )


def test_indexing(seven):
    assert [seven[i].width for i in (0, np.int64(3), torch.tensor(5), -1)] == [1, 4, 6, 7]
    for index, rows in [
        (slice(1, 6, 2), [1, 3, 5]), ([4, 0], [4, 0]), (seven.labels == 1, [1, 4]), (seven.test, [4, 5, 6]),
        (torch.tensor([2, 2]), [2, 2]), ([], []), (slice(None, None, -3), [6, 3, 0]),
    ]:  # fmt: skip
        part = seven[index]
        assert [p.width - 1 for p in part] == rows == part.rows.tolist()
        assert part.names == [f"{r}.png" for r in rows] and part.labels.tolist() == [r % 3 for r in rows]
        assert part.boxes.tolist() == seven.boxes[rows].tolist() and part.classes == ["a", "b", "c"]
    twice = seven[2:][[1, 3]]
    assert [p.width for p in twice] == [4, 6] and twice.mask(1).shape == (1, 6)
    assert len({seven.fingerprint, seven[2:].fingerprint, seven[::-1].fingerprint, seven[:].fingerprint}) == 3


WRONG = ["train", 7, 2000, -8, ["0.png", "1.png"], (1, 2), None, True, 1.0, [0.5], [True] * 6, [[0, 1]], [0, 99]]


@pytest.mark.parametrize("index", WRONG, ids=repr)
def test_a_wrong_index_is_explained(seven, index):
    with pytest.raises(IndexError, match="seven has 7 photographs") as caught:
        seven[index]
    assert "photos[photos.train]" in one_sentence(caught)


def test_other_mistakes_are_explained(seven):
    with pytest.raises(ValueError, match="no split 'training'.*train, val, test"):
        seven.where("training")
    with pytest.raises(ValueError, match="3 labels for 7 photographs"):
        Photos(name="x", names=seven.names, read=seven.read, stamps=seven.stamps, labels=np.zeros(3, int))
    plain = Photos(name="plain", names=["a"], read=None, stamps=["1"])
    with pytest.raises(ValueError, match="plain has no split"):
        plain.train
    with pytest.raises(ValueError, match="plain has no masks"):
        plain.mask(0)


def test_bars_can_be_turned_off_in_notebooks_too(monkeypatch, capfd):
    monkeypatch.setattr(_progress, "tqdm", tqdm.notebook.tqdm)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(_progress.progress(range(3), desc="reading")) == [0, 1, 2] and capfd.readouterr() == ("", "")
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(_progress, "tqdm", tqdm.std.tqdm)
    assert list(_progress.progress(range(3), desc="reading")) == [0, 1, 2] and "reading" in capfd.readouterr().err


# ---- folder ---------------------------------------------------------------------------------------------------------


def test_folder_reads_all_pictures_below_it_in_order(tmp_path):
    for i, name in enumerate(["b.PNG", "a/z.jpg", "a/deep/er/x.tiff", "A.webp", "a-b/c.gif", "a.b/é.bmp"]):
        picture(tmp_path / name, size=(i + 1, 3))
    for name in ["notes.txt", "a/maps.h5", "film.mpg", ".hidden.png", ".cache/thumb.png", "a/._z.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    photos = folder(tmp_path)
    assert photos.names == ["A.webp", "a-b/c.gif", "a.b/é.bmp", "a/deep/er/x.tiff", "a/z.jpg", "b.PNG"]
    assert [p.width for p in photos] == [4, 5, 6, 3, 2, 1]
    assert photos.labels is None and photos.name == tmp_path.name and photos.left_out == []
    copy = pickle.loads(pickle.dumps(photos))  # as it travels to a worker process
    assert [p.width for p in copy] == [4, 5, 6, 3, 2, 1] and copy.fingerprint == photos.fingerprint
    about = (tmp_path / "a/z.jpg").stat()
    assert photos.stamps[4] == f"{about.st_size}:{about.st_mtime_ns}"


def test_contents_stay_the_same_wherever_and_whenever_the_files_were_copied(tmp_path):
    for where in ("here", "there"):
        (tmp_path / where).mkdir()
        for i, name in enumerate("abc"):
            picture(tmp_path / where / f"{name}.png", size=(i + 1, 3))
    os.utime(tmp_path / "there/b.png", (1, 1))
    here, there = folder(tmp_path / "here"), folder(tmp_path / "there")
    assert here.fingerprint != there.fingerprint and here.contents == there.contents
    assert here[1:].contents == there[[1, 2]].contents != here.contents and here[::-1].contents != here.contents
    assert pickle.loads(pickle.dumps(here)).contents == here.contents
    picture(tmp_path / "there/b.png", size=(2, 4))
    assert here.contents != folder(tmp_path / "there").contents
    assert groceries()[:3].contents == groceries()[:3].fingerprint  # stamped by content


def test_folder_changes_its_fingerprint_with_its_files(tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    before = folder(tmp_path).fingerprint
    assert folder(str(tmp_path)).fingerprint == before
    picture(tmp_path / "a.png", size=(20, 20))
    changed = folder(tmp_path).fingerprint
    os.rename(tmp_path / "b.png", tmp_path / "c.png")
    assert len({before, changed, folder(tmp_path).fingerprint}) == 3


def test_folder_takes_subfolders_as_classes(tmp_path):
    for name in ["owl/1.png", "owl/more/2.png", "crow/3.png", "wren/4.png"]:
        picture(tmp_path / name)
    photos = folder(tmp_path, labelled=True)
    assert photos.classes == ["crow", "owl", "wren"]
    assert [photos.classes[label] for label in photos.labels] == [name.split("/")[0] for name in photos.names]
    picture(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="loose.png") as caught:
        folder(tmp_path, labelled=True)
    assert "class folders" in one_sentence(caught)
    assert len(folder(tmp_path)) == 5


def test_folder_goes_on_or_stops_at_a_bad_picture(tmp_path):
    picture(tmp_path / "owl/good.png")
    (tmp_path / "owl/empty.png").write_bytes(b"")
    (tmp_path / "owl/page.jpg").write_text("<html>")
    (tmp_path / "owl/loop.png").symlink_to("loop.png")
    (tmp_path / "owl/gone.png").symlink_to("never.png")
    photos = folder(tmp_path)
    assert len(photos) == 5
    with pytest.raises(BadPicture, match="owl/empty.png: the file is empty"):
        list(photos)
    kept = folder(tmp_path, on_error="skip", labelled=True)
    assert kept.names == ["owl/good.png"] and kept.labels.tolist() == [0] and kept[0].size == (8, 6)
    assert Counter(error.reason.split("(")[0].strip() for error in kept.left_out) == {
        "the file is empty": 1,
        "not a picture in any format that Pillow decodes": 1,
        "it is a link that leads back to itself": 1,
        "there is no such file": 1,
    }
    assert {Path(error.name).name for error in kept.left_out} == {"empty.png", "page.jpg", "loop.png", "gone.png"}
    with pytest.raises(ValueError, match='"raise".*"skip"') as caught:
        folder(tmp_path, on_error="ignore")
    one_sentence(caught)
    (tmp_path / "owl/good.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 5"):
        folder(tmp_path, on_error="skip")


def test_links_lead_on_but_never_in_circles(tmp_path):
    picture(tmp_path / "home/a/1.png"), picture(tmp_path / "home/b/2.png"), picture(tmp_path / "outside/3.png")
    picture(tmp_path / "outside/deep/4.png")
    for link, target in {
        "home/a/itself": "home/a", "home/up": "home", "home/top": ".", "home/b/sideways": "home/a",
        "home/far": "outside", "home/again": "outside", "outside/back": "home", "outside/deep/round": "outside",
        "home/root": "/",
    }.items():  # fmt: skip
        (tmp_path / link).symlink_to((tmp_path / target).resolve(), target_is_directory=True)
    (tmp_path / "home/one.png").symlink_to(tmp_path / "outside/3.png")
    assert folder(tmp_path / "home").names == ["a/1.png", "again/3.png", "again/deep/4.png", "b/2.png", "one.png"]


def test_folder_explains_a_wrong_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder pictures/of/birds") as caught:
        folder("pictures/of/birds")
    assert str(tmp_path) in one_sentence(caught)
    picture(tmp_path / "one.png")
    with pytest.raises(NotADirectoryError, match="one.png is a file") as caught:
        folder(tmp_path / "one.png")
    one_sentence(caught)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture.*nothing") as caught:
        folder("empty")
    (tmp_path / "telephone").mkdir()
    for name in ("IMG_1.heic", "IMG_2.HEIC", "README"):
        (tmp_path / "telephone" / name).write_text("")
    with pytest.raises(ValueError, match=r"holds no picture.*\.heic") as caught:
        folder("telephone")
    one_sentence(caught)


# ---- published sets, fabricated in their official layouts -----------------------------------------------------------


def fake_birds(root):
    files = {
        "images.txt": "3 002.Laysan_Albatross/L_3.jpg\n7 044.Frigate.Bird/F_7.jpg\n10 002.Laysan_Albatross/L_10.jpg\n",
        "image_class_labels.txt": "3 2\n7 44\n10 2\n",
        "train_test_split.txt": "3 1\n7 0\n10 0\n",
        "bounding_boxes.txt": "3 60.0 27.0 325.0 304.0\n7 1.5 2.0 3.0 4.0\n10 5.0 6.0 7.0 8.0\n",
        "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n44 044.Frigate.Bird\n",
        "parts/parts.txt": "1 back\n2 left eye\n3 tail\n",
        "parts/part_locs.txt": "3 1 10.5 20 1\n3 2 0 0 0\n3 3 7 8 1\n7 3 1 2 1\n9 1 99 99 1\n10 2 3 4 1\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for line in files["images.txt"].splitlines():
        picture(root / "images" / line.split()[1], size=(int(line.split()[0]), 9))


def test_cub200_reads_the_official_layout(tmp_path):
    fake_birds(tmp_path / "CUB_200_2011")
    photos = cub200(tmp_path / "CUB_200_2011")
    assert photos.names == ["002.Laysan_Albatross/L_3.jpg", "044.Frigate.Bird/F_7.jpg", "002.Laysan_Albatross/L_10.jpg"]
    assert [p.width for p in photos] == [3, 7, 10]
    assert photos.classes == ["Laysan_Albatross", "Frigate.Bird"] and photos.labels.tolist() == [0, 1, 0]
    assert photos.split.tolist() == ["train", "test", "test"]
    assert photos.boxes.tolist() == [[60, 27, 385, 331], [1.5, 2, 4.5, 6], [5, 6, 12, 14]]
    assert photos.keypoint_names == ["back", "left eye", "tail"]
    hidden = [0, 0, 0]
    assert photos.keypoints.tolist() == [
        [[10.5, 20, 1], hidden, [7, 8, 1]], [hidden, hidden, [1, 2, 1]], [hidden, [3, 4, 1], hidden],
    ]  # fmt: skip


def test_published_sets_explain_a_wrong_or_incomplete_folder(tmp_path):
    fake_birds(tmp_path / "CUB_200_2011")
    with pytest.raises(FileNotFoundError, match="no images.txt.*CUB_200_2011") as caught:
        cub200(tmp_path)
    one_sentence(caught)
    for reader in (cub200, butterflies, groceries_full, packages):
        with pytest.raises(FileNotFoundError, match="is not the folder of"):
            reader(tmp_path / "elsewhere")
    (tmp_path / "CUB_200_2011/images/044.Frigate.Bird/F_7.jpg").unlink()
    (tmp_path / "CUB_200_2011/images/002.Laysan_Albatross/L_10.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3 photographs.*044.Frigate.Bird/F_7.jpg") as caught:
        cub200(tmp_path / "CUB_200_2011")
    one_sentence(caught)


def test_butterflies_reads_the_official_layout(tmp_path):
    for name in ("0010001.png", "0010002.png", "0100209.JPG"):
        picture(tmp_path / "images" / name, size=(4, 2))
    (tmp_path / "images/Thumbs.db").write_text("")
    (tmp_path / "segmentations").mkdir()
    marks = Image.frombytes("P", (4, 2), bytes([0, 1, 2, 3, 3, 2, 1, 0]))  # as published: 1 and 3 are the butterfly
    marks.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    marks.save(tmp_path / "segmentations/0010001_seg0.png")
    smaller = Image.fromarray(np.array([[True, False]]))  # than its picture
    smaller.save(tmp_path / "segmentations/0100209_seg0.png")
    photos = butterflies(tmp_path)
    assert photos.names == ["0010001.png", "0010002.png", "0100209.JPG"] and photos.labels.tolist() == [0, 0, 9]
    assert photos.classes[::9] == ["Danaus plexippus", "Vanessa cardui"] and len(photos.classes) == 10
    assert photos.split.tolist() == ["train", "test", "train"]
    assert photos.mask(0).tolist() == [[False, True, False, True], [True, False, True, False]]
    assert photos[2:].mask(0).tolist() == [[True, True, False, False]] * 2
    assert np.array_equal(pickle.loads(pickle.dumps(photos)).mask(2), photos.mask(2))


def fake_groceries(root):
    home = root / "dataset"
    home.mkdir(parents=True)
    icon = "/iconic-images-and-descriptions"
    rows = [
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str),Text",
        f"Kiwi,0,Kiwi,0,{icon}/Fruit/Kiwi/K_Iconic.jpg,x.txt",
        f"Juice-A,1,Juice,2,{icon}/Packages/Juice/Juice-A/A_Iconic.jpg,x.txt",
        f"Leek,2,Leek,1,{icon}/Vegetables/Leek/L_Iconic.jpg,x.txt",
        f"Milk-B,3,Milk,3,{icon}/Packages/Milk/Milk-B/B_Iconic.jpg,x.txt",
    ]
    (home / "classes.csv").write_text("\n".join(rows) + "\n")
    lists = {
        "train": ["train/Fruit/Kiwi/K_001.jpg, 0, 0", "train/Packages/Milk/Milk-B/B_001.jpg, 3, 3"],
        "val": ["val/Packages/Juice/Juice-A/A_001.jpg, 1, 2"],
        "test": ["test/Vegetables/Leek/L_001.jpg, 2, 1", "test/Packages/Milk/Milk-B/B_002.jpg, 3, 3"],
    }
    for split, lines in lists.items():
        (home / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            picture(home / line.split(",")[0])
    for row in rows[1:]:
        picture(home / row.split(",")[4][1:], size=(5, 5))


def test_groceries_full_and_packages_read_the_official_layout(tmp_path):
    fake_groceries(tmp_path)
    whole = groceries_full(tmp_path)
    assert whole.classes == ["Kiwi", "Juice-A", "Leek", "Milk-B"]
    assert whole.coarse_classes == ["Kiwi", "Leek", "Juice", "Milk"]
    assert whole.labels.tolist() == [0, 3, 1, 2, 3] and whole.coarse_labels.tolist() == [0, 3, 2, 1, 3]
    assert whole.split.tolist() == ["train", "train", "val", "test", "test"]
    shop = packages(tmp_path)
    assert shop.classes == ["Juice-A", "Milk-B"] and shop.coarse_classes == ["Juice", "Milk"]
    assert shop.split.tolist() == ["query", "query", "train", "val", "database"]
    assert shop.labels.tolist() == [0, 1, 1, 0, 1] == shop.coarse_labels.tolist()
    assert shop[0].size == (5, 5) and shop[4].size == (8, 6) and shop.names[4] == "test/Packages/Milk/Milk-B/B_002.jpg"
    (tmp_path / "dataset/val/Packages/Juice/Juice-A/A_001.jpg").unlink()
    for reader in (groceries_full, packages):
        with pytest.raises(FileNotFoundError, match="1 of 5 photographs.*val/Packages/Juice/Juice-A/A_001.jpg"):
            reader(tmp_path)


def test_imagenet_goes_by_torchvision(tmp_path):
    names = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish", "Carassius auratus")}
    torch.save((names, []), tmp_path / "meta.bin")
    picture(tmp_path / "val/n01443537/ILSVRC2012_val_00000002.JPEG", size=(9, 9))
    picture(tmp_path / "val/n01440764/ILSVRC2012_val_00000293.JPEG")
    photos = imagenet(tmp_path)
    assert photos.names == ["n01440764/ILSVRC2012_val_00000293.JPEG", "n01443537/ILSVRC2012_val_00000002.JPEG"]
    assert photos.classes == ["tench", "goldfish"] and photos.labels.tolist() == [0, 1]
    assert photos[1].size == (9, 9) and photos.split.tolist() == ["val", "val"]
    with pytest.raises(ValueError, match='"val" and "train"'):
        imagenet(tmp_path, split="test")
    for root, split in ((tmp_path / "absent", "val"), (tmp_path, "train")):
        with pytest.raises(FileNotFoundError, match=f"devkit_t12.tar.gz and ILSVRC2012_img_{split}.tar") as caught:
            imagenet(root, split)
        assert str(root) in one_sentence(caught)


# ---- the real sets --------------------------------------------------------------------------------------------------


def test_groceries():
    photos = groceries()
    assert Counter(photos.split.tolist()) == {"train": 675, "val": 57, "test": 661} and len(set(photos.stamps)) == 1393
    assert len(photos.classes) == 14 and len(photos.coarse_classes) == 5
    assert np.unique(photos.labels).tolist() == list(range(14))
    assert len(set(zip(photos.labels, photos.coarse_labels))) == 14, "a fine class lies in one coarse class"
    assert photos[1392].mode == "RGB" and min(photos[1392].size) > 200


def test_the_real_cub200(official):
    root = official("CUB_200_2011")
    photos = cub200(root)
    assert Counter(photos.split.tolist()) in ({"train": 600, "test": 585}, {"train": 5994, "test": 5794})
    assert len(photos.keypoint_names) == 15 and len(photos.classes) in (20, 200)
    for i, name in enumerate(photos.names):  # the folder's name says the class as well
        assert name.split("/")[0].split(".", 1)[1] == photos.classes[photos.labels[i]]
    assert (np.diff(photos.labels) >= 0).all() and set(photos.labels) == set(range(len(photos.classes)))
    number = {line.split()[1]: line.split()[0] for line in open(root / "images.txt")}
    lines = (line.split() for line in open(root / "parts/part_locs.txt"))
    visible = {(image, part): (x, y) for image, part, x, y, shown in lines if shown == "1"}
    sizes = np.array([Image.open(root / "images" / name).size for name in photos.names])
    chosen = np.random.default_rng(0).choice(len(photos), 100, replace=False)
    for i in chosen:
        for p in range(15):
            place = visible.get((number[photos.names[i]], str(p + 1)))
            expected = [float(place[0]), float(place[1]), 1] if place else [0, 0, 0]
            assert photos.keypoints[i, p].tolist() == expected
    shown = photos.keypoints[..., 2] == 1
    assert 0.6 < shown.mean() < 1 and len(visible) == shown.sum()
    places = photos.keypoints[..., :2]
    assert (places[shown] >= 0).all() and (places <= sizes[:, None])[shown].all(), "keypoints lie in their pictures"
    x0, y0, x1, y1 = photos.boxes.T
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 - x0 > 10).all() and (y1 - y0 > 10).all()
    assert (np.stack([x1, y1], 1) <= sizes + 5).all(), "as published, a few boxes reach up to 5 pixels over the edge"
    inside = (places >= photos.boxes[:, None, :2] - 5) & (places <= photos.boxes[:, None, 2:] + 5)
    assert inside[shown].mean() > 0.99, "keypoints lie in the birds' boxes"
    assert photos[3].size == tuple(sizes[3])


def test_the_real_butterflies(official):
    root = official("leeds_butterfly")
    photos = butterflies(root)
    files = sorted(os.listdir(root / "images"))
    assert len(photos) == 832 and photos.names == files
    assert Counter(photos.labels.tolist()) == Counter(int(name[:3]) - 1 for name in files)
    assert [s == "train" for s in photos.split] == [name[6] in "13579" for name in files]
    for i in range(0, 832, 26):
        mask = photos.mask(i)
        assert mask.dtype == bool and mask.shape == photos[i].size[::-1] and 0.01 < mask.mean() < 0.95


def test_the_real_packages(official):
    root = official("GroceryStoreDataset")
    photos = packages(root)
    assert len(photos) == 1745 + 31 and len(photos.classes) == 31
    assert Counter(photos.split.tolist()) == {"query": 31, "train": 864, "val": 100, "database": 781}
    assert sorted(photos.labels[photos.where("query")]) == list(range(31))
    for name, label, coarse in zip(photos.names, photos.labels, photos.coarse_labels):
        _, branch, kind, product, _ = name.split("/")  # the folders say it as well
        assert (branch, kind, product) == ("Packages", photos.coarse_classes[coarse], photos.classes[label])
    sizes = {photos[i].size for i in range(0, len(photos), 111)}
    assert all(min(size) > 100 for size in sizes)


def test_the_real_groceries_full(official):
    root = official("GroceryStoreDataset")
    photos = groceries_full(root)
    with open(root / "dataset/classes.csv") as file:
        rows = {int(row["Class ID (int)"]): row for row in csv.DictReader(file)}
    assert photos.classes == [rows[i]["Class Name (str)"] for i in range(81)] and len(photos.coarse_classes) == 43
    lines = [line.split(", ") for name in ("train", "val", "test") for line in open(root / f"dataset/{name}.txt")]
    assert photos.names == [path for path, _, _ in lines]
    assert photos.labels.tolist() == [int(fine) for _, fine, _ in lines]
    assert photos.coarse_labels.tolist() == [int(coarse) for *_, coarse in lines]
    assert photos.split.tolist() == [path.split("/")[0] for path, _, _ in lines]


def test_partlib_data_is_where_sets_are_looked_for_first(official, monkeypatch, tmp_path):
    official("CUB_200_2011")
    monkeypatch.chdir(tmp_path)
    assert len(cub200()) >= 1185 and len(butterflies()) == 832
    assert len(packages()) == 1776 and len(groceries_full()) >= 1745
