"""Questions that a picture answers itself: which way is up, which tile goes where, which colours did it have.

Each is a `training.Task` with a trunk that learns: any module from pictures to maps, as a trainable `Backbone` with its packaged or with
random weights, or the small `convnet`. What it learns is for other purposes: `codes(trunk, pictures)`.
"""

from . import colour
from .colorization import Colorization
from .jigsaw import Jigsaw, alike, apart, tiles_of
from .questions import Question, Rotation, turned
from .trunk import BatchNorm, Front, codes, convnet
from .views import Crops, Views, in_memory

__all__ = [
    "BatchNorm", "Colorization", "Crops", "Front", "Jigsaw", "Question", "Rotation", "Views", "alike", "apart", "codes", "colour", "convnet",
    "in_memory", "tiles_of", "turned",
]  # fmt: skip
