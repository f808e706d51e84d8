"""A question whose answer is in the picture: a trunk, a head, and what a step asks. The first of them: which way is up?"""

from abc import abstractmethod
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .. import training
from .views import Crops, check_pictures

TURNS = 4


class Question(training.Task):
    """What all pretext tasks share: photographs as they are asked about, and how often the answer is right.

    Args:
        trunk: pictures `(n, 3, H, W)`, from 0 to 1 → maps `(n, d, h, w)`: a trainable `Backbone`, `convnet()` or any other module; it learns.
        pictures: those to learn from, or `Crops` of them.

    Attributes:
        chance: how often one is right who has not looked, in percent.
    """

    chance: float

    def __init__(self, trunk: nn.Module, pictures: UInt8[Tensor, "n 3 H W"] | Crops):
        super().__init__()
        self.trunk, self.seen = trunk, pictures if isinstance(pictures, Crops) else Crops(pictures)

    def __len__(self):
        return len(self.seen)

    @staticmethod
    @contextmanager
    def drawn_from(seed: int):
        """Inside, weights are drawn from this seed; the caller's chance is as it was, afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield

    def channels(self, picture: Float[Tensor, "1 3 H W"]):
        """How many channels the trunk's maps have, and of how many cells they are."""
        modes = self.trunk.training
        with torch.no_grad():
            maps = self.trunk.eval()(picture)
        self.trunk.train(modes)
        if maps.ndim != 4:
            raise ValueError(f"a trunk makes maps (n, d, h, w) of pictures, not {tuple(maps.shape)}: leave its pooling and its classifier away")
        return maps.shape[1], maps.shape[2:]

    @abstractmethod
    def right(self, pictures: Float[Tensor, "n 3 H W"], generator: torch.Generator) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """Of questions on these pictures, which are answered rightly (1 or 0), and what each weighs."""

    @torch.no_grad()
    def accuracy(self, pictures: UInt8[Tensor, "n 3 H W"], seed=0) -> float:
        """Right answers on whole pictures, which should be other ones than those learnt from, in percent."""
        draw, device, mode = torch.Generator().manual_seed(seed), next(self.parameters()).device, self.training
        self.eval()
        answers = [self.right(some.to(device) / 255, draw) for some in check_pictures(pictures).split(64)]
        self.train(mode)
        right, weight = map(torch.cat, zip(*answers))
        return 100 * float((right * weight).sum() / weight.sum())


def turned(pictures: Float[Tensor, "n c s s"]) -> Float[Tensor, "4*n c s s"]:
    """All pictures upright, then all a quarter, a half and three quarters turned to the left: flips and transpositions, which are exact."""
    left = pictures.transpose(2, 3).flip(2)
    return torch.cat([pictures, left, pictures.flip(2, 3), left.flip(2, 3)])


class Rotation(Question):
    """By how many quarters was the picture turned? [RotNet, Gidaris et al. 2018]

    All four turns of a picture are in one batch, as published. Pictures must be square, or a turn would show in their shape.

    Args:
        seed: of the head's first weights.
    """

    chance = 100 / TURNS

    def __init__(self, trunk: nn.Module, pictures: UInt8[Tensor, "n 3 s s"] | Crops, seed=0):
        super().__init__(trunk, pictures)
        height, width = self.seen.pictures.shape[2:]
        if height != width:
            raise ValueError(f"pictures of {height} x {width} pixels: their turns differ in shape, so give square ones, as in_memory makes them")
        with self.drawn_from(seed):
            self.head = nn.Linear(self.channels(self.seen.whole(torch.arange(1)))[0], TURNS)

    def draw(self, rows, generator):
        return rows, self.seen.draw(len(rows), generator)

    def turns(self, pictures: Float[Tensor, "n 3 s s"]) -> tuple[Float[Tensor, "4*n 4"], Int[Tensor, "4*n"]]:
        """Logits of the four answers to all four questions on each picture, and the right answers."""
        logits = self.head(self.trunk(turned(pictures)).mean((2, 3)))
        return logits, torch.arange(TURNS, device=logits.device).repeat_interleave(len(pictures))

    def forward(self, rows, part):
        return {"rotation": F.cross_entropy(*self.turns(self.seen.seen(rows, part)))}

    def right(self, pictures, generator):
        logits, answers = self.turns(pictures)
        return (logits.argmax(1) == answers).float(), torch.ones(len(answers), device=logits.device)
