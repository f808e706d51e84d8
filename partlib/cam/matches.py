"""Why two photographs match: the cosine of their codes, written out as a sum over parts, each with a box in both photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_maps
from ..heads import PartHead
from .class_maps import object_box
from .parts import strongest

if TYPE_CHECKING:  # a name in a signature: who explains a head alone need not load what trains one
    from ..partnet import PartNet


@dataclass(frozen=True)
class MatchSheet:
    """One match written out, what adds most first: `names` of the terms, their `shares` of the cosine, and where each is seen.

    `boxes` are in cells of maps of `cells` = (h, w), first those in the one photograph, then those in the other; what is absent there has the
    empty box 0, 0, 0, 0.
    """

    names: list[str]
    shares: Float[Tensor, "m"]
    boxes: Int[Tensor, "2 m 4"]
    cells: tuple[tuple[int, int], tuple[int, int]]

    @property
    def total(self) -> Float[Tensor, ""]:
        """The cosine of the two codes: the sum of the sheet."""
        return self.shares.sum()


def cosine_terms(x: Float[Tensor, "D"], y: Float[Tensor, "D"], projection: Float[Tensor, "D dims"] | None = None) -> Float[Tensor, "D"]:
    """What each dimension adds to cos(Pᵀx, Pᵀy), P being the `projection` of a whitening, if there is one:

        s_i = ½ (x_i (A y)_i + y_i (A x)_i) / (‖Pᵀx‖ ‖Pᵀy‖),    A = P Pᵀ.

    Without one, A = I and s_i = x_i y_i / (‖x‖ ‖y‖). A whitening mixes dimensions, so a term is what one dimension shares with all of the other
    photograph, seen from both sides alike. Where codes were centred first, 0 is the average photograph.
    """
    if projection is None:
        return x * y / (x.norm() * y.norm()).clamp(min=1e-12)
    within_x, within_y = x @ projection, y @ projection
    length = (within_x.norm() * within_y.norm()).clamp(min=1e-12)
    return (x * (projection @ within_y) + y * (projection @ within_x)) / (2 * length)


@torch.no_grad()
def part_match(
    head: PartHead, one: Float[Tensor, "1 d h w"], other: Float[Tensor, "1 d h w"], mean: Float[Tensor, "p"] | None = None
) -> MatchSheet:
    """The cosine of two bags of parts: Σ_p b_p b'_p / (‖b‖ ‖b'‖), each part with its strongest region in either photograph.

    Args:
        mean: of the unit bags of a whole collection, to be taken from each of the two first: then the terms are of what is
            more, or less, than in the average photograph.
    """
    _single(one, other)
    bags = F.normalize(torch.cat([head.bag(one), head.bag(other)]), dim=1)
    shares = cosine_terms(*(bags if mean is None else bags - mean))
    return _sorted([f"part {p}" for p in range(head.parts)], shares, [strongest(head, maps)[0] for maps in (one, other)], (one, other))


@torch.no_grad()
def code_match(net: PartNet, one: Float[Tensor, "1 d h w"], other: Float[Tensor, "1 d h w"]) -> MatchSheet:
    """The cosine of the two codes that `net.encode` gives: a sum over what they are joined of, landmarks, the whole picture (R-MAC), and parts.

    Centring and whitening are linear, so their mixture of dimensions has a share for each dimension (`cosine_terms`), and a landmark's is the
    sum over its descriptor's. A landmark's box is around the largest area where its share of cells is over half of its highest.
    """
    _single(one, other)
    x, y = F.normalize(net.joined(torch.cat([one, other])), dim=1) - net.whitening_.mean_
    ends, landmarks, parts = [net.through(maps) for maps in (one, other)], len(net.landmarks_), net.head_.parts
    d = ends[0].shape[1]
    of = {  # what a code may be joined of: how many dimensions, of how many things, called what, and where these are
        "landmarks": (landmarks * d, landmarks, "landmark {}", lambda maps: _areas(net.landmarks_.shares(maps)[0])),
        "R-MAC": (d, 1, "whole picture", lambda maps: torch.tensor([[0, 0, maps.shape[3], maps.shape[2]]])),
        "bag": (parts, parts, "part {}", lambda maps: strongest(net.head_, maps)[0]),
    }
    dims, things, called, where = zip(*(of[name] for name in net.code_))
    terms = cosine_terms(x, y, net.whitening_.projection_).split(dims)
    shares = torch.cat([own.view(count, -1).sum(1) for own, count in zip(terms, things)])
    names = [name.format(i) for name, count in zip(called, things) for i in range(count)]
    return _sorted(names, shares, [torch.cat([find(maps) for find in where]) for maps in ends], ends)


def _single(one, other):
    if len(check_maps(one)) != 1 or len(check_maps(other)) != 1:
        raise ValueError(f"a match is of two photographs, and these are the maps of {len(one)} and {len(other)}: write maps[i][None], maps[j][None]")


def _sorted(names, shares, boxes, maps):
    order = shares.argsort(descending=True)
    return MatchSheet([names[i] for i in order.tolist()], shares[order], torch.stack(boxes)[:, order.cpu()], tuple(tuple(m.shape[2:]) for m in maps))


def _areas(shares):
    """Of each landmark, the box of its largest area; an empty one where it has no cell."""
    return torch.tensor([object_box(own, 0.5) if own.max() > 0 else (0, 0, 0, 0) for own in shares])
