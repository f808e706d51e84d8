"""Deep Image Retrieval: R-MAC as a network whose projection, regions and exponent are learnt from triplets [Gordo et al. 2017].

The backbone stays as it is: what learns sits on cached maps, and an epoch costs a second or two.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .. import regions, training
from .._checks import check_count, check_labels
from ..features import Maps, batches
from ..whitening import PCAWhitening, moments
from .index import Index


class RegionalCode(nn.Module):
    """Maps in, codes of length 1 out, all of it differentiable:

        x_r = pool of window r,  of length 1;    y_r = A x_r + c,  of length 1;    z = Σ_r w_r y_r,  of length 1.

    With pool "max", w_r = 1 and (A, c) from PCA it is R-MAC with regional whitening [Tolias, Sicre and Jégou 2016]. `start` sets (A, c) so.

    Args:
        channels: d. cells: (h, w) of the maps. dims: of the code.
        pool: of a window: "max", or "gem", the generalised mean with an exponent that is learnt, from 3.
        windows: "rmac", the rigid grid; "whole", one window that is everything; "proposed", windows of many places and sizes, each weighed by
            w_r = exp(⟨v, x_r⟩) / Σ_s exp(⟨v, x_s⟩), v learnt from 0, where all weigh the same.
    """

    def __init__(self, channels: int, cells: tuple[int, int], dims=128, pool="max", windows="rmac"):
        super().__init__()
        h, w = cells
        if pool not in ("max", "gem"):
            raise ValueError(f"pool={pool!r}: windows are pooled by 'max' or 'gem'")
        grids = {"rmac": regions.rmac(h, w), "whole": torch.tensor([[0, 0, w, h]]), "proposed": _many_windows(h, w)}
        if windows not in grids:
            raise ValueError(f"windows={windows!r}: they are 'rmac', 'whole' or 'proposed'")
        self.boxes = grids[windows]
        self.project = nn.Linear(channels, dims)
        self.exponent = nn.Parameter(torch.tensor(3.0)) if pool == "gem" else None
        self.preference = nn.Parameter(torch.zeros(channels)) if windows == "proposed" else None

    def start(self, maps: Maps | Float[Tensor, "n d h w"], power=0.5):
        """A and c from the PCA of these photographs' windows: rows of length λ^(−power), all scaled alike, which changes no code."""
        with torch.no_grad():
            seen = moments(self.describe(some).flatten(0, 1) for some in batches(maps))
            pca = PCAWhitening(self.project.out_features, shrinkage=0.01, power=power).fit(seen)
            weight = (pca.directions_ * pca.variances_**-power).T
            weight = weight / weight.norm(dim=1).mean()
            self.project.weight.copy_(weight)
            self.project.bias.copy_(-weight @ pca.mean_)
        return self

    def describe(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n r d"]:
        """x: the windows' descriptors, of length 1. Nothing in them learns, unless the pool is "gem"."""
        if self.exponent is None:
            return F.normalize(regions.pool(maps, self.boxes, "max"), dim=2)
        largest = maps.detach().amax((2, 3), keepdim=True).clamp(min=1e-6)  # powers of shares of it neither overflow nor vanish
        powers = (maps / largest).clamp(min=1e-6).pow(self.exponent)
        return F.normalize(regions.pool(powers, self.boxes, "mean").pow(1 / self.exponent) * largest.flatten(1)[:, None], dim=2)

    def weights(self, x: Float[Tensor, "n r d"]) -> Float[Tensor, "n r"]:
        """w: how much each window counts."""
        return x.new_full(x.shape[:2], 1 / x.shape[1]) if self.preference is None else torch.softmax(x @ self.preference, dim=1)

    def combine(self, x: Float[Tensor, "n r d"]) -> Float[Tensor, "n dims"]:
        """z, of described windows."""
        return F.normalize(torch.einsum("nr,nrd->nd", self.weights(x), F.normalize(self.project(x), dim=2)), dim=1)

    def forward(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n dims"]:
        """z, of maps."""
        return self.combine(self.describe(maps))

    @torch.no_grad()
    def encode(self, maps: Maps | Float[Tensor, "n d h w"]) -> Float[Tensor, "n dims"]:
        """Codes of all photographs, batch by batch."""
        return torch.cat([self(some) for some in batches(maps)])


def _many_windows(h, w):
    """Windows of a half, two thirds and all of the shorter side, overlapping by three quarters or so."""
    short = min(h, w)
    sides = sorted({max(1, round(short * share)) for share in (1 / 2, 2 / 3, 1)})
    return torch.cat([regions.windows(h, w, (side,), step=max(1, side // 4)) for side in sides])


def triplet_loss(query: Float[Tensor, "n d"], right: Float[Tensor, "n d"], wrong: Float[Tensor, "n d"], margin=1.0) -> Float[Tensor, ""]:
    """mean ½ max(0, m + ‖q − d⁺‖² − ‖q − d⁻‖²) [Gordo et al. 2017, section 4.1]."""
    near, far = (query - right).square().sum(1), (query - wrong).square().sum(1)
    return 0.5 * (margin + near - far).clamp(min=0).mean()


class Triplets(training.Task):
    """What `training.fit` trains a `RegionalCode` for: a photograph nearer to its like than to the hardest of the others.

    Who is alike is looked up in the index of the epoch's codes. Without labels a photograph's like are its own other views and its mutual
    neighbours, who are among each other's k nearest; of the others, the nearest `spare` may well be of its kind too and are left in peace,
    and its hard negatives are the `hard` nearest after them. With labels: like is who has the label, and the hard negatives are the nearest who have another.

    Args:
        code: what learns. views: maps of the same photographs; the first as they are, the others seen otherwise (`data.mirrored`, `data.cropped`).
        labels: `(n,)`, or None. neighbours: k. spare, hard: see above; at most a tenth and a half of the photographs. margin: m.
    """

    def __init__(self, code: RegionalCode, views, labels=None, neighbours=10, spare=30, hard=30, margin=1.0):
        super().__init__()
        self.code, self.margin = code, margin
        with torch.no_grad():  # where no exponent is learnt, windows are described once and for all
            look = (lambda some: some.half()) if code.exponent is not None else code.describe
            self.seen = [torch.cat([look(some) for some in batches(maps)]) for maps in views]
        n = len(self.seen[0])
        if any(len(view) != n for view in self.seen):
            raise ValueError(f"views of {', '.join(str(len(view)) for view in self.seen)} photographs: they must be of the same ones, in the same order")
        check_count(neighbours, n - 1, "neighbours", "other photographs")
        self.labels = None if labels is None else torch.from_numpy(check_labels(labels, n))
        self.neighbours, self.spare = neighbours, min(spare, n // 10)
        self.register_buffer("right", torch.arange(n)[:, None].repeat(1, neighbours))
        self.register_buffer("wrong", torch.arange(n)[:, None].repeat(1, max(1, min(hard, n // 2))))

    def __len__(self):
        return len(self.right)

    def begin(self, epoch, generator):
        """Look up, by the codes as they are now, who is right and who is wrong."""
        with torch.no_grad():
            codes = torch.cat([self._codes(0, rows) for rows in torch.arange(len(self)).split(256)])
        order = torch.from_numpy(Index(codes).search(codes, len(codes))[1])
        order = order[order != torch.arange(len(order))[:, None]].view(len(order), -1)
        for i, nearest in enumerate(order):
            right, wrong = self._judge(i, nearest, order)
            self.right[i] = _filled(right[: self.right.shape[1]], self.right.shape[1], i)
            self.wrong[i] = _filled(wrong[: self.wrong.shape[1]], self.wrong.shape[1], int(nearest[-1]))
        return []

    def _judge(self, i, nearest, order):
        if self.labels is not None:
            same = self.labels[nearest] == self.labels[i]
            return nearest[same], nearest[~same]
        chosen = nearest[: self.neighbours]
        mutual = (order[chosen, : self.neighbours] == i).any(1)
        return chosen[mutual], nearest[max(self.spare, self.neighbours) :]

    def draw(self, rows, generator):
        """Each photograph, one of its like in any view (itself only in another one), and one of its hard negatives."""
        pick = lambda table: table[rows, torch.randint(table.shape[1], rows.shape, generator=generator)]
        right, view = pick(self.right), torch.randint(len(self.seen), rows.shape, generator=generator)
        other = torch.randint(1, max(2, len(self.seen)), rows.shape, generator=generator) % len(self.seen)
        return rows, right, torch.where(right == rows, other, view), pick(self.wrong)

    def forward(self, rows, right, view, wrong):
        """The loss of these triplets."""
        some = [(view == v).nonzero()[:, 0] for v in range(len(self.seen))]
        theirs = torch.cat([self._codes(v, right[own]) for v, own in enumerate(some)])[torch.cat(some).argsort()]
        return {"triplet": triplet_loss(self._codes(0, rows), theirs, self._codes(0, wrong), self.margin)}

    def _codes(self, view, rows):
        some = self.seen[view][rows]
        return self.code.combine(some) if self.code.exponent is None else self.code(some.float())


def _filled(found, count, otherwise):
    return torch.cat([found, torch.full((count - len(found),), otherwise, dtype=torch.long)])
