"""The same photographs seen otherwise: mirrored, or cropped at random, for learning that two views are of one thing."""

import hashlib

import numpy as np
from PIL import Image, ImageOps

from .photos import Photos


def mirrored(photos: Photos) -> Photos:
    """Every photograph from left to right. Only the pictures: boxes, keypoints and masks stay behind."""
    return _seen(photos, "mirrored", lambda picture, row: ImageOps.mirror(picture))


def cropped(photos: Photos, least=0.4, seed=0) -> Photos:
    """A random part of every photograph, half of them mirrored. Only the pictures, as in `mirrored`.

    A photograph's crop depends on its row in the set and on `seed` alone, so a cache of its map can be read again.

    Args:
        least: a crop has between this share of the picture's area and all of it; its sides are within 3 : 4 of the picture's.
    """
    if not 0 < least <= 1:
        raise ValueError(f"least={least}: the smallest crop is a share of the picture's area, over 0 and at most 1")
    return _seen(photos, f"cropped {least} {seed}", lambda picture, row: _crop(picture, least, np.random.default_rng([seed, row])))


def _crop(picture: Image.Image, least, draw):
    area, shape = draw.uniform(least, 1), np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)) / 2)
    wide, high = min(1, np.sqrt(area) * shape), min(1, np.sqrt(area) / shape)
    left, top = draw.uniform(0, 1 - wide), draw.uniform(0, 1 - high)
    width, height = picture.size
    box = [round(left * width), round(top * height), round((left + wide) * width), round((top + high) * height)]
    part = picture.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))
    return ImageOps.mirror(part) if draw.random() < 0.5 else part


def _seen(photos, how, change):
    stamps = [hashlib.sha256(f"{stamp} {how}".encode("utf-8", "surrogateescape")).hexdigest() for stamp in photos.stamps]
    read = lambda row: change(photos.read(row), row)
    return Photos(f"{photos.name} {how.split()[0]}", photos.names, read, stamps, photos.labels, photos.classes, split=photos.split, rows=photos.rows)
