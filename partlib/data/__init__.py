"""Photographs: the sets of the book, and anyone's own."""

from .groceries import groceries
from .photos import Photos
from .pictures import BadPicture, read_picture

__all__ = ["BadPicture", "Photos", "groceries", "read_picture"]
