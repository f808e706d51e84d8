"""Oxford and Paris revisited: buildings to be found again among others, with answers that are easy, hard, or junk."""

import os
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Sequence

import numpy as np
from jaxtyping import Int

from .download import DownloadError
from .folders import files_of
from .photos import Photos

PAGE = "http://cmp.felk.cvut.cz/revisitop/"
NAMES = ("roxford5k", "rparis6k")


@dataclass(frozen=True, eq=False, repr=False)
class Buildings(Photos):
    """Queries, cut out by their boxes, and the database; `easy`, `hard` and `junk` are, of each query, numbers of photographs in the split "database"."""

    easy: Sequence[Int[np.ndarray, "a"]] = ()
    hard: Sequence[Int[np.ndarray, "b"]] = ()
    junk: Sequence[Int[np.ndarray, "c"]] = ()


def revisited(name="roxford5k", root=None) -> Buildings:
    """Revisited Oxford or Paris (Radenović, Iscen, Tolias, Avrithis, Chum, CVPR 2018), in the layout of its authors: jpg/, gnd_<name>.pkl.

    The queries (split "query") come first, each cut out by its box, as the protocol wants; `retrieval.revisited` measures by `easy`, `hard` and `junk`.

    Args:
        name: "roxford5k" or "rparis6k".
        root: the folder of that name; by default the one in $PARTLIB_DATA or data/downloads.

    Raises:
        FileNotFoundError: `root` is another folder, or photographs that the lists name are missing.
        DownloadError: it is not there; says where to get it and where to put it (there is no one archive of it to fetch).
        ValueError: the file of answers holds more than lists, numbers and names, and is not opened.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: revisited sets are {' and '.join(NAMES)}")
    root = Path(root or Path(os.environ.get("PARTLIB_DATA", "data/downloads")) / name).expanduser()
    if not root.is_dir():
        raise DownloadError(f"{root} is not there: {PAGE} says where the photographs are, for {root / 'jpg'}, and has {root / f'gnd_{name}.pkl'}")
    if not (root / f"gnd_{name}.pkl").exists():
        raise FileNotFoundError(f"{root} is not the folder of {name}: it has no gnd_{name}.pkl, which {PAGE} has")
    truth = plain_pickle(root / f"gnd_{name}.pkl")
    queries, database, answers = truth["qimlist"], truth["imlist"], truth["gnd"]
    files = files_of(root / "jpg", [f"{one}.jpg" for one in (*queries, *database)])
    boxes = [tuple(round(float(side)) for side in np.ravel(own["bbx"])) for own in answers]
    files |= {
        "read": partial(_read, files["read"], boxes),
        "stamps": [_boxed(files["stamps"].__getitem__, boxes, row) for row in range(len(files["stamps"]))],
        "digest": partial(_boxed, files["digest"], boxes),
    }
    lists = {what: [np.asarray(own[what], dtype=int) for own in answers] for what in ("easy", "hard", "junk")}
    return Buildings(name=name, split=np.array(["query"] * len(queries) + ["database"] * len(database)), **files, **lists)


def _read(whole, boxes, row):
    return whole(row).crop(boxes[row]) if row < len(boxes) else whole(row)


def _boxed(stamp, boxes, row):
    return f"{stamp(row)} {boxes[row]}" if row < len(boxes) else stamp(row)


def plain_pickle(file: Path):
    """What a pickle holds, if it holds nothing but lists, dictionaries, names, numbers and arrays of numbers; whatever else it asks for is refused.

    A pickle is a program: it may call anything by name. This one may call what makes an array out of bytes, and nothing else.
    """
    with open(file, "rb") as stream:
        try:
            return _Plain(stream, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{file} is not read ({error}): fetch it again from its authors") from None


class _Plain(pickle.Unpickler):
    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np._core.numeric._frombuffer
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # of bytes, in pickles by Python 2
            return lambda text, encoding="latin1": text.encode(encoding) if encoding == "latin1" else _refuse(module, name)
        _refuse(module, name)


def _refuse(module, name):
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain numbers and names are taken")
