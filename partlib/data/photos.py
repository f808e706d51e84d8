"""A set of photographs: pictures that are read when asked for, with whatever is known about them."""

import hashlib
import reprlib
from dataclasses import dataclass, field, replace
from typing import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from .._progress import progress
from .pictures import BadPicture


@dataclass(frozen=True, eq=False)
class Photos:
    """`n` photographs and what is known about them; nothing is read before it is asked for.

    `photos[7]` is a picture (RGB `PIL.Image`); `photos[photos.test]` is a smaller set, as are
    slices and boolean masks. Everything that a set does not know is `None` or empty.

    Args:
        name: what to call the set.
        names: `n` strings, one a photograph: a path inside the set, or a row's name.
        read: row number → RGB picture.
        stamps: `n` strings that change when a photograph's content does (digest, or size and time).
        digest: row number → digest of its file; none where the stamps tell by themselves, on any machine, what the pictures show.
        labels: `n` class numbers.
        classes: the classes' names, in the order of their numbers.
        coarse_labels, coarse_classes: the same, for a coarser division.
        split: `n` strings out of "train", "val", "test", "query", "database".
        boxes: `(n, 4)` the object's box as x0, y0, x1, y1 in pixels.
        keypoints: `(n, k, 3)` x, y in pixels and 1 where visible (0: hidden, x and y mean nothing).
        keypoint_names: the `k` points' names.
        read_mask: row number → boolean `(height, width)` array, true on the object.
        rows: which rows of `read` these photographs are.
        left_out: the pictures that `readable` could not read, each with the reason.
    """

    name: str
    names: Sequence[str]
    read: Callable[[int], Image.Image]
    stamps: Sequence[str]
    labels: Int[np.ndarray, "n"] | None = None
    classes: Sequence[str] = ()
    coarse_labels: Int[np.ndarray, "n"] | None = None
    coarse_classes: Sequence[str] = ()
    split: np.ndarray | None = None
    boxes: Float[np.ndarray, "n 4"] | None = None
    keypoints: Float[np.ndarray, "n k 3"] | None = None
    keypoint_names: Sequence[str] = ()
    read_mask: Callable[[int], Bool[np.ndarray, "height width"]] | None = None
    digest: Callable[[int], str] | None = None
    rows: Int[np.ndarray, "n"] = None
    left_out: Sequence[BadPicture] = field(default=(), repr=False)

    def __post_init__(self):
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(self.names)))
        for what in _PER_PHOTOGRAPH:
            values = vars(self).get(what)  # not getattr: a kind of set may work a column out on first use
            if values is not None and len(values) != len(self):
                raise ValueError(f"{self.name}: {len(values)} {what} for {len(self)} photographs: give one each")

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        try:
            rows = self.rows[index]
        except IndexError:
            rows = None
        if rows is None or rows.ndim > 1:
            raise IndexError(
                f"{self.name} has {len(self)} photographs: {reprlib.repr(index)} is neither a number below that, a "
                f"slice, an array of such numbers nor {len(self)} truth values; a training set is photos[photos.train]"
            )
        if rows.ndim == 0:
            return self.read(int(rows))
        chosen = np.arange(len(self))[index]
        return replace(self, **{what: _take(vars(self).get(what), chosen) for what in _PER_PHOTOGRAPH})

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        splits = () if self.split is None else dict.fromkeys(self.split)
        sizes = ", ".join(f"{np.sum(self.split == split)} {split}" for split in splits)
        about = [f"{len(self)} photographs", f"{len(self.classes)} classes" if self.classes else "no labels", sizes]
        return f"Photos({self.name}: {'; '.join(a for a in about if a)})"

    def mask(self, i):
        """The object's mask in photograph `i`: boolean `(height, width)`."""
        if self.read_mask is None:
            raise ValueError(f"{self.name} has no masks; toy_birds() and butterflies() do")
        return self.read_mask(int(self.rows[i]))

    def where(self, *splits) -> Int[np.ndarray, "m"]:
        """Indices of the photographs in any of these splits, in order: `photos.where("val", "test")`."""
        if self.split is None:
            raise ValueError(f"{self.name} has no split into training and test: choose the indices yourself")
        if unknown := set(splits) - set(_SPLITS):
            raise ValueError(f"there is no split {unknown.pop()!r}: a split is one of {', '.join(_SPLITS)}")
        return np.flatnonzero(np.isin(self.split, splits))

    @property
    def train(self):
        """Indices of the training photographs."""
        return self.where("train")

    @property
    def val(self):
        """Indices of the validation photographs."""
        return self.where("val")

    @property
    def test(self):
        """Indices of the test photographs."""
        return self.where("test")

    @property
    def fingerprint(self):
        """A digest of which photographs these are, in which order: the key of everything cached about them on this machine."""
        return _digest(self.names, self.stamps)

    @property
    def contents(self):
        """A digest that is the same wherever the files lie and whenever they were copied there: what a record names photographs by. Reads every file."""
        return _digest(self.names, self.stamps if self.digest is None else [self.digest(int(row)) for row in self.rows])

    def readable(self):
        """The same set without the pictures that cannot be read; `left_out` of the result lists those and why."""
        bad = {}
        for i in progress(range(len(self)), desc=f"checking {self.name}", unit="picture", leave=False):
            try:
                self[i]
            except BadPicture as error:
                bad[i] = error
        if len(bad) == len(self):
            raise ValueError(f"{self.name}: none of the {len(self)} pictures can be read; the first: {bad[0]}")
        kept = self[[i for i in range(len(self)) if i not in bad]]
        return replace(kept, left_out=[*self.left_out, *bad.values()])


_SPLITS = ("train", "val", "test", "query", "database")
_PER_PHOTOGRAPH = ("names", "stamps", "rows", "labels", "coarse_labels", "split", "boxes", "keypoints")


def _digest(names, stamps):
    text = "\0".join(f"{name}\0{stamp}" for name, stamp in zip(names, stamps))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _take(values, chosen):
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[chosen]
    return [values[i] for i in chosen]
