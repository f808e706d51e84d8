"""PartNet, the part network as a reader uses it."""

from dataclasses import asdict, dataclass
from typing import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .. import _files, training
from .._checks import check_count, check_labels
from ..clustering import KMeans
from ..encoding import join, rmac
from ..features import Maps
from ..heads import PartHead, warn_of_collapse
from ..mining import NothingFound, Parts
from ..whitening import NeighbourWhitening
from .cells import SAMPLE, Subspace, each, foreground
from .tasks import WithClusters, WithLabels, WithNeighbours


@dataclass
class PartNet:
    """Parts learnt end to end on cached maps, with or without labels, and what they are used for.

    Args:
        parts: p. pool: of the head: "gem", "max", "mean" or "softmax". sizes, presence, background, norm: as in `heads.PartHead`.
        how: without labels: "neighbours" (contrast with mined neighbours) or "clusters" (pseudo-labels of the epoch's k-means).
        neighbours: how many nearest codes a photograph takes for its kind. clusters: k of "clusters".
        epochs, batch, rate: of the training, by Adam. temperature: τ of both losses.
        losses: weights of further terms, by the names of functions of `heads`.
        within: filters are sought in so many of the cells' strongest directions; exact, they are filters on all channels in the end.
        dims: of the code that `encode` gives.
        seed: of whatever is drawn.

    Attributes after `fit`: `head_` (PartHead), `history_` (one dict an epoch), `whitening_` (of codes), `classes_` (with labels).
    """

    parts: int = 256
    pool: str = "gem"
    sizes: Sequence[int] = (1,)
    presence: bool = False
    background: bool = False
    norm: bool = False
    how: str = "neighbours"
    neighbours: int = 5
    clusters: int = 40
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    temperature: float = 0.1
    losses: tuple = (("orthogonality", 1.0),)
    within: int = 384
    dims: int = 128
    seed: int = 0

    def fit(self, maps: Maps | Float[Tensor, "n d h w"], labels=None, views: Sequence = (), start: Parts | None = None, checkpoint=None):
        """Learn the parts of these photographs.

        Args:
            maps: of the training photographs alone. labels: `(n,)` class numbers, to learn with them.
            views: maps of the same photographs seen otherwise (`data.mirrored`, `data.cropped`), the mirrored ones first.
            start: parts to start from, as many as `parts`; clusters of foreground cells by default.
            checkpoint: a file to go on from, as in `training.fit`.

        Raises:
            NothingFound: fewer than four photographs, or all cells alike.
        """
        n, d, h, w = maps.shape
        if n < 4:
            raise NothingFound(f"{n} photographs do not show what recurs: give four or more")
        labels = None if labels is None else check_labels(labels, n)
        subspace = Subspace.of(maps, self.within, self.seed)
        head = PartHead(
            subspace.dims, self.parts, 0 if labels is None else int(labels.max()) + 1, self.pool, self.sizes, presence=self.presence,
            background=self.background, norm=self.norm and labels is not None, seed=self.seed,
        )  # fmt: skip
        head.scale.fill_(subspace.scale)
        seen = [subspace.reduce(some) for some in (maps, *views)]
        with torch.no_grad():
            head.filters.weight[: self.parts] = self._first_filters(subspace, seen[0], start)[:, :, None, None]
        task = self._task(head, seen, labels)
        self.history_ = training.fit(task, self.epochs, self.batch, self.rate, checkpoint=checkpoint, seed=self.seed)
        warn_of_collapse(self.history_[-1])
        self.head_ = subspace.unfold(head).eval().requires_grad_(False)
        self.classes_ = head.classes.out_features if labels is not None else 0
        self._learn_code(maps)
        return self

    def _first_filters(self, subspace, maps, start):
        if start is not None:
            if len(start) != self.parts:
                raise ValueError(f"{len(start)} parts to start from, but parts={self.parts}: make them as many")
            return F.normalize(start.filters @ subspace.basis, dim=1)
        cells = F.normalize(maps.permute(0, 2, 3, 1)[foreground(maps)], dim=1)
        drawn = cells[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(cells))[:SAMPLE])]
        if len(drawn) < self.parts:
            raise NothingFound(f"{self.parts} parts, but only {len(drawn)} cells on the foreground of {len(maps)} photographs: ask for fewer parts")
        # What all cells have in common tells no part from another; a tenth of it is left, so that filters still prefer objects.
        middles = KMeans(self.parts, spherical=True, iterations=10, seed=self.seed).fit(drawn).centroids_
        return F.normalize(middles - 0.9 * drawn.mean(0), dim=1)

    def _task(self, head, seen, labels):
        losses = dict(self.losses)
        if labels is not None:
            return WithLabels(head, seen, torch.from_numpy(labels), losses)
        if self.how == "neighbours":
            return WithNeighbours(head, seen, losses, min(self.neighbours, len(seen[0]) - 1), self.temperature)
        if self.how == "clusters":
            return WithClusters(head, seen, losses, check_count(min(self.clusters, len(seen[0]) // 2), len(seen[0]), "clusters", "photographs"), self.temperature)
        raise ValueError(f"how={self.how!r}: without labels a part network learns from 'neighbours' or 'clusters'")

    def _learn_code(self, maps):
        self.mean_ = F.normalize(self.bag(maps), dim=1).mean(0)
        pooled = each(maps, rmac)
        self.pooled_mean_ = pooled.mean(0)
        self.whitening_ = NeighbourWhitening(self.dims, min(self.neighbours, len(maps) - 1)).fit(self.joined(maps))

    def bag(self, maps) -> Float[Tensor, "n p"]:
        """b: how much there is of each part in each photograph."""
        return each(maps, self._learnt().bag)

    def joined(self, maps) -> Float[Tensor, "n p+d"]:
        """The centred bag next to centred R-MAC: the code before its whitening."""
        return join(F.normalize(self.bag(maps), dim=1) - self.mean_, each(maps, rmac) - self.pooled_mean_)

    def encode(self, maps) -> Float[Tensor, "n dims"]:
        """Codes of length 1: `joined`, whitened by its neighbours among the training photographs."""
        self._learnt()
        return self.whitening_.transform(self.joined(maps))

    def predict(self, maps) -> Int[np.ndarray, "n"]:
        """The class of the highest logit, where it was learnt with labels."""
        return each(maps, self._learnt()).argmax(1).cpu().numpy()

    def as_parts(self) -> Parts:
        """Its filters as detectors of regions, for the gallery and for every measure that takes `Parts`; 0 is a cosine of 0."""
        filters = self._learnt().filters.weight[: self.parts].flatten(1)
        return Parts(filters, torch.zeros(self.parts), about={"learner": "PartNet", "seed": self.seed})

    def _learnt(self):
        if not hasattr(self, "head_"):
            raise ValueError("this part network knows no photographs yet: call fit(maps) first")
        return self.head_

    # Files.

    def save(self, file):
        """Write it to a .safetensors file: arrays and a line of JSON."""
        tensors = {f"head.{name}": value for name, value in self._learnt().state_dict().items()}
        tensors |= {"mean": self.mean_, "pooled_mean": self.pooled_mean_}
        tensors |= {"whitening.mean": self.whitening_.mean_, "whitening.projection": self.whitening_.projection_}
        _files.write(file, tensors, asdict(self) | {"classes": self.classes_}, "part network")

    @classmethod
    def load(cls, file) -> "PartNet":
        """A part network that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or holds something else.
        """
        return _files.read(file, "part network", cls._of)

    @classmethod
    def _of(cls, tensors, about):
        classes, losses = about.pop("classes"), tuple(map(tuple, about.pop("losses")))
        net = cls(**about, losses=losses)
        net.head_ = PartHead(
            tensors["head.filters.weight"].shape[1], net.parts, classes, net.pool, net.sizes, presence=net.presence,
            background=net.background, norm="head.norm.running_mean" in tensors,
        )  # fmt: skip
        net.head_.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("head.")})
        net.head_.eval().requires_grad_(False)
        net.classes_, net.mean_, net.pooled_mean_ = classes, tensors["mean"], tensors["pooled_mean"]
        net.whitening_ = NeighbourWhitening(net.dims)
        net.whitening_.mean_, net.whitening_.projection_ = tensors["whitening.mean"], tensors["whitening.projection"]
        return net
