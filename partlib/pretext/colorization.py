"""A grey picture: which colours did it have? [Zhang, Isola and Efros 2016]"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .colour import annealed_mean, bins, lab_to_rgb, nearest_bin, rebalanced, rgb_to_lab, soft
from .questions import Question
from .views import Crops, check_pictures


class Colorization(Question):
    """The trunk sees lightness alone, as a grey picture; a 1×1 convolution names for each cell of its map a distribution over colours.

        loss = − mean over cells of w_q* Σ_q Z_q log Ẑ_q

    Z are the shares of the bins in the cell's mean colour, q* the largest of them and w rebalances the colours as the photographs have them.

    Args:
        seed: of the head's first weights.

    Attributes: `centres` (q, 2), `share` (q) and `weight` (q): the bins, p and w.
    """

    def __init__(self, trunk: nn.Module, pictures: UInt8[Tensor, "n 3 H W"] | Crops, seed=0):
        super().__init__(trunk, pictures)
        channels, self.cells = self.channels(self.seen.whole(torch.arange(1)))
        self.register_buffer("centres", bins())
        with self.drawn_from(seed):
            self.head = nn.Conv2d(channels, len(self.centres), 1)
        share, hard = torch.zeros(len(self.centres)), torch.zeros(len(self.centres))
        for rows in torch.arange(len(self)).split(256):
            true = self.true(rgb_to_lab(self.seen.whole(rows)))
            share += soft(true, self.centres).sum(0)
            hard += torch.bincount(nearest_bin(true, self.centres), minlength=len(hard))
        self.register_buffer("share", share / share.sum())
        self.register_buffer("weight", rebalanced(self.share))
        self.chance = 100 * float((hard * self.weight).max() / (hard * self.weight).sum())  # whoever always names the colour that weighs most

    def true(self, lab: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n*h*w 2"]:
        """The mean colour of each of the map's cells."""
        return F.adaptive_avg_pool2d(lab[:, 1:], self.cells).permute(0, 2, 3, 1).flatten(0, 2)

    def logits(self, lab: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n q h w"]:
        """What is thought of each colour in each cell, from L alone."""
        return self.head(self.trunk((lab[:, :1] / 100).expand(-1, 3, -1, -1)))

    def draw(self, rows, generator):
        return rows, self.seen.draw(len(rows), generator)

    def forward(self, rows, part):
        return {"colour": self.lost(rgb_to_lab(self.seen.seen(rows, part)))}

    def lost(self, lab: Float[Tensor, "n 3 H W"]) -> Float[Tensor, ""]:
        """The loss on these pictures."""
        Z = soft(self.true(lab), self.centres)
        predicted = F.log_softmax(self.logits(lab).permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        return -(self.weight[Z.argmax(1)] * (Z * predicted).sum(1)).mean()

    def right(self, pictures, generator):
        lab = rgb_to_lab(pictures)
        answers = nearest_bin(self.true(lab), self.centres)
        return (self.logits(lab).argmax(1).flatten() == answers).float(), self.weight[answers]

    @torch.no_grad()
    def losses(self, pictures: UInt8[Tensor, "n 3 H W"]) -> tuple[float, float]:
        """The loss on whole pictures, and that of the best answer that does not look: the distribution of colours as they weigh, Σ w Z."""
        mode = self.training
        self.eval()
        lost = Z = 0
        for some in check_pictures(pictures).split(64):
            lab = rgb_to_lab(some.to(self.centres.device) / 255)
            one = soft(self.true(lab), self.centres)
            lost, Z = lost + len(some) * float(self.lost(lab)), Z + (self.weight[one.argmax(1)][:, None] * one).sum(0)
        self.train(mode)
        cells = len(pictures) * self.cells[0] * self.cells[1]
        constant = -float((Z * (Z / Z.sum()).clamp(min=1e-12).log()).sum()) / cells
        return lost / len(pictures), constant

    @torch.no_grad()
    def coloured(self, pictures: UInt8[Tensor, "n 3 H W"], temperature=0.38) -> UInt8[Tensor, "n 3 H W"]:
        """The pictures' own lightness in the colours that are guessed from it."""
        mode = self.training
        self.eval()
        lab = rgb_to_lab(check_pictures(pictures).to(self.centres.device) / 255)
        ab = annealed_mean(self.logits(lab), self.centres, temperature)
        self.train(mode)
        ab = F.interpolate(ab, lab.shape[2:], mode="bilinear", align_corners=False)
        return (255 * lab_to_rgb(torch.cat([lab[:, :1], ab], 1))).round().to(torch.uint8).cpu()
