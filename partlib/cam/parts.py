"""Part-CAM: a part head's logit is ℓ_c = Σ_p V_cp b_p, so its parts' contributions need not be estimated."""

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_labels, check_maps
from ..heads import PartHead


@dataclass(frozen=True)
class PartContributions:
    """κ[n, c, p] = V_cp b_p, what each part adds to each logit, and the `constant` (c,) that a batch norm leaves."""

    values: Float[Tensor, "n c p"]
    constant: Float[Tensor, "c"]

    @property
    def logits(self) -> Float[Tensor, "n c"]:
        """The logits that these contributions explain: their sums, plus the constant."""
        return self.values.sum(2) + self.constant


@torch.no_grad()
def part_contributions(head: PartHead, maps: Float[Tensor, "n d h w"]) -> PartContributions:
    """What each part adds to each logit; without a part, a logit is less by exactly this."""
    weights, constant = _decides(head).folded()
    return PartContributions(weights[None] * head.bag(check_maps(maps))[:, None], constant)


@torch.no_grad()
def part_maps(head: PartHead, maps: Float[Tensor, "n d h w"], c: int) -> Float[Tensor, "n p h w"]:
    """What each cell adds to the logit of class c by way of each part: V_cp α_pr S_pr of the regions r that cover it.

    A region's share is spread evenly over its cells, so a part's map adds up to its contribution, whatever the pool. Regions that a
    max pool passes over show nothing: they took no part in the decision. For how much each answers, see `evidence_maps`.
    """
    weights = _decides(head).folded()[0][c]
    scores = head.scores(check_maps(maps))
    return _painted(weights[:, None] * head.attention(scores) * scores, head, maps)


@torch.no_grad()
def evidence_maps(head: PartHead, maps: Float[Tensor, "n d h w"], c: int) -> Float[Tensor, "n p h w"]:
    """V_cp S_pr of all regions, whether the pool took them or not: a picture of where evidence is. It adds up to nothing."""
    return _painted(_decides(head).folded()[0][c][:, None] * head.scores(check_maps(maps)), head, maps)


@dataclass(frozen=True)
class ScoreSheet:
    """One decision written out, what adds most first: `contributions` κ_p = w_p b_p of `weights` and `bag`, and the `constant`.

    `parts` are the numbers of the parts, `boxes` their strongest regions in cells of a map of `cells` = (h, w). A part that is absent, with
    no region over its threshold, has the empty box 0, 0, 0, 0.
    """

    c: int
    against: int | None
    parts: Int[Tensor, "p"]
    contributions: Float[Tensor, "p"]
    weights: Float[Tensor, "p"]
    bag: Float[Tensor, "p"]
    boxes: Int[Tensor, "p 4"]
    cells: tuple[int, int]
    constant: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        """The logit of class c, or its lead over `against`: the sum of the sheet."""
        return self.contributions.sum() + self.constant


@torch.no_grad()
def score_sheet(head: PartHead, maps: Float[Tensor, "1 d h w"], c: int, against: int | None = None) -> ScoreSheet:
    """What each part of one photograph adds to the logit of class c: κ_p = V_cp b_p; or to its lead, κ_p = (V_cp − V_c'p) b_p.

    Args:
        against: class c'. Softmax sees leads only, so "why c rather than c'?" leaves out what speaks for both.
    """
    weights, constants = _decides(head).folded()
    if len(check_maps(maps)) != 1:
        raise ValueError(f"a score sheet is of one photograph, and these are the maps of {len(maps)}: write maps[i][None]")
    _numbers([c] if against is None else [c, against], len(weights), "classes")
    if against == c:
        raise ValueError(f"class {c} has no lead over itself: give another class as against=")
    row, constant = weights[c], constants[c]
    if against is not None:
        row, constant = row - weights[against], constant - constants[against]
    bag = head.bag(maps)[0]
    boxes = strongest(head, maps)[0]
    parts = (row * bag).argsort(descending=True)
    return ScoreSheet(c, against, parts, (row * bag)[parts], row[parts], bag[parts], boxes[parts.cpu()], tuple(maps.shape[2:]), constant)


@torch.no_grad()
def strongest(head: PartHead, maps: Float[Tensor, "n d h w"]) -> Int[Tensor, "n p 4"]:
    """The box of each part's strongest region, in cells; 0, 0, 0, 0 where the part is absent: no region passes its threshold."""
    scores = head.scores(check_maps(maps))
    boxes = head.boxes(*maps.shape[2:])[scores.argmax(2).cpu()]
    if head.thresholds is not None:
        boxes[(scores.amax(2) == 0).cpu()] = 0
    return boxes


@torch.no_grad()
def what_if(head: PartHead, maps: Float[Tensor, "n d h w"], off: Sequence[int]) -> Float[Tensor, "n c"]:
    """Logits with the parts `off` switched off: as if there were nothing of them anywhere, b_p = 0.

    They are less by Σ κ_cp of these parts, exactly, because no part's bag depends on another's.
    """
    weights, constant = _decides(head).folded()
    bag = head.bag(check_maps(maps))
    bag[:, _numbers(off, head.parts, "parts")] = 0
    return bag @ weights.T + constant


@dataclass(frozen=True)
class CategoryParts:
    """What classes are made of: `mean` contributions of the photographs of class c to ℓ_c, and `minus_rest`, less the mean of all others.

    A row of `mean` and its `constant` add up to the mean logit of c on its own photographs. A row of `minus_rest` adds up to how much
    higher that is than on the others, with no constant: it is the same for all photographs.
    """

    mean: Float[Tensor, "c p"]
    minus_rest: Float[Tensor, "c p"]
    constant: Float[Tensor, "c"]


@torch.no_grad()
def category_parts(head: PartHead, bags: Float[Tensor, "n p"], labels: Int[np.ndarray, "n"]) -> CategoryParts:
    """The category view: V_cp E[b_p | c], and V_cp (E[b_p | c] − E[b_p | not c]).

    Args:
        bags: of these photographs, by `head.bag` or `PartNet.bag`. labels: their classes, each class of the head at least once.
    """
    weights, constant = _decides(head).folded()
    if bags.ndim != 2 or bags.shape[1] != head.parts:
        raise ValueError(f"expected bags (n, {head.parts}) of this head's parts, not {tuple(bags.shape)}: head.bag(maps) makes them")
    labels = check_labels(labels, len(bags))
    _numbers(labels, len(weights), "classes")
    own = F.one_hot(torch.from_numpy(labels).to(bags.device), len(weights)).to(bags.dtype)
    count = own.sum(0)
    if (count == 0).any() or (count == len(bags)).any():
        without = torch.nonzero((count == 0) | (count == len(bags))).flatten().tolist()
        raise ValueError(f"classes {without} have no photographs here, or no others to be compared with: give some of each class")
    inside, outside = own.T @ bags / count[:, None], (1 - own).T @ bags / (len(bags) - count)[:, None]
    return CategoryParts(weights * inside, weights * (inside - outside), constant)


def _decides(head):
    if head.classes is None:
        raise ValueError("this head was learnt without classes, so it decides nothing that could be explained: fit(maps, labels) learns some")
    return head


def _numbers(given, count, of):
    """Numbers of a head's parts or classes, as a tensor."""
    given = torch.as_tensor(given).flatten()
    if len(given) and (given.dtype == torch.bool or given.is_floating_point() or given.min() < 0 or given.max() >= count):
        few = ", ".join(map(str, given[:5].tolist())) + (" …" if len(given) > 5 else "")
        raise ValueError(f"this head has {count} {of}, to be named by whole numbers from 0 to {count - 1}, not {few}")
    return given.long()


def _painted(values, head, maps):
    """Values of regions `(n, p, r)`, each spread over its region's cells."""
    h, w = maps.shape[2:]
    cover = torch.zeros(values.shape[2], h, w, dtype=values.dtype, device=values.device)
    for r, (x0, y0, x1, y1) in enumerate(head.boxes(h, w).tolist()):
        cover[r, y0:y1, x0:x1] = 1 / ((x1 - x0) * (y1 - y0))
    return torch.einsum("npr,rhw->nphw", values, cover)
