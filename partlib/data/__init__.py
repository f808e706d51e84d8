"""Photographs: the sets of the book, and anyone's own."""

from .bird_scene import Scene
from .buildings import Buildings, revisited
from .download import DownloadError
from .folders import folder
from .groceries import groceries
from .photos import Photos
from .pictures import BadPicture, read_picture
from .products import groceries_full, packages
from .published import butterflies, cub200, imagenet
from .toy_birds import ToyBirds, toy_birds
from .views import cropped, mirrored

__all__ = [
    "BadPicture", "Buildings", "DownloadError", "Photos", "Scene", "ToyBirds", "butterflies", "cropped", "cub200", "folder", "groceries", "groceries_full",
    "imagenet", "mirrored", "packages", "read_picture", "revisited", "toy_birds",
]  # fmt: skip
