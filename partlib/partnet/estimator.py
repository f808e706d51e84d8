"""PartNet, the part network as a reader uses it."""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _files, training
from .._checks import check_count, check_labels
from ..clustering import KMeans
from ..encoding import join, rmac
from ..features import Maps
from ..heads import PartHead, warn_of_collapse
from ..mining import NothingFound, Parts
from ..whitening import NeighbourWhitening, carries_over, shared_neighbours
from .cells import SAMPLE, Foreground, Subspace, each, foreground
from .choice import most_stable
from .landmarks import Landmarks
from .tasks import LastBlock, WithClusters, WithLabels, WithNeighbours


class BlockMissing(ValueError):
    """A part network's file and the block given with it do not belong together; the message says what to do."""


@dataclass
class PartNet:
    """Parts learnt end to end on cached maps, with or without labels, and what they are used for.

    Args:
        parts: p; None: of 32, 64, 128 and 256, as many as two halves of the photographs agree on most. pool: of the head: "gem", "max", "mean" or "softmax". sizes, presence, background, norm: as in `heads.PartHead`.
        landmarks: k, whose descriptors are in the code; None: of 4, 8 and 16, as many as two halves of the photographs agree on most.
        how: without labels: "neighbours" (contrast with mined neighbours) or "clusters" (pseudo-labels of the epoch's k-means).
        neighbours: how many nearest codes a photograph takes for its kind. clusters: k of "clusters"; None: as for landmarks, of 10, 20, 40, 80.
        epochs, batch, rate: of the training, by Adam. temperature: τ of both losses.
        losses: weights of further terms, by the names of functions of `heads`.
        within: filters are sought in so many of the cells' strongest directions; exact, they are filters on all channels in the end.
        dims: of the code that `encode` gives.
        seed: of whatever is drawn.

    Attributes after `fit`: `head_` (PartHead), `history_` (one dict an epoch), `block_` (the last block as trained, or None), `classes_` (how
    many, 0 without labels); without labels also `landmarks_` (Landmarks), `whitening_` (of codes), `carried_over_` (`whitening.carries_over` of
    the code before anything was adapted), `adapted_` (whether it was above 1, and so neighbours were trusted) and `code_`, names of what the code
    is joined of: "landmarks" alone, or with "R-MAC" and "bag" where neighbours are trusted and the two are better by `whitening.shared_neighbours`.
    """

    parts: int | None = 256
    pool: str = "gem"
    sizes: Sequence[int] = (1,)
    presence: bool = False
    background: bool = False
    norm: bool = False
    landmarks: int | None = 8
    how: str = "neighbours"
    neighbours: int = 5
    clusters: int | None = 40
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    temperature: float = 0.1
    losses: tuple = (("orthogonality", 1.0),)
    within: int = 384
    dims: int = 128
    seed: int = 0

    def fit(
        self, maps: Maps | Float[Tensor, "n d h w"], labels=None, views: Sequence = (), start: Parts | None = None,
        block: nn.Module | None = None, checkpoint=None,
    ):  # fmt: skip
        """Learn the parts of these photographs.

        Args:
            maps: of the training photographs alone. labels: `(n,)` class numbers, to learn with them.
            views: maps of the same photographs seen otherwise (`data.mirrored`, `data.cropped`), the mirrored ones first.
            start: parts to start from, as many as `parts`; clusters of foreground cells by default.
            block: the rest of the backbone (`Backbone.after`), where `maps` are of an earlier layer: a copy of it is trained first, without
                labels, unless neighbours are not to be trusted.
            checkpoint: a file to go on from, as in `training.fit`; the block's is beside it, with ".block" behind its name.

        Raises:
            NothingFound: fewer than four photographs, or all cells alike.
        """
        n = len(maps)
        if n < 4:
            raise NothingFound(f"{n} photographs do not show what recurs: give four or more")
        labels = None if labels is None else check_labels(labels, n)
        self.block_ = None if block is None else deepcopy(block).eval()
        if labels is None or block is not None:
            self._look(self.through(maps))
        if block is not None and self.adapted_:
            self._train_block(maps, views, checkpoint)
        maps, *views = [self.through(some) for some in (maps, *views)]
        task, subspace = self._task(maps, views, labels, start)
        self.history_ = training.fit(task, self.epochs, self.batch, self.rate, checkpoint=checkpoint, seed=self.seed)
        warn_of_collapse(self.history_[-1])
        self.head_ = subspace.unfold(task.head).eval().requires_grad_(False)
        self.classes_ = 0 if labels is None else self.head_.classes.out_features
        if labels is None:
            self._learn_code(maps)
        return self

    def _look(self, maps):
        """Are neighbours to be trusted, and what is to be in the code? Asked of landmarks and R-MAC, before anything is trained on both halves."""
        self.landmarks_ = self._find_landmarks(maps)
        self.carried_over_, self.code_ = 0.0, ("landmarks",)
        if len(maps) >= 6:
            alone, both = (self._centred(maps, names) for names in (("landmarks",), ("landmarks", "R-MAC")))
            whitening = self._whitening(len(maps))
            self.carried_over_ = carries_over(both, whitening)
            if self.carried_over_ > 1 and shared_neighbours(both, whitening) > shared_neighbours(alone, whitening):
                self.code_ = ("landmarks", "R-MAC", "bag")
        self.adapted_ = self.carried_over_ > 1

    def _find_landmarks(self, maps):
        count = self.landmarks or most_stable((4, 8, 16), lambda rows, k: Landmarks.of(maps[rows], k, seed=self.seed).maps, maps, self.seed)
        return Landmarks.of(maps, count, seed=self.seed)

    def _train_block(self, maps, views, checkpoint):
        seen = [some.tensor() if isinstance(some, Maps) else some for some in (maps, *views)]
        with torch.no_grad():
            channels = self.block_(seen[0][:1]).shape[1]
        task = LastBlock(self.block_.requires_grad_(True), channels, seen, min(self.neighbours, len(maps) - 1), self.temperature)
        beside = None if checkpoint is None else f"{checkpoint}.block"
        self.block_history_ = training.fit(task, self.epochs, self.batch, self.rate / 10, checkpoint=beside, seed=self.seed)
        self.block_.eval().requires_grad_(False)

    def _task(self, maps, views, labels, start):
        """What the head is trained for, and the directions in which its filters are sought."""
        subspace = Subspace.of(maps, self.within, self.seed)
        seen = [subspace.reduce(some) for some in (maps, *views)]
        first = self._first_filters(subspace, seen[0], start)
        head = PartHead(
            subspace.dims, len(first), 0 if labels is None else int(labels.max()) + 1, self.pool, self.sizes, presence=self.presence,
            background=self.background, norm=self.norm and labels is not None, seed=self.seed,
        )  # fmt: skip
        head.scale.fill_(subspace.scale)
        with torch.no_grad():
            head.filters.weight[: len(first)] = first[:, :, None, None]
        losses = dict(self.losses)
        if labels is not None:
            return WithLabels(head, seen, torch.from_numpy(labels), losses), subspace
        if self.how == "neighbours":
            return WithNeighbours(head, seen, losses, min(self.neighbours, len(maps) - 1), self.temperature), subspace
        if self.how == "clusters":
            return WithClusters(head, seen, losses, self._count_clusters(head, seen[0]), self.temperature), subspace
        raise ValueError(f"how={self.how!r}: without labels a part network learns from 'neighbours' or 'clusters'")

    def _count_clusters(self, head, maps):
        most = len(maps) // 2
        if self.clusters is not None:
            return check_count(min(self.clusters, most), len(maps), "clusters", "photographs")
        codes = F.normalize(each(maps, head.bag), dim=1)
        fit = lambda rows, k: lambda some: torch.from_numpy(KMeans(k, spherical=True, seed=self.seed).fit(codes[rows]).predict(some))
        return most_stable([k for k in (10, 20, 40, 80) if k <= most // 2] or [most], fit, codes, self.seed)

    def _first_filters(self, subspace, maps, start):
        if start is not None:
            if self.parts not in (None, len(start)):
                raise ValueError(f"{len(start)} parts to start from, but parts={self.parts}: make them as many")
            return F.normalize(start.filters @ subspace.basis, dim=1)
        parts = self.parts
        if parts is None:
            scored = lambda filters: lambda some: torch.einsum("nqhw,pq->nphw", F.normalize(some, dim=1), filters)
            parts = most_stable((32, 64, 128, 256), lambda rows, p: scored(self._middles(maps[torch.from_numpy(rows)], p)), maps, self.seed)
        return self._middles(maps, parts)

    def _middles(self, maps, parts):
        """Directions of the middles of so many clusters of foreground cells."""
        cells = F.normalize(maps.permute(0, 2, 3, 1)[foreground(maps)], dim=1)
        drawn = cells[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(cells))[:SAMPLE])]
        if len(drawn) < parts:
            raise NothingFound(f"{parts} parts, but only {len(drawn)} cells on the foreground of {len(maps)} photographs: ask for fewer parts")
        # What all cells have in common tells no part from another; a tenth of it is left, so that filters still prefer objects.
        middles = KMeans(parts, spherical=True, iterations=10, seed=self.seed).fit(drawn).centroids_
        return F.normalize(middles - 0.9 * drawn.mean(0), dim=1)

    # Codes.

    def _whitening(self, n):
        return NeighbourWhitening(min(self.dims, n - 1), min(self.neighbours, n - 1))

    def _learn_code(self, maps):
        self.landmarks_ = self._find_landmarks(maps) if self.block_ is not None else self.landmarks_
        blocks = self._blocks(maps, self.code_)
        self.means_ = [block.mean(0) for block in blocks]
        codes = join(*(block - mean for block, mean in zip(blocks, self.means_)))
        self.whitening_ = replace(self._whitening(len(maps)), rounds=2 if self.adapted_ else 0).fit(codes)

    def _blocks(self, maps, names):
        """What a code is joined of, each of length 1."""
        of = {"landmarks": self.landmarks_.describe, "R-MAC": rmac, "bag": lambda some: F.normalize(self._learnt().bag(some), dim=1)}
        return [each(maps, of[name]) for name in names]

    def _centred(self, maps, names):
        return join(*(block - block.mean(0) for block in self._blocks(maps, names)))

    def through(self, maps):
        """Maps of the backbone's end, where parts are: through the last block, where there is one."""
        return maps if self.block_ is None else each(maps, self.block_)

    def bag(self, maps) -> Float[Tensor, "n p"]:
        """b: how much there is of each part in each photograph."""
        return each(self.through(maps), self._learnt().bag)

    def joined(self, maps) -> Float[Tensor, "n D"]:
        """The code before its whitening: what `code_` names, each of length 1 and centred."""
        if self._learnt().classes is not None:
            raise ValueError("this part network was learnt with labels: it predicts, and its codes are bag(maps); fit(maps) alone learns to encode")
        return join(*(block - mean for block, mean in zip(self._blocks(self.through(maps), self.code_), self.means_)))

    def encode(self, maps) -> Float[Tensor, "n dims"]:
        """Codes of length 1: `joined`, whitened by its neighbours among the training photographs; turned only, where those were not trusted."""
        joined = self.joined(maps)
        return self.whitening_.transform(joined)

    def predict(self, maps) -> Int[np.ndarray, "n"]:
        """The class of the highest logit, where it was learnt with labels."""
        return each(self.through(maps), self._learnt()).argmax(1).cpu().numpy()

    def as_parts(self) -> Parts:
        """Its filters as detectors of regions, for the gallery and for every measure that takes `Parts`; 0 is a cosine of 0."""
        filters = self._learnt().filters.weight[: self.head_.parts].flatten(1)
        return Parts(filters, torch.zeros(len(filters)), about={"learner": "PartNet", "seed": self.seed})

    def _learnt(self):
        if not hasattr(self, "head_"):
            raise ValueError("this part network knows no photographs yet: call fit(maps) first")
        return self.head_

    # Files.

    def save(self, file):
        """Write it to a .safetensors file: arrays and a line of JSON."""
        kept = {"head": self._learnt().state_dict(), "block": {} if self.block_ is None else self.block_.state_dict()}
        about = asdict(self) | {"classes": self.classes_}
        if not self.classes_:
            kept |= {"landmarks": vars(self.landmarks_) | vars(self.landmarks_.foreground), "means": {str(i): mean for i, mean in enumerate(self.means_)}}
            kept |= {"code": {"mean": self.whitening_.mean_, "projection": self.whitening_.projection_}}
            about |= {"adapted": self.adapted_, "carried_over": self.carried_over_, "code": self.code_, "least": self.landmarks_.foreground.least}
        tensors = {f"{what}.{name}": value for what, own in kept.items() for name, value in own.items() if isinstance(value, Tensor)}
        _files.write(file, tensors, about, "part network")

    @classmethod
    def load(cls, file, block: nn.Module | None = None) -> "PartNet":
        """A part network that `save` wrote.

        Args:
            block: as it was given to `fit`, where it was: the weights are in the file, their order is not.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, holds something else, or another block.
        """
        return _files.read(file, "part network", lambda tensors, about: cls._of(tensors, about, block))

    @classmethod
    def _of(cls, tensors, about, block):
        of = lambda what: {name.removeprefix(f"{what}."): value for name, value in tensors.items() if name.startswith(f"{what}.")}
        learnt = {name: about.pop(name) for name in ("classes", "adapted", "carried_over", "code", "least") if name in about}
        net = cls(**about | {"losses": tuple(map(tuple, about["losses"]))})
        net.classes_ = learnt["classes"]
        net.head_ = PartHead(
            tensors["head.filters.weight"].shape[1], len(tensors["head.filters.weight"]) - net.background, net.classes_, net.pool, net.sizes, presence=net.presence,
            background=net.background, norm="head.norm.running_mean" in tensors,
        )  # fmt: skip
        net.head_.load_state_dict(of("head"))
        net.head_.eval().requires_grad_(False)
        if not net.classes_:
            net.adapted_, net.carried_over_, net.code_, marks = learnt["adapted"], learnt["carried_over"], tuple(learnt["code"]), of("landmarks")
            foreground = Foreground(marks["mean"], marks["side"], learnt["least"])
            net.landmarks_ = Landmarks(foreground, marks["basis"], marks["middle"], marks["filters"])
            net.means_ = [mean for _, mean in sorted(of("means").items())]
            net.whitening_ = NeighbourWhitening(net.dims)
            net.whitening_.mean_, net.whitening_.projection_ = of("code")["mean"], of("code")["projection"]
        if bool(of("block")) != (block is not None):
            was = "without a block: load(file)" if block is not None else "with a last block: give it, load(file, block=backbone.after(layer))"
            raise BlockMissing(f"this part network was learnt {was}")
        net.block_ = None if block is None else deepcopy(block).eval().requires_grad_(False)
        if block is not None:
            net.block_.load_state_dict(of("block"))
        return net
