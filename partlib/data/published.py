"""Published sets of photographs with labelled parts or masks, and ImageNet, in their official layouts."""

import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .download import Source
from .folders import files_of
from .photos import Photos
from .pictures import read_picture, suffixes

CUB = Source(
    title="CUB-200-2011 (11788 photographs of 200 kinds of birds, 1.15 GB)",
    page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    archive="CUB_200_2011.tgz",
    folders=("CUB_200_2011",),
    proof="images.txt",
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    checksum="md5:97eceeb196236b17998738112f37df78",
)
BUTTERFLIES = Source(
    title="the Leeds Butterfly Dataset (832 photographs of 10 species, with masks)",
    page="https://zenodo.org/records/7559420",
    archive="leedsbutterfly_dataset_v1.1.zip",
    folders=("leedsbutterfly", "leeds_butterfly"),
    proof="segmentations",
)
SPECIES = (
    "Danaus plexippus",
    "Heliconius charitonius",
    "Heliconius erato",
    "Junonia coenia",
    "Lycaena phlaeas",
    "Nymphalis antiopa",
    "Papilio cresphontes",
    "Pieris rapae",
    "Vanessa atalanta",
    "Vanessa cardui",
)


def cub200(root=None) -> Photos:
    """Birds with 15 named keypoints: 11788 photographs of 200 kinds, about 500 pixels a side, 5994 for training.

    Labels, split, boxes and keypoints of Caltech-UCSD Birds-200-2011 (Wah, Branson, Welinder, Perona, Belongie,
    technical report CNS-TR-2011-001); for research and education only. As published, a few boxes reach some pixels
    over the picture's edge. A folder with some of the images works as well: the classes that have images are
    numbered from 0.

    Args:
        root: the folder CUB_200_2011; by default in $PARTLIB_DATA or data/downloads, fetched if need be (1.15 GB).

    Raises:
        FileNotFoundError: `root` is another folder, or images are missing.
        DownloadError: it could not be fetched.
    """
    root = CUB.find(root)
    images = _by_number(root / "images.txt")
    numbers = np.array(sorted(images))
    labels, classes = _by_number(root / "image_class_labels.txt"), _by_number(root / "classes.txt")
    split, boxes = _by_number(root / "train_test_split.txt"), _by_number(root / "bounding_boxes.txt")
    parts = _by_number(root / "parts/parts.txt")
    used = sorted({int(labels[i]) for i in numbers})
    x, y, width, height = np.array([boxes[i].split() for i in numbers], dtype=np.float64).T
    return Photos(
        name="cub200",
        labels=np.searchsorted(used, [int(labels[i]) for i in numbers]),
        classes=[classes[c].split(".", 1)[-1] for c in used],
        split=np.array(["train" if split[i] == "1" else "test" for i in numbers]),
        boxes=np.stack([x, y, x + width, y + height], axis=1),
        keypoints=_keypoints(root / "parts/part_locs.txt", numbers, sorted(parts)),
        keypoint_names=[parts[p] for p in sorted(parts)],
        **files_of(root / "images", [images[i] for i in numbers]),
    )


def _by_number(path):
    """The lines "number text" of a file, as a dictionary."""
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {int(number): text.strip() for number, text in lines}


def _keypoints(path, images, parts):
    table = np.loadtxt(path, ndmin=2)  # image, part, x, y, visible
    table = table[np.isin(table[:, 0], images)]
    keypoints = np.zeros((len(images), len(parts), 3))
    keypoints[np.searchsorted(images, table[:, 0]), np.searchsorted(parts, table[:, 1])] = table[:, 2:]
    return keypoints


def butterflies(root=None) -> Photos:
    """Butterflies with their outlines: 832 photographs of 10 species, with a mask each.

    The Leeds Butterfly Dataset (Wang, Markert, Everingham, BMVC 2009); for learning and research only. It has no split
    of its own: a photograph whose number is odd is for training, one whose number is even for test.

    Args:
        root: the folder leedsbutterfly; by default the one in $PARTLIB_DATA or data/downloads.

    Raises:
        FileNotFoundError: `root` is another folder.
        DownloadError: it is not there; says where to get it and where to put it.
    """
    root = BUTTERFLIES.find(root)
    known, pattern = suffixes(), re.compile(r"(00[1-9]|010)\d{4}")  # three digits say the species
    names = sorted(
        path.name
        for path in (root / "images").iterdir()
        if pattern.fullmatch(path.stem) and path.suffix.lower() in known
    )
    stems = [name.split(".")[0] for name in names]
    return Photos(
        name="butterflies",
        labels=np.array([int(stem[:3]) - 1 for stem in stems]),
        classes=list(SPECIES),
        split=np.array(["train" if int(stem) % 2 else "test" for stem in stems]),
        read_mask=partial(_mask, root, names),
        **files_of(root / "images", names),
    )


def _mask(root, names, row):
    values = np.asarray(Image.open(root / "segmentations" / f"{names[row].split('.')[0]}_seg0.png"))
    mask = Image.fromarray(np.isin(values, (1, 3)))  # 0 and 2 are background
    return np.asarray(mask.resize(read_picture(root / "images" / names[row]).size, Image.Resampling.NEAREST))


def imagenet(root, split="val") -> Photos:
    """ImageNet (ILSVRC 2012) by way of torchvision: 1000 classes, 50000 photographs in "val", 1281167 in "train".

    Args:
        root: the folder that holds the archives ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar (6.3 GB) or
            ILSVRC2012_img_train.tar (138 GB). They are unpacked there the first time. Their page is
            https://image-net.org/download-images; an account is needed.
        split: "val" or "train".

    Raises:
        FileNotFoundError: the folder or an archive is not there; says which, and where it belongs.
    """
    if split not in ("val", "train"):
        raise ValueError(f'split is {split!r}: ImageNet has "val" and "train" (its test labels are not public)')
    from torchvision.datasets import ImageNet  # here, so that the other sets load without it

    try:
        official = ImageNet(Path(root).expanduser(), split)
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"ImageNet is not in {root}: put ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_{split}.tar there, "
            f"both from https://image-net.org/download-images ({error})"
        ) from None
    folder = Path(official.split_folder)
    return Photos(
        name=f"imagenet {split}",
        labels=np.array(official.targets),
        classes=[names[0] for names in official.classes],
        split=np.full(len(official), split),
        **files_of(folder, [Path(path).relative_to(folder).as_posix() for path, _ in official.samples]),
    )
