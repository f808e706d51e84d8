"""Rendered birds that differ in one or two of seven parts: photographs about which everything is known."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from .._progress import progress
from .bird_parts import PARTS
from .bird_scene import NAMES, Scene
from .photos import Photos

RENDERER = 1  # goes up whenever a picture changes, so that nothing cached about the old ones is used


def toy_birds(n=1200, classes=20, size=256, seed=0) -> "ToyBirds":
    """`n` rendered birds of `classes` kinds that look alike: each differs from another in one or two parts only.

    A class is a choice of a variant (shape and colour) for each of seven parts: beak, crown, eye,
    breast, wing, tail, legs. Pose, scale, place, backdrop, light, the plumage between the parts and
    what is in front vary by chance and say nothing about the class; each part is missing from 1
    picture in 20, and in 2 pictures out of 5 a leaf or a twig may hide some. Picture `i` depends on
    `i`, `classes`, `size` and `seed` alone; its class is `i % classes`, and the classes take turns
    between training and test, so that each has as many in both.

    Args:
        n: how many pictures; they are drawn when asked for.
        classes: how many classes.
        size: side of the pictures in pixels.
        seed: other seeds make other classes and other pictures.

    Raises:
        ValueError: a number is too small.
    """
    for what, given, least in (("n", n, 1), ("classes", classes, 1), ("size", size, 32), ("seed", seed, 0)):
        if given < least:
            raise ValueError(f"toy_birds: {what} is {given}, but must be at least {least}")
    flock = Flock(_related_classes(classes, seed), size, seed)
    rows = np.arange(n)
    return ToyBirds(
        name="toy birds",
        names=[f"bird {i:05d}" for i in rows],
        read=flock.picture,
        stamps=[f"toy bird, renderer {RENDERER}, {classes} classes, {size} px, seed {seed}, number {i}" for i in rows],
        labels=rows % classes,
        classes=[_class_name(number, variants) for number, variants in enumerate(flock.table)],
        split=np.where(rows // classes % 2 == 0, "train", "test"),
        keypoint_names=NAMES,
        read_mask=flock.mask,
        flock=flock,
    )


@dataclass(frozen=True, eq=False)
class Flock:
    """All the pictures that one table of classes, size and seed make, by their number."""

    table: Int[np.ndarray, "c 7"]
    size: int
    seed: int

    def scene(self, row):
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, row]))
        return Scene.random(rng, row % len(self.table), self.table, self.size)

    def picture(self, row):
        return self.scene(row).render()

    def mask(self, row):
        return self.scene(row).mask()


@dataclass(frozen=True, eq=False, repr=False)
class ToyBirds(Photos):
    """A set of rendered birds. `keypoints` and `boxes` are of what is visible and are worked out on first use."""

    flock: Flock = None

    def __post_init__(self):
        super().__post_init__()
        for what in ("boxes", "keypoints"):
            if vars(self)[what] is None:  # what __init__ has set hides the cached property of that name
                del vars(self)[what]

    def scene(self, i) -> Scene:
        """Picture `i` as a description that can be changed one thing at a time and drawn again."""
        return self.flock.scene(int(self.rows[i]))

    def part_masks(self, i):
        """The visible pixels of each part in picture `i`: boolean `(7, size, size)`, no pixel in two."""
        return self.scene(i).part_masks()

    @property
    def attributes(self) -> Int[np.ndarray, "c 7"]:
        """The variant of each part in each class; `variants[part]` names them."""
        return self.flock.table

    @property
    def variants(self):
        """For each part the names of its variants."""
        return {name: part.variants for name, part in PARTS.items()}

    @cached_property
    def keypoints(self):
        return self._geometry[0]

    @cached_property
    def boxes(self):
        return self._geometry[1]

    @cached_property
    def _geometry(self):
        bar = progress(range(len(self)), desc=f"measuring {self.name}", unit="picture", leave=False)
        pairs = [(scene.keypoints(), scene.box()) for scene in map(self.scene, bar)]
        return tuple(np.array(column) for column in zip(*pairs))


def _related_classes(classes, seed):
    """A table of distinct classes: each is an earlier one with one or two parts changed."""
    # A spawn key keeps this stream apart from that of every picture, whose key is (seed, number).
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    choices = np.array([len(part.variants) for part in PARTS.values()])
    table = [tuple(rng.integers(choices).tolist())]
    while len(table) < classes:
        child = np.array(table[rng.integers(len(table))])
        changed = rng.choice(len(choices), size=rng.integers(1, 3), replace=False)
        child[changed] = (child[changed] + rng.integers(1, choices[changed])) % choices[changed]
        if tuple(child.tolist()) not in table:
            table.append(tuple(child.tolist()))
    return np.array(table)


def _class_name(number, variants):
    """Number and looks, such as "017 red-crested forktail"."""
    crown, tail = (PARTS[name].variants[variants[NAMES.index(name)]].split() for name in ("crown", "tail"))
    return f"{number:03d} {crown[1]}-{crown[0]} {tail[0]}tail"
