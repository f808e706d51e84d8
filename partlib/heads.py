"""The part head: part filters, a pool over regions, one linear layer without bias; and what its training may ask for.

    S_pr = ⟨u_p, x_r⟩,    b_p = Σ_r α_pr S_pr,    ℓ_c = Σ_p V_cp b_p

α says how a pool weighs regions: all on the best one (max), evenly (mean), by softmax, or by how much each adds to a
generalised mean (GeM). So a logit is a sum over parts and regions of V_cp α_pr S_pr, whatever the pool: `cam` draws the terms.
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_count, check_maps
from .regions import iou, windows

POOLS = ("max", "mean", "softmax", "gem")


class PartHead(nn.Module):
    """Maps `(n, d, h, w)` in, logits `(n, c)` out, by way of a bag of parts `(n, p)`.

    Args:
        channels: d. parts: p. classes: c; 0 leaves the linear layer out.
        pool: "max", "mean", "softmax" (of scores over `temperature`) or "gem" (of power `power`, of positive scores).
        sizes: sides of the regions in cells: a region's score is the mean of its cells'.
        presence: each part has a threshold t_p, S_pr = max(⟨u_p, x_r⟩ − t_p, 0): where no region passes it, the part is absent and says
            nothing.
        background: one more filter, which competes for regions (`assignments`) and has no say in the bag.
        norm: a batch norm without scale or shift between bag and linear layer; `folded` takes it out again.
        seed: of the filters (orthogonal) and weights.

    Cells are taken as they are, not of length 1: how strongly a cell is active says how much of an object it is. Maps are divided by
    `scale`, a number to be set to the mean length of a cell, so that scores are of the size of cosines on any backbone.
    """

    def __init__(
        self, channels: int, parts=64, classes=0, pool="max", sizes=(1,), temperature=0.1, power=3.0, presence=False, background=False,
        norm=False, seed=0,
    ):  # fmt: skip
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: a part head pools by {', '.join(POOLS)}")
        check_count(parts, max(parts, 1), "parts", "parts")
        self.pool, self.sizes, self.temperature, self.power = pool, tuple(sizes), temperature, power
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.filters = nn.Conv2d(channels, parts + background, 1, bias=False)
            nn.init.orthogonal_(self.filters.weight)
            self.classes = nn.Linear(parts, classes, bias=False) if classes else None
        self.thresholds = nn.Parameter(torch.zeros(parts)) if presence else None
        self.norm = nn.BatchNorm1d(parts, affine=False) if norm else None
        self.parts = parts
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c"]:
        """Logits of the classes."""
        if self.classes is None:
            raise ValueError("this head has no classes, only a bag of parts: head.bag(maps), or PartHead(..., classes=c)")
        bag = self.bag(maps)
        return self.classes(bag if self.norm is None else self.norm(bag))

    def bag(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n p"]:
        """b: how much there is of each part."""
        scores = self.scores(maps)
        return (self.attention(scores) * scores).sum(2)

    def scores(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n p r"]:
        """S of every region, all sizes one after the other, in the order of `boxes`."""
        cells = self.filters(check_maps(maps) / self.scale)[:, : self.parts]
        scores = torch.cat([F.avg_pool2d(cells, side, 1).flatten(2) for side in self._fitting(maps)], dim=2)
        return scores if self.thresholds is None else (scores - self.thresholds[:, None]).clamp(min=0)

    def attention(self, scores: Float[Tensor, "n p r"]) -> Float[Tensor, "n p r"]:
        """α: how much each region counts in its part's bag; b_p = Σ_r α_pr S_pr."""
        if self.pool == "max":
            return F.one_hot(scores.argmax(2), scores.shape[2]).to(scores.dtype)
        if self.pool == "mean":
            return torch.full_like(scores, 1 / scores.shape[2])
        if self.pool == "softmax":
            return torch.softmax(scores / self.temperature, dim=2)
        # (mean_r S^γ)^(1/γ) = Σ_r S_r · S_r^(γ−1) / (R b^(γ−1)). Relative to the largest, powers neither overflow nor vanish.
        values = scores.clamp(min=0)
        relative = values / values.amax(2, keepdim=True).clamp(min=1e-12)
        mean = relative.clamp(min=1e-6).pow(self.power).mean(2, keepdim=True).pow(1 - 1 / self.power)
        return relative.pow(self.power - 1) / (scores.shape[2] * mean)

    def assignments(self, maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n q h w"]:
        """To which part each cell belongs: the softmax over parts of its cosines with the filters over `temperature`, the background last."""
        cosines = F.conv2d(F.normalize(maps, dim=1), F.normalize(self.filters.weight, dim=1))
        return torch.softmax(cosines / self.temperature, dim=1)

    def boxes(self, h: int, w: int) -> Int[Tensor, "r 4"]:
        """The regions in a map of h x w cells."""
        return windows(h, w, self.sizes)

    def _fitting(self, maps):
        sides = [side for side in self.sizes if side <= min(maps.shape[2:])]
        if not sides:
            raise ValueError(f"no region of sides {self.sizes} fits maps of {maps.shape[2]} x {maps.shape[3]} cells: give smaller sizes=")
        return sides

    def folded(self) -> tuple[Float[Tensor, "c p"], Float[Tensor, "c"]]:
        """V and a constant such that ℓ = V b + constant: a batch norm's scale goes into V, its shift is the constant."""
        weights = self.classes.weight
        if self.norm is None:
            return weights, weights.new_zeros(len(weights))
        folded = weights / (self.norm.running_var + self.norm.eps).sqrt()
        return folded, -folded @ self.norm.running_mean


# What training may ask for besides the right class. Each is a number to be made small.


def orthogonality(filters: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
    """‖ÛÛᵀ − I‖²_F / (p (p − 1)): the mean squared cosine of two filters. Keeps parts from being the same part."""
    cosines = F.normalize(filters, dim=1) @ F.normalize(filters, dim=1).T
    p = len(filters)
    return (cosines - torch.eye(p, device=cosines.device)).square().sum() / max(p * (p - 1), 1)


def indecision(assigned: Float[Tensor, "n p h w"]) -> Float[Tensor, ""]:
    """mean_r H(a_r): the entropy of a cell's parts. Small when each cell is of one part; alone, it is smallest with one part for all."""
    return _entropy(assigned, 1).mean()


def imbalance(assigned: Float[Tensor, "n p h w"]) -> Float[Tensor, ""]:
    """log p − H(mean_r a_r): 0 when all parts have as many cells. Keeps `indecision` from ending in one part."""
    share = assigned.mean((0, 2, 3))
    return torch.log(torch.tensor(float(len(share)))) - _entropy(share, 0)


def shared_use(weights: Float[Tensor, "c p"], temperature=0.1) -> Float[Tensor, ""]:
    """mean_p H(softmax_c V_cp / τ): small when a part speaks for one class."""
    return _entropy(torch.softmax(weights / temperature, dim=0), 0).mean()


def spread(assigned: Float[Tensor, "n p h w"]) -> Float[Tensor, ""]:
    """How far a part's cells lie from their middle: Σ a ‖z − z̄‖², z in widths of the map, mean over photographs and parts."""
    n, p, h, w = assigned.shape
    y, x = (((torch.arange(side, device=assigned.device) + 0.5) / side) for side in (h, w))
    share = assigned / assigned.sum((2, 3), keepdim=True).clamp(min=1e-6)
    places = torch.stack([y[:, None].expand(h, w), x[None].expand(h, w)])
    middle = torch.einsum("nphw,zhw->npz", share, places)
    return (torch.einsum("nphw,zhw->npz", share, places.square()) - middle.square()).sum(2).mean()


def inequivariance(assigned: Float[Tensor, "n p h w"], mirrored: Float[Tensor, "n p h w"]) -> Float[Tensor, ""]:
    """½ ‖a − a'‖₁ of a cell, mean over cells: how much the parts of the mirrored pictures are not the parts, mirrored."""
    return (assigned - mirrored.flip(3)).abs().sum(1).mean() / 2


def absence(assigned: Float[Tensor, "n p h w"]) -> Float[Tensor, ""]:
    """1 − mean_p max_i max_r a: 0 when each part is somewhere in the batch [Van der Klis et al. 2023, presence loss]."""
    return 1 - assigned.amax((0, 2, 3)).mean()


def contrast(codes: Float[Tensor, "n D"], others: Float[Tensor, "n D"], known: Tensor | None = None, temperature=0.1) -> Float[Tensor, ""]:
    """InfoNCE: −log of the share that each code's own partner has in Σ_j exp(⟨z_i, z'_j⟩ / τ), both ways [van den Oord et al. 2018].

    Args:
        codes, others: of length 1, row i of one the partner of row i of the other. known: (n, n), true on pairs that may be of one kind
            too and are not to be pushed apart; the diagonal counts always.
    """
    similar = codes @ others.T / temperature
    if known is not None:
        similar = similar.masked_fill(known & ~torch.eye(len(codes), dtype=torch.bool, device=codes.device), -torch.inf)
    partner = torch.arange(len(codes), device=codes.device)
    return (F.cross_entropy(similar, partner) + F.cross_entropy(similar.T, partner)) / 2


def _entropy(share, dim):
    return -(share * share.clamp(min=1e-12).log()).sum(dim)


# What has become of the parts.


class Collapse(UserWarning):
    """Parts that do not do what parts are for; the message says which way, with the numbers."""


@torch.no_grad()
def diagnose(head: PartHead, maps: Float[Tensor, "n d h w"], foreground: Tensor | None = None) -> dict[str, float]:
    """What a look at an epoch's parts tells, shares in percent.

    Args:
        foreground: `(n, h, w)` true on the object, where it is known, or guessed (`partnet.foreground`).

    The numbers: `dead`, parts that are the best of no region and whose bag is the same for all photographs. `duplicates`, pairs of parts whose best
    regions overlap (IoU over ½), averaged over photographs. `copies`, pairs where they do so in more than half of them. `alike`, the highest cosine of each filter with another, averaged.
    `effective`, exp(H) of how often each part is the best of a region, on the foreground where that is given. `carriers`, parts that
    carry 80 % of all contributions, without their signs. `foreground`, best regions whose middle is on it.
    """
    scores = head.eval().scores(maps)
    n, p, r = scores.shape
    bag = (head.attention(scores) * scores).sum(2)
    boxes = head.boxes(*maps.shape[2:])
    where = scores.argmax(2)
    overlap = (iou(boxes, boxes) > 0.5).to(where.device)
    upper = torch.triu_indices(p, p, 1, device=where.device)
    together = overlap[where[:, upper[0]], where[:, upper[1]]].float().mean(0) if p > 1 else torch.zeros(1)
    middle = (boxes[:, :2] + boxes[:, 2:]) // 2
    on = torch.ones(n, r, dtype=torch.bool) if foreground is None else foreground[:, middle[:, 1], middle[:, 0]]
    best = scores.argmax(1)
    winners = torch.bincount(best[on] if on.any() else best.flatten(), minlength=p).float()
    alike = F.normalize(head.filters.weight[:p].flatten(1), dim=1)
    cosines = (alike @ alike.T).fill_diagonal_(-1)
    found = {
        "dead": 100 * float(((bag.std(0, correction=0) <= 1e-6 * bag.abs().amax().clamp(min=1e-12)) & (winners == 0)).float().mean()),
        "duplicates": 100 * float(together.mean()),
        "copies": 100 * float((together > 0.5).float().mean()),
        "alike": float(cosines.amax(1).mean()) if p > 1 else 0.0,
        "effective": float(_entropy(winners / winners.sum(), 0).exp()),
    }
    if head.classes is not None:
        evidence = (head.classes.weight.abs()[None] * bag.abs()[:, None]).mean((0, 1)).sort(descending=True).values
        found["carriers"] = float(1 + (evidence.cumsum(0) < 0.8 * evidence.sum()).sum())
    if foreground is not None:
        found["foreground"] = 100 * float(on.gather(1, where.flatten(1)).float().mean())
    return found


def warn_of_collapse(found: dict[str, float]):
    """Say by name what `diagnose` found wrong, as a `Collapse` warning."""
    wrong = [
        f"{found['dead']:.0f} % of the parts are dead: they answer to no photograph more than to another" if found["dead"] > 5 else "",
        f"{found['duplicates']:.0f} % of the pairs of parts look at the same regions" if found["duplicates"] > 30 else "",
        f"filters are copies of one another (cosine {found['alike']:.2f})" if found["alike"] > 0.95 else "",
        f"only {found['effective']:.1f} parts share all regions" if found["effective"] < 2 else "",
    ]
    if any(wrong):
        hint = "give orthogonality or imbalance more weight, a lower rate, or ask for fewer parts"
        warnings.warn(f"the parts collapsed: {'; '.join(filter(None, wrong))}. {hint[0].upper()}{hint[1:]}", Collapse, stacklevel=3)
