"""The Grocery Store Dataset in its official layout: fruit, vegetables and packages, photographed in shops."""

import csv

import numpy as np

from .download import Source
from .folders import files_of
from .photos import Photos

GROCERIES = Source(
    title="the Grocery Store Dataset (5125 photographs of 81 products, about 0.1 GB)",
    page="https://github.com/marcusklasson/GroceryStoreDataset",
    archive="GroceryStoreDataset-master.zip",
    folders=("GroceryStoreDataset", "GroceryStoreDataset-master"),
    proof="dataset/classes.csv",
)


def groceries_full(root=None) -> Photos:
    """The whole Grocery Store Dataset: 5125 photographs of 81 products in 43 coarse kinds, with its own split.

    Klasson, Zhang, Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels", WACV 2019.
    MIT licence. `groceries()` is a part of it that needs no download.

    Args:
        root: the folder GroceryStoreDataset; by default the one in $PARTLIB_DATA or data/downloads.

    Raises:
        FileNotFoundError: `root` is another folder, or photographs that the lists name are missing.
        DownloadError: it is not there; says where to get it and where to put it.
    """
    root = GROCERIES.find(root) / "dataset"
    return _photos("groceries_full", root, _products(root), _listed(root))


def packages(root=None) -> Photos:
    """31 packages to be found again in shops: an instance-retrieval set of 1745 photographs and 31 clean pictures.

    The packaged products (juice, milk, yoghurt …) of the Grocery Store Dataset. Each product's iconic picture, from a
    shop's web page, is in the split "query"; its photographs of the official test split are in "database"; those of
    "train" and "val" keep these names.

    Args:
        root: the folder GroceryStoreDataset; by default the one in $PARTLIB_DATA or data/downloads.

    Raises:
        FileNotFoundError: `root` is another folder, or pictures that the lists name are missing.
        DownloadError: it is not there; says where to get it and where to put it.
    """
    root = GROCERIES.find(root) / "dataset"
    products = {number: row for number, row in _products(root).items() if "/Packages/" in row[_ICON]}
    queries = [("query", row[_ICON].lstrip("/"), number) for number, row in products.items()]
    shelves = [("database" if split == "test" else split, path, number) for split, path, number in _listed(root)]
    return _photos("packages", root, products, queries + [row for row in shelves if row[2] in products])


_NAME, _NUMBER, _COARSE, _COARSE_NUMBER, _ICON = range(5)  # columns of classes.csv


def _products(root):
    """The rows of classes.csv, in the order of their numbers."""
    with open(root / "classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {int(row[_NUMBER]): row for row in sorted(rows, key=lambda row: int(row[_NUMBER]))}


def _listed(root):
    """(split, path, product's number) of each photograph in the official lists, of lines "path, fine, coarse"."""
    return [
        (split, path, int(number))
        for split in ("train", "val", "test")
        for path, number, _ in csv.reader(
            (root / f"{split}.txt").read_text(encoding="utf-8").splitlines(), skipinitialspace=True
        )
    ]


def _photos(name, root, products, photographs):
    """The set of these (split, path, product's number); products and their coarse kinds are renumbered from 0."""
    splits, paths, numbers = zip(*photographs)
    coarse = {int(row[_COARSE_NUMBER]): row[_COARSE] for row in products.values()}
    coarse_numbers = [int(products[number][_COARSE_NUMBER]) for number in numbers]
    return Photos(
        name=name,
        labels=np.searchsorted(list(products), numbers),
        classes=[row[_NAME] for row in products.values()],
        coarse_labels=np.searchsorted(sorted(coarse), coarse_numbers),
        coarse_classes=[coarse[number] for number in sorted(coarse)],
        split=np.array(splits),
        **files_of(root, list(paths)),
    )
